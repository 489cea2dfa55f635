"""Hydra's launcher for this machine: jobs go in, their results come out; no sweep trains in its process."""
