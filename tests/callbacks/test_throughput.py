"""The clock of training, which stands still in a pause, and the speed that is measured by it."""

import time
from types import SimpleNamespace
from typing import Any

import pytest
from stand_in_phase import StandInPhase, trainer_of

from nanolit.callbacks import throughput
from nanolit.callbacks.throughput import Clock, Throughput


def test_a_pause_counts_nothing_and_nothing_twice(monkeypatch: pytest.MonkeyPatch):
    now = [100.0]
    monkeypatch.setattr(throughput.time, "perf_counter", lambda: now[0])
    clock = Clock(7.0)
    now[0] += 10
    with clock.paused():
        assert clock.seconds == 17.0, "what a checkpoint keeps"
        now[0] += 5
        assert clock.seconds == 17.0
    now[0] += 2
    assert clock.seconds == 19.0


def test_a_real_clock_goes_on():
    clock = Clock()
    time.sleep(0.01)
    assert 0.01 <= clock.seconds < 1


def test_speeds_are_those_of_all_devices_and_of_steps_after_the_first(monkeypatch: pytest.MonkeyPatch):
    """Oracle: by hand. A step takes in 400 tokens of 1,000 FLOPs in 2 seconds on two GPUs of 1e6 FLOP/s."""
    now, rows = [0.0], []
    monkeypatch.setattr(throughput.time, "perf_counter", lambda: now[0])
    recorder: Any = SimpleNamespace(record=lambda _, row: rows.append(row))
    settings = {"log_every": 1, "flops_per_token": 1000, "peak_flops": 1e6, "enabled": False}
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
