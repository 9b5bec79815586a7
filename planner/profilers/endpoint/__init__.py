"""Measures a live OpenAI-compatible server: the largest rate at which each size of request still meets its objectives.

`session` is the way in. `search` and `verdict` decide, and do no I/O; `client`, `dialect` and `metrics` speak to the
server; `load` sends; `journal` remembers, so that an interrupted measurement goes on where it was.
"""
