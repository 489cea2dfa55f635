"""What each stage optimizes: a LightningModule per phase over one shared core.

Comes in: a job and its derived plan. Goes out: losses, a trained model, checkpoints through callbacks.
May import model, optim, inference, tokenizer, tasks, data, machine, lightning; never
callbacks, jobs or wandb.
"""
