"""A model to (name, value) pairs: bits per byte and the chat tasks.

Takes a raw model, a tokenizer, rows or tasks.
Gives numbers, summed over ranks.
May import inference, model, tokenizer, tasks, machine.device and torch; never a logger or lightning.
"""
