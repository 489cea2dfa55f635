"""Runs as text, tables and pictures: the report card of one, the comparison of several, the table of a sweep.

Comes in: run folders and results of jobs. Goes out: report.md, PNG curves, Markdown tables, CSV.
May import machine only; never torch, a model or any other room.
"""
