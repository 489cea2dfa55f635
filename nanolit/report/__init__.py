"""Runs as text, tables and pictures: the report card of one, the comparison of several, a sweep's table.

Takes run folders and the results of jobs.
Gives report.md, PNG curves, Markdown tables, CSV.
May import config.names, config.schema, config.stored, planning.derivation and machine; never torch.
"""
