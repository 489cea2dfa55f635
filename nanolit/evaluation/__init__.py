"""A model to (name, value) pairs: bits per byte, CORE and the chat tasks.

Comes in: a raw model, a tokenizer, rows or tasks. Goes out: numbers, summed over ranks.
May import inference, model, tokenizer, tasks, machine; never a logger or lightning.
"""
