"""Chat with a model: in the terminal, on a page in the browser, or through OpenAI's API.

Takes a model that `nanolit.load` gives, messages, sampling settings.
Gives streamed text, and keeps nothing on disk but what /save is told to.
May import inference, model, tokenizer, machine; gradio only in web.py, fastapi only there and in
api.py and server.py; never lightning or jobs.
"""
