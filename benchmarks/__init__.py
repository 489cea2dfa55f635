"""Measurements of speed and memory, by the parts that training itself uses; `results/` keeps the figures.

Takes a benchmark's name and key=value settings.
Gives a table, a JSON line last, and a file of results by commit and GPU.
May import anything of nanolit; nothing of nanolit may import this, and the wheel leaves it out.
"""
