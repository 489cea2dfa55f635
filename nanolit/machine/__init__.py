"""The machine: folders, devices, ranks, random numbers, locks, a command's words and its end.

Takes environment variables, the user's root folder and command lines.
Gives paths, devices, keyed generators and settings.
May import no other package; torch only in device.py.
"""
