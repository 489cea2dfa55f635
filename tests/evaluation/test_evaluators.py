"""What a stage is scored by while it trains: the scores, and what outlives an interruption."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from nanolit.evaluation import evaluators
from nanolit.evaluation.chat_tasks import Score
from nanolit.evaluation.evaluators import BitsPerByte, Passes

ENGINE: Any = SimpleNamespace(model=None, release=lambda: None)
ROWS = {"tokens": 1024, "rows": 8, "checksum": "3fa9c1d2e4b5"}


def bits_per_byte_of(rows: dict[str, Any]) -> BitsPerByte:
    return BitsPerByte([], rows=rows, token_bytes=np.ones(1))


def test_the_best_score_outlives_worse_ones_and_a_resume(monkeypatch: pytest.MonkeyPatch) -> None:
    scores = iter([2.0, 1.5, 1.8])
    monkeypatch.setattr(evaluators, "validation_scores", lambda *_: (next(scores), 5.0))
    before, resumed = (bits_per_byte_of(ROWS) for _ in range(2))
    for _ in range(2):
        before.evaluate(ENGINE)
    assert resumed.load(before.state()) == ""
    assert resumed.evaluate(ENGINE) == {"val_bpb": 1.8, "val_loss": 5.0}
    assert resumed.state() == {"val_bpb": 1.8, "best_val_bpb": 1.5, "val_rows": ROWS}


def test_the_best_score_of_other_rows_is_forgotten_and_that_of_an_older_version_kept() -> None:
    older = {"val_bpb": 1.8, "best_val_bpb": 1.5}
    other, kept = (bits_per_byte_of(ROWS) for _ in range(2))
    remark = other.load({**older, "val_rows": {**ROWS, "checksum": "0123456789ab"}})
    assert other.state() == {"val_bpb": None, "best_val_bpb": None, "val_rows": ROWS}
    assert "checksum 0123456789ab changed" in remark
    assert kept.load(older) == ""
    assert kept.state() == {**older, "val_rows": ROWS}


def test_passes_are_the_unbiased_ones_of_samples_drawn_as_rollouts_are(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked = []

    def evaluate_generative(_engine: Any, _task: Any, **settings: Any) -> Score:
        asked.append(settings)
        return Score("Sums", 0.0, 8, pass_at=(0.25, 0.5, 0.75), any_of_first=(0.125, 0.625, 0.75))

    monkeypatch.setattr(evaluators, "evaluate_generative", evaluate_generative)
    sampling = {"temperature": 0.7, "top_k": 5, "max_tokens": 3}
    task: Any = SimpleNamespace(name="Sums")
    passes = Passes(task, num_samples=3, **sampling)
    assert passes.evaluate(ENGINE) == {"pass_at_1": 0.25, "pass_at_k": 0.75}
    assert passes.remark() == "Sums pass@1 25.0%, pass@3 75.0%"
    assert passes.state() == {"pass_at_1": 0.25, "pass_at_k": 0.75, "sampling": 2}
    assert asked == [{"num_samples": 3, **sampling}]


def test_a_stage_that_an_older_version_sampled_says_from_where_on_its_answers_differ() -> None:
    task: Any = SimpleNamespace(name="Sums")
    passes = Passes(task, num_samples=3, temperature=0.7, top_k=5, max_tokens=3)
    older = {"step": 1200, "pass_at_1": 0.25, "pass_at_k": 0.75}
    remark = passes.load(older)
    assert remark.startswith(
        "an older version sampled up to step 1,200; from here on the same seed gives other"
    )
    assert passes.passes == (0.25, 0.75)
    assert passes.load({**older, **passes.state()}) == ""
    assert passes.load({}) == "", "a fresh stage has nothing to compare with"
