"""What each stage optimizes: a LightningModule per phase over one shared core.

Takes a model, its parameter groups and schedule, and the steps of the loader.
Gives losses and a trained model.
May import data, inference, model, optim, tokenizer, tasks, machine and lightning; never callbacks or jobs.
"""
