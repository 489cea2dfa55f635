"""A checked job to processes to a result.

Comes in: a resolved job, a plain dict. Goes out: job.yaml, plan.json, result.json in the run folder.
May import the rooms below it; lightning in worker.py alone.
"""
