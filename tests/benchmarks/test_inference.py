"""The benchmark of inference runs all its parts on a tiny model and ends with its figures as JSON."""

import json

import pytest
from tiny_jobs import entry_on_a_cpu

from benchmarks import inference

TINY = [
    *("model.depth=2", "model.width=64", "model.heads=1", "model.context=128", "recipe.vocab_size=512"),
    *("prompt=20", "new=4", "most_rows=4", "questions=2", "samples=2", "new_tokens=8", "requests=3"),
    *("longest=16", "repeats=1", "commit=abc"),
]


@pytest.mark.parametrize(
    ("words", "message"),
    [(["work=peer"], "give peer=FOLDER"), (["peer=/nowhere"], "peer=/nowhere has no nanochat/engine.py")],
)
def test_a_peer_that_is_missing_is_said_before_anything_is_measured(words, message):
    with pytest.raises(ValueError, match=message):
        inference.main([*TINY, *words])


def test_all_parts_run_and_their_figures_fit_together(tmp_path):
    entry = entry_on_a_cpu("inference", *TINY, f"results={tmp_path}")
    assert [line["rows"] for line in entry["rows"]] == [1, 2, 4]
    for line in entry["rows"]:
        assert line["tokens_per_second"] * line["step_ms"] / 1000 == pytest.approx(line["rows"])
        assert 0 < line["bandwidth_share"] < 1
    assert 2 * 2 * 2 <= entry["rollouts"]["tokens"] <= 2 * 2 * 8
    assert entry["requests"]["tokens_per_second"] > 0
    assert "peer" not in entry
    assert entry["loop"]["tokens_per_second"] > 0
    (kept,) = tmp_path.iterdir()
    assert json.loads(kept.read_text())["results"] == [entry]
