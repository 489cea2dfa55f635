"""The benchmark of CORE asks a tiny model every task twice, and both ways decide alike."""

import json

import pytest
from tiny_jobs import entry_on_a_cpu

from tests.evaluation.small_bundle import write_bundle

TINY = [
    *("model.depth=2", "model.width=64", "model.heads=1", "model.context=1024", "recipe.vocab_size=512"),
    *("items=2", "commit=abc"),
]


def test_shared_beginnings_and_the_loop_decide_alike(tmp_path):
    bundle = write_bundle(tmp_path / "bundle")
    entry = entry_on_a_cpu("core", *TINY, f"bundle={bundle}", f"results={tmp_path / 'results'}")
    assert [task["disagreements"] for task in entry["tasks"]] == [0] * 22
    assert entry["times_the_loop"] == pytest.approx(entry["loop_seconds_of_core"] / entry["seconds_of_core"])
    (kept,) = (tmp_path / "results").iterdir()
    assert json.loads(kept.read_text())["results"] == [entry]
