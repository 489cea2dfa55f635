"""What the scores while training leave in metrics.csv, checkpoints and results."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from stand_in_phase import StandInPhase

from nanolit.callbacks import evaluate
from nanolit.callbacks.evaluate import EvaluateBitsPerByte, EvaluatePasses
from nanolit.callbacks.throughput import Clock
from nanolit.evaluation.chat_tasks import Score

WATCHING: dict[str, Any] = {"eval_every": 1, "recorder": None, "clock": Clock()}
ROWS = {"tokens": 1024, "rows": 8, "checksum": "3fa9c1d2e4b5"}


def bits_per_byte_of(rows: dict[str, Any]) -> EvaluateBitsPerByte:
    return EvaluateBitsPerByte([], rows=rows, token_bytes=np.ones(1), **WATCHING)


def test_the_best_score_outlives_worse_ones_and_a_resume(monkeypatch: pytest.MonkeyPatch):
    scores = iter([2.0, 1.5, 1.8])
    monkeypatch.setattr(evaluate, "bits_per_byte", lambda *_: next(scores))
    before, resumed = (bits_per_byte_of(ROWS) for _ in range(2))
    for _ in range(2):
        before.evaluate(StandInPhase(num_steps=9))
    resumed.load(before.state())
    assert resumed.evaluate(StandInPhase(num_steps=9)) == {"val_bpb": 1.8}
    assert resumed.state() == {"val_bpb": 1.8, "best_val_bpb": 1.5, "val_rows": ROWS}


def test_the_rows_of_the_score_are_told_once(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture):
    monkeypatch.setattr(evaluate, "bits_per_byte", lambda *_: 2.0)
    evaluation = bits_per_byte_of(ROWS)
    for _ in range(2):
        evaluation.evaluate(StandInPhase(num_steps=9))
    line = "  validation rows: 1,024 tokens in 8 rows, checksum 3fa9c1d2e4b5"
    assert capsys.readouterr().out.splitlines().count(line) == 1


def test_the_best_score_of_other_rows_is_forgotten_and_that_of_an_older_version_kept(
    capsys: pytest.CaptureFixture,
):
    older = {"val_bpb": 1.8, "best_val_bpb": 1.5}
    other, kept = (bits_per_byte_of(ROWS) for _ in range(2))
    other.load({**older, "val_rows": {**ROWS, "checksum": "0123456789ab"}})
    assert other.state() == {"val_bpb": None, "best_val_bpb": None, "val_rows": ROWS}
    assert "checksum 0123456789ab are replaced by others" in capsys.readouterr().out
    kept.load(older)
    assert kept.state() == {**older, "val_rows": ROWS}
    assert capsys.readouterr().out == ""


def test_passes_are_the_unbiased_ones_of_samples_drawn_as_rollouts_are(monkeypatch: pytest.MonkeyPatch):
    asked = []

    def evaluate_generative(_engine, _task, **settings: Any) -> Score:
        asked.append(settings)
        return Score("Sums", 0.0, 8, pass_at=(0.25, 0.5, 0.75), any_of_first=(0.125, 0.625, 0.75))

    monkeypatch.setattr(evaluate, "evaluate_generative", evaluate_generative)
    sampling = {"temperature": 0.7, "top_k": 5, "max_tokens": 3}
    engine, task = Any, SimpleNamespace(name="Sums")
    passes = EvaluatePasses(engine, task, num_samples=3, **sampling, **WATCHING)  # type: ignore[arg-type]
    assert passes.evaluate(StandInPhase(num_steps=9)) == {"pass_at_1": 0.25, "pass_at_k": 0.75}
    assert passes.state() == {"pass_at_1": 0.25, "pass_at_k": 0.75}
    assert asked == [{"num_samples": 3, **sampling}]
