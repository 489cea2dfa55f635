"""Measurements of speed and memory, by the parts that training itself uses.

Comes in: a benchmark's name and key=value settings. Goes out: a table, a JSON line last, a file of results.
Nothing may import this room.
"""
