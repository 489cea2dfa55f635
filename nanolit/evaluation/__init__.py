"""A model to (name, value) pairs: bits per byte, CORE and the chat tasks.

Takes a raw model, a tokenizer, rows or tasks.
Gives numbers, summed over ranks.
May import inference, kernels, model, tokenizer, tasks, machine and torch, foreign.py transformers and
harness.py lm-eval, which are extras; never a logger or lightning.
"""
