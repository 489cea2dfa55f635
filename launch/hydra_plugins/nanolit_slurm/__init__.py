"""Hydra's launcher for SLURM: hydra-submitit-launcher's, after the checks that every other cluster has."""
