"""Measure speed and memory with the parts that training itself uses; `results/` keeps the figures.

Each benchmark takes key=value settings, prints a table and a last line of JSON, and keeps its results in a
file named by commit and GPU. Benchmarks may import anything from nanolit; nothing in nanolit may import them,
and the wheel leaves them out.
"""
