"""A model that talks: the engine with its cache, sampling and the calculator tool.

Comes in: a model, a tokenizer, prompts. Goes out: token ids and text, streamed.
May import model, tokenizer, machine, torch; never lightning, data or phases.
"""
