"""Hydra's launcher for Modal: a composed job goes in, a submission comes out; it may never run a job here."""
