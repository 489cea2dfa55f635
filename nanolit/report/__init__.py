"""Runs as text, tables and pictures: the report card of one, the comparison of several, a sweep's table.

Takes run folders and the results of jobs.
Gives report.md, report.html, PNG curves, Markdown tables, CSV.
May import config.compose, config.names, config.schema, config.stored, evaluation.scores, planning.plans,
tasks.bundle and machine; never torch.
"""
