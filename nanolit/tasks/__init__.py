"""Examples and how to score them: conversations for finetuning and problems for evaluation.

Takes files or hub datasets, and answers to judge.
Gives conversations as plain dicts, and verdicts.
May import machine.paths; datasets inside functions; never torch, a tokenizer or a model.
"""
