"""What we run on: folders, devices, ranks, random numbers, locks, and how a command reads its words and ends.

Takes environment variables, the user's root folder and command lines.
Gives paths, devices, keyed generators and settings.
May import no other package; torch in device.py alone.
"""
