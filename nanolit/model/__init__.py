"""Token ids to logits: the GPT of every recipe, its cache, its arithmetic and its released form.

Comes in: ids of shape (B, T) and plain hyperparameters. Goes out: logits or
losses, parameter roles, release folders.
May import kernels, machine and torch; never the tokenizer, an optimizer or lightning.
"""
