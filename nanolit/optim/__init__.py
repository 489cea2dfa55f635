"""Gradients to parameters: Muon and AdamW in one optimizer, their groups, schedules and scaling rules.

Comes in: named tensors with roles, settings, a step number. Goes out: updated parameters and state slices.
May import kernels, machine.device and torch; never a model.
"""
