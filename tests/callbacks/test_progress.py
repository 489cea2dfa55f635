"""What a person is told of a running stage: pace, trends, the time left, and where it is shown."""

import fcntl
import math
import os
import pty
import struct
import subprocess
import sys
import termios
import time

import pytest

from nanolit.callbacks import progress
from nanolit.callbacks.progress import Clock, Progress, Trend

SHOW = """
import time, warnings
from nanolit.callbacks.progress import Clock, Progress
from nanolit.machine.terminal import say
shown = Progress("sft, stage 4 of 5", num_steps=3, clock=Clock())
with shown.shown():
    for step in (1, 2, 3):
        time.sleep(0.2)
        shown.note({"loss": 5.0 - step, "pass_at_1": 0.1 * step, "val_bpb": 2.5, "tokens_per_second": 1000.0})
        shown.advance(step)
        say(f"said at {step}")
"""


class StandInClock(Clock):
    """A clock that is told the time."""

    now = 0.0

    @property
    def seconds(self) -> float:
        return self.now


def staged(**settings) -> tuple[Progress, StandInClock]:
    clock = StandInClock()
    return Progress("base, stage 2 of 5", num_steps=10, clock=clock, **settings), clock


def test_what_the_first_step_takes_to_start_is_not_counted_as_pace(capsys):
    """Oracle: by hand. The first step takes 60 seconds, the others 2: after three, seven are left."""
    shown, clock = staged()
    clock.now = 60.0
    shown.advance(1)
    assert shown.times() == "1:00 elapsed", "nothing is extrapolated from it"
    for step in (2, 3):
        clock.now += 2
        shown.advance(step)
    assert shown.times() == "1:04 elapsed, 0:14 left"


def test_the_time_of_all_stages_is_the_plans_at_this_stages_pace(capsys):
    """Oracle: by hand. Planned 1 second a step, it takes 2: what is planned as 100 seconds takes 200."""
    shown, clock = staged(planned_seconds=10.0, later_seconds=100.0)
    for step in (1, 2):
        clock.now += 2
        shown.advance(step)
    assert shown.times() == "0:04 elapsed, 0:16 left, 3:36 left in all stages"


def test_evaluations_to_come_take_their_share_of_the_time_left(capsys):
    shown, clock = staged()
    clock.paused_seconds, clock.now = 2.0, 4.0
    shown.advance(1)
    clock.now = 6.0
    clock.paused_seconds = 3.0  # half of the training
    shown.advance(2)
    assert shown.times() == "0:06 elapsed, 0:24 left"


@pytest.mark.parametrize(
    ("values", "direction"),
    [([3, 2, 1], -1), ([0.1, 0.3, 0.5], 1), ([2, 2, 2], 0), ([4], 0), ([math.nan, 3, 2], -1)],
)
@pytest.mark.parametrize("noisy", [True, False])
def test_a_trend_says_where_a_value_goes(values, direction, noisy):
    assert trend_of(values, noisy=noisy).direction == direction


def test_number_and_arrow_are_of_the_same_mean_or_of_the_same_two_scores():
    """One bad step of a rising reward: the newest reading fell, the mean that is shown did not."""
    rewards = [*(0.1 * step for step in range(9)), 0.75]
    before, after = (trend_of(part, noisy=True) for part in (rewards[:-1], rewards))
    assert before.value < after.value < rewards[-1]
    assert after.direction == 1
    score = trend_of([3.0, 1.0, 2.0], noisy=False)
    assert (score.value, score.direction) == (2.0, 1), "lower than the first, higher than the one before"


def trend_of(values, *, noisy):
    trend = Trend(values[0], noisy=noisy)
    for value in values[1:]:
        trend.add(value)
    return trend


def test_a_pipe_gets_lines_by_time_and_always_the_last(capsys, monkeypatch):
    now = [100.0]
    monkeypatch.setattr(progress.time, "perf_counter", lambda: now[0])
    shown, _ = staged()
    for step in range(1, 11):
        now[0] += 2
        shown.advance(step)
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(": ")[1].split("  ")[0] for line in lines] == [
        f"step {step} of 10" for step in (1, 4, 7, 10)
    ]
    assert all(line.startswith("  base, stage 2 of 5: ") for line in lines)


def test_a_pipe_gets_scores_and_no_control_characters():
    out = subprocess.run([sys.executable, "-c", SHOW], capture_output=True, text=True, check=True).stdout
    assert "loss 3.1900 ↓  validation 2.5000  pass@1 0.300 ↑  1,000 tokens/s" in out
    assert not set(out) & {"\033", "\r"}


def test_rl_is_told_by_its_reward_alone():
    shown, _ = staged()
    for reward in (0.1, 0.2, 0.3):
        shown.note({"loss": -0.01, "reward": reward})
    assert shown.numbers().plain.startswith("  reward 0.181 ↑  0:00 elapsed")


def test_a_terminal_gets_a_bar_below_what_is_said():
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 30, 100, 0, 0))
    environment = {**os.environ, "TERM": "xterm-256color"}
    process = subprocess.Popen([sys.executable, "-c", SHOW], stdout=theirs, stderr=theirs, env=environment)
    os.close(theirs)
    out = b""
    try:
        while chunk := os.read(ours, 4096):
            out += chunk
    except OSError:  # Linux says so that the other end is closed
        pass
    os.close(ours)
    assert process.wait() == 0
    text = out.decode()
    assert all(part in text for part in ("━", "stage 4 of 5", "loss 3.1900"))
    assert text.index("said at 1") < text.rindex("━"), "the bar is drawn again below the line"
    assert text.rstrip().endswith(("\033[?25h", "\033[2K")), "the cursor is back and the bar is gone"


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
