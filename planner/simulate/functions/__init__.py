"""Replay of functions with adapters on one backbone: what starts, what is kept, what is paid, request by request."""
