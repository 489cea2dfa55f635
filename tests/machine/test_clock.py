"""The clock of training, which stands still in a pause."""

import time

import pytest

from nanolit.machine.clock import Clock


def test_a_pause_counts_nothing_and_nothing_twice(monkeypatch: pytest.MonkeyPatch):
    now = [100.0]
    monkeypatch.setattr(time, "perf_counter", lambda: now[0])
    clock = Clock(7.0)
    now[0] += 10
    with clock.paused():
        assert clock.seconds == 17.0, "what a checkpoint keeps"
        now[0] += 5
        assert clock.seconds == 17.0
    now[0] += 2
    assert clock.seconds == 19.0
    assert clock.paused_seconds == 5.0


def test_a_real_clock_goes_on():
    clock = Clock()
    time.sleep(0.01)
    assert 0.01 <= clock.seconds < 1
