"""Words typed to a checked job: the shape of a job, Hydra's composition, the check, stored jobs, names.

Takes overrides as they are typed on a command line.
Gives one checked job, or a ValueError of one line with the key, what is allowed and the nearest spelling.
May import machine.paths and machine.system; hydra and omegaconf only in compose.py, explain.py and words.py;
never torch, or what plans and runs a job.
"""
