"""Text to token ids and back: byte-level BPE training, encoding, and the rendering of conversations.

Takes strings, conversations, a tokenizer's folder.
Gives token ids, masks of what is learned, tokenizer.json.
May import machine.paths, machine.system; never torch, a task or a model.
"""
