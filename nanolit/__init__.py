"""NanoLit: train a small ChatGPT end to end; `nanolit.load(path_or_run).generate(text)` uses one."""
