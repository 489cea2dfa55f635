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


def test_the_best_score_outlives_worse_ones_and_a_resume(monkeypatch: pytest.MonkeyPatch):
    scores = iter([2.0, 1.5, 1.8])
    monkeypatch.setattr(evaluate, "bits_per_byte", lambda *_: next(scores))
    before, resumed = (EvaluateBitsPerByte([], token_bytes=np.ones(1), **WATCHING) for _ in range(2))
    for _ in range(2):
        before.evaluate(StandInPhase(num_steps=9))
    resumed.load(before.state())
    assert resumed.evaluate(StandInPhase(num_steps=9)) == {"val_bpb": 1.8}
    assert resumed.state() == {"val_bpb": 1.8, "best_val_bpb": 1.5}


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
