"""Examples and how to score them: conversations for finetuning and problems for evaluation.

Comes in: files or hub datasets. Goes out: conversations as plain dicts, verdicts on answers.
May import machine.paths (and datasets inside functions); never torch or another room.
"""
