"""Text generation: the engine with its slots, sampling and the calculator tool.

Takes a model, a tokenizer, requests.
Gives token ids and text, streamed.
May import kernels, model, tokenizer, machine.device and torch; never lightning, data or phases.
"""
