"""Beside the loss: evaluation, samples, throughput, checkpoints.

Comes in: the trainer and the phase it drives. Goes out: metrics, files in the stage folder.
May import evaluation, inference, model, tokenizer, tasks, report, machine, lightning; never hydra or wandb.
"""
