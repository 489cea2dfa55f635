"""Text to token ids and back: byte-level BPE training, encoding, and the rendering of conversations.

Comes in: strings, conversations, a tokenizer folder. Goes out: token ids, masks, tokenizer.json.
May import machine.paths only; never torch, lightning or another room.
"""
