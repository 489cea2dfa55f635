"""Talk to a model: in the terminal or on a page in the browser.

Takes a release, messages, sampling settings.
Gives streamed text, and keeps nothing on disk.
May import inference and machine.device; gradio in web.py alone; never lightning or jobs.
"""
