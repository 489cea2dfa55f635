"""Runs jobs elsewhere: `launch.submit` submits to Modal, `python -m launch` looks after what was submitted.

In come a resolved job and the launcher's settings; out go a detached app, submission.json, logs and a result.
Imports nanolit and modal; nothing in nanolit imports it.
"""
