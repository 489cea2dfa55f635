"""Talk to a model: in the terminal or on a page in the browser.

Comes in: a release, messages, sampling settings. Goes out: streamed text, and nothing is kept on disk.
May import inference, tokenizer, model.release, machine; gradio in web.py alone; never lightning or jobs.
"""
