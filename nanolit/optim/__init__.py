"""Gradients to parameters: Muon and AdamW in one optimizer, their groups, schedules and scaling rules.

Takes named tensors with roles, settings, a step number.
Gives updated parameters and each rank's share of the state.
May import kernels, machine.device and torch; never a model.
"""
