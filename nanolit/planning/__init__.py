"""A job to numbers: sizes, horizon, learning rates, hours, memory and dollars, before anything runs.

Takes a checked job, and what is on disk of the run: a stored plan.json, the micro-batches that were tried.
Gives the plan of each stage (plans.py), its table for people (show.py), a refusal above `max_cost`.
May import config, machine.numbers, machine.paths, machine.terminal, model.accounting, optim.scaling; never
phases or jobs, nor torch.
"""
