"""Tensors to tensors: attention, heads, MLP, loss, fp8 and Muon's products, each with its PyTorch twin.

Takes tensors and plain numbers, never a module or a recipe.
Gives tensors, with gradients where training needs them, from the fastest kernel that agrees with its twin.
May import torch, Triton and machine.device; never a model, an optimizer or lightning.
"""
