"""Seconds of training, and times as people read them."""

import time
from collections.abc import Iterator
from contextlib import contextmanager


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


def duration(seconds: float) -> str:
    """Return '1:15' for 75 seconds, '1:01:40' for 3700."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
