"""The benchmark of the API serves a tiny release in its own process, and gets the engine's replies."""

import json

from tiny_jobs import entry_on_a_cpu

TINY = [
    *("model.depth=2", "model.width=64", "model.heads=1", "model.context=128", "recipe.vocab_size=512"),
    *("prompt=20", "new=8", "streams=1,3", "commit=abc"),
]


def test_the_api_is_measured_beside_the_engine(tmp_path):
    entry = entry_on_a_cpu("serving", *TINY, f"results={tmp_path}")
    for count, api, engine in zip((1, 3), entry["api"], entry["engine"], strict=True):
        assert api["tokens"] == engine["tokens"] <= count * 8
        assert 0 < api["first_seconds"] <= api["seconds"]
    assert entry["ready_seconds"] > entry["first_reply_seconds"] > 0
    (kept,) = tmp_path.iterdir()
    assert json.loads(kept.read_text())["results"] == [entry]
