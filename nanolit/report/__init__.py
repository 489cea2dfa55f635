"""Runs as text, tables and pictures: the report card of one, the comparison of several, a sweep's table.

Takes run folders and the results of jobs.
Gives report.md, PNG curves, Markdown tables, CSV.
May import machine; never torch or a model.
"""
