"""Token ids to logits: the GPT of every recipe, its cache, its arithmetic and its released form.

Takes ids of shape (B, T) and plain hyperparameters.
Gives logits or losses, parameter roles, release folders.
May import kernels, machine and torch; never a tokenizer, an optimizer or lightning.
"""
