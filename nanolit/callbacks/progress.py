"""Seconds of training, and where it stands for people: a bar at a terminal, else a line every few seconds."""

import math
import statistics
import time
from collections import deque
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import KW_ONLY, dataclass

from rich.console import Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from nanolit.machine.terminal import at_terminal, duration, say

# Columns of metrics.csv that are shown: the name people read, the format, and whether a rise is good
SHOWN = {
    "loss": ("loss", ".4f", False),
    "reward": ("reward", ".3f", True),
    "val_bpb": ("validation", ".4f", False),
    "pass_at_1": ("pass@1", ".3f", True),
}
NOISY = ("loss", "reward")  # of other data each step: shown are their running means
REFRESHES = 2  # of the bar, a second
PIPE_SECONDS, MOST_PIPE_SECONDS = 5.0, 60.0  # between two lines in a pipe: a twentieth of the time gone
RECENT_STEPS = 32  # that the pace is judged by
# Decays of the mean that is shown of a noisy column, and of the slower one it is compared with; untuned
FAST, SLOW = 0.7, 0.9
NOISE = 0.002  # of the value: a smaller difference is no trend


class Clock:
    """Seconds of training, without what runs inside `paused` (evaluation, samples, checkpoints)."""

    def __init__(self, seconds: float = 0.0) -> None:
        self._before = seconds
        self.paused_seconds = 0.0  # of this process
        self._since: float | None = time.perf_counter()  # None while it is paused

    @property
    def seconds(self) -> float:
        return self._before if self._since is None else self._before + time.perf_counter() - self._since

    def restart(self) -> None:
        """Start counting now: what happened since the clock was made was preparation."""
        self._since = time.perf_counter()

    @contextmanager
    def paused(self) -> Iterator[None]:
        self._before, self._since, begun = self.seconds, None, time.perf_counter()
        try:
            yield
        finally:
            self._since = time.perf_counter()
            self.paused_seconds += self._since - begun


class Trend:
    """A column's value as it is shown, and where that value is going.

    A score is of the same data each time: the newest is shown and compared with the one before. Of a noisy
    column, the running mean is shown and compared with a slower one.
    """

    def __init__(self, value: float, *, noisy: bool) -> None:
        self.value = self.before = value
        self.noisy = noisy

    def add(self, value: float) -> None:
        if not math.isfinite(self.value):  # a step that diverged; a mean would not forget it
            self.value = self.before = value
        elif self.noisy:
            self.value += (1 - FAST) * (value - self.value)
            self.before += (1 - SLOW) * (value - self.before)
        else:
            self.value, self.before = value, self.value

    @property
    def direction(self) -> int:
        """1: it rises, -1: it falls, 0: neither, or too little is known."""
        change = self.value - self.before
        return 0 if abs(change) <= NOISE * abs(self.before) else 1 if change > 0 else -1


@dataclass(eq=False)
class Progress:
    """A stage's step, its newest scores and the time left."""

    place: str  # which stage this is: "base, stage 2 of 5"
    _: KW_ONLY
    num_steps: int
    clock: Clock
    planned_seconds: float | None = None  # of this stage, by the plan; None where it doesn't know
    later_seconds: float | None = None  # of the stages after it

    def __post_init__(self) -> None:
        self.step = 0
        self.trends: dict[str, Trend] = {}
        self.speeds: deque[float] = deque(maxlen=9)
        self.mfu = 0.0
        # (step, seconds) from the end of this process's first step on: its start-up is not pace
        self._recent: deque[tuple[int, float]] = deque(maxlen=RECENT_STEPS)
        self._printed = -math.inf

    def note(self, row: Mapping[str, float | int]) -> None:
        """Take over the newest values of a row of metrics.csv."""
        for column in SHOWN.keys() & row.keys():
            if column in self.trends:
                self.trends[column].add(row[column])
            else:
                self.trends[column] = Trend(row[column], noisy=column in NOISY)
        if "tokens_per_second" in row:
            self.speeds.append(row["tokens_per_second"])
        self.mfu = row.get("mfu", self.mfu)

    def advance(self, step: int) -> None:
        """Count a step as done; in a pipe, print a line when it is time."""
        self.step = step
        self._recent.append((step, self.clock.seconds))
        if at_terminal():
            return
        pause = min(max(PIPE_SECONDS, self.clock.seconds / 20), MOST_PIPE_SECONDS)
        if step == self.num_steps or time.perf_counter() - self._printed >= pause:
            self._printed = time.perf_counter()
            say(f"  {self.place}: step {step:,} of {self.num_steps:,}{self.numbers()}")

    def seconds_a_step(self) -> float | None:
        """Return the recent pace; None before the second step of this process."""
        if len(self._recent) < 2:
            return None
        (first, begun), (last, now) = self._recent[0], self._recent[-1]
        return (now - begun) / (last - first)

    def times(self) -> str:
        """Return "0:33 elapsed, 2:10 left, 7:40 left in all stages", without what is not known yet."""
        times, pace = [f"{duration(self.clock.seconds)} elapsed"], self.seconds_a_step()
        if pace is not None:
            paused = self.clock.paused_seconds / max(self.clock.seconds, 1e-9)  # evaluations go on like this
            left = (self.num_steps - self.step) * pace * (1 + paused)
            times.append(f"{duration(left)} left")
            if self.later_seconds and self.planned_seconds:
                slower = pace * self.num_steps / self.planned_seconds  # the later stages will be too
                times.append(f"{duration(left + slower * self.later_seconds)} left in all stages")
        return ", ".join(times)

    def numbers(self) -> Text:
        """Return the scores with their trends, the speed and the times, as one line."""
        line = Text(no_wrap=True, overflow="ellipsis")
        for column, (name, form, rise_is_good) in SHOWN.items():
            if column == "loss" and "reward" in self.trends:
                continue  # of rl: it says nothing about how well it learns
            if trend := self.trends.get(column):
                line.append(f"  {name} {trend.value:{form}}")
                good = (trend.direction > 0) == rise_is_good
                line.append(("", " ↑", " ↓")[trend.direction], "green" if good else "yellow")
        speed = f"  {statistics.median(self.speeds):,.0f} tokens/s" if self.speeds else ""
        mfu = f"  MFU {self.mfu:.1%}" if self.mfu else ""
        return line.append(f"{speed}{mfu}  {self.times()}")

    @contextmanager
    def shown(self) -> Iterator[None]:
        """Keep a bar at the bottom of a terminal meanwhile; what is printed goes above it."""
        with Live(get_renderable=self.render, refresh_per_second=REFRESHES, transient=True):
            yield

    def render(self) -> Group:
        """Return the bar and the numbers below it; rich's thread asks for them."""
        bar = Table.grid(padding=(0, 1))
        steps = f"step {self.step:,} of {self.num_steps:,}"
        bar.add_row(Text(self.place, "bold"), ProgressBar(self.num_steps, self.step, width=30), steps)
        return Group(bar, self.numbers())
