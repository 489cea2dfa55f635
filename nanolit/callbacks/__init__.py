"""Beside the loss: evaluation, samples, throughput, checkpoints, and a watch for ranks that got stuck.

Takes the trainer and the phase that it drives.
Gives metrics, and files in the stage's folder.
May import evaluation, inference, model.release, optim, phases, tokenizer, tasks, machine and lightning; never
a logger or jobs.
"""
