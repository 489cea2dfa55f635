"""A composed configuration to processes to a result.

Comes in: a resolved job, a plain dict. Goes out: job.yaml, plan.json, result.json in the run folder.
May import the rooms below it; hydra and omegaconf in compose.py alone, lightning in worker.py alone.
"""
