"""What we run on: folders, devices, ranks and random numbers.

Comes in: environment variables and the user's root folder. Goes out: paths, devices, keyed generators.
May never import any other room; only device.py may import torch.
"""
