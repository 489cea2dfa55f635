"""Run jobs elsewhere: `launch.submit` submits to Modal, `python -m launch` looks after what was submitted.

Takes a checked job and the launcher's settings.
Gives a detached app, submission.json, logs and a result.
May import nanolit and modal, its launchers hydra too; nothing in nanolit may import this.
"""
