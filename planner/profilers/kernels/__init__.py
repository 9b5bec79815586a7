"""Timing of a model's own kernels on the GPU at hand: no weights, no serving engine, minutes.

shapes: what to time and in which order; timing: the only module that imports torch; sampling: how often to repeat;
machine: the state of the GPU; run: the loop over shapes; fit and table: what the timings imply; document: the file.
"""
