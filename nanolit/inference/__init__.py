"""A model that talks: the engine with its cache, sampling and the calculator tool.

Takes a model, a tokenizer, prompts.
Gives token ids and text, streamed.
May import model, tokenizer, machine.device and torch; never lightning, data or phases.
"""
