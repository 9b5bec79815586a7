"""Discrete-event replay of a fleet, request by request: does it hold its objectives?"""
