"""Run jobs and chats elsewhere: `submit` and `deploy` send them, `python -m launch` looks after them.

Takes a checked job or a run's release, and the launcher's settings.
Gives an app, its record beside the runs, logs and a result or an address.
May import nanolit and modal, its launchers hydra too; of nanolit only the chat's command imports this.
"""
