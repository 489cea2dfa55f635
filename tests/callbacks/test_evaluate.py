"""When a stage is scored, what is said about it, and what metrics.csv gets."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from stand_in_phase import StandInPhase

from nanolit.callbacks.evaluate import Evaluate
from nanolit.callbacks.progress import Clock
from nanolit.evaluation import evaluators
from nanolit.evaluation.evaluators import BitsPerByte

ROWS = {"tokens": 1024, "rows": 8, "checksum": "3fa9c1d2e4b5"}


@pytest.fixture
def evaluation(monkeypatch: pytest.MonkeyPatch) -> Evaluate:
    """A callback whose score is always 2 bits per byte; its recorder keeps what it is given."""
    monkeypatch.setattr(evaluators, "validation_scores", lambda *_: (2.0, 5.0))
    recorded: list[dict[str, Any]] = []
    recorder: Any = SimpleNamespace(record=lambda _, row: recorded.append(row), recorded=recorded)
    engine: Any = SimpleNamespace(model=None)
    evaluator = BitsPerByte([], rows=ROWS, token_bytes=np.ones(1))
    return Evaluate(evaluator, engine=lambda: engine, eval_every=4, recorder=recorder, clock=Clock())


def steps(evaluation: Evaluate, *finished: int) -> list[dict[str, Any]]:
    """What is recorded after each of the finished steps, of 9."""
    trainer: Any = None
    for step in finished:
        phase = StandInPhase(num_steps=9)
        phase.gpt, phase.finished_steps = torch.nn.Identity(), step
        evaluation.on_train_batch_end(trainer, phase, None, None, 0)
    return evaluation.recorder.recorded  # type: ignore[attr-defined]


def test_a_stage_is_scored_every_so_often_and_after_the_last_step(evaluation: Evaluate) -> None:
    rows = steps(evaluation, *range(1, 10))
    assert rows == [{"step": step, "val_bpb": 2.0, "val_loss": 5.0} for step in (4, 8, 9)]


def test_the_rows_of_the_score_are_told_once(evaluation: Evaluate, capsys: pytest.CaptureFixture) -> None:
    steps(evaluation, 4, 8)
    line = "  validation rows: 1,024 tokens in 8 rows, checksum 3fa9c1d2e4b5"
    lines = capsys.readouterr().out.splitlines()
    assert lines.count(line) == 1
    assert lines[-1] == "  step 8: validation 2.0000 bits per byte"


def test_other_rows_than_before_the_interruption_are_told(evaluation: Evaluate) -> None:
    remark = evaluation.evaluator.load({"val_bpb": 1.8, "val_rows": {**ROWS, "checksum": "0123456789ab"}})
    assert "checksum 0123456789ab changed" in remark
