"""Run a checked job: processes, stages, a result.

Takes a job, a plain dict as job.yaml holds it.
Gives job.yaml, plan.json and result.json in the stages' folders, and the run's report.
May import callbacks, config, data, evaluation, inference, model, phases, planning, report, tokenizer, tasks
and machine; never hydra or omegaconf; lightning only in worker.py, watch.py and ending.py.
"""
