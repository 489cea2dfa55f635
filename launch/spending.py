"""The cost of a run: the seconds it had its GPUs, written by the machines themselves.

Waiting for a GPU is not billed, so the times of the calls say too much.
"""

import math
import time
from pathlib import Path

from typing_extensions import TypedDict

from nanolit.machine.paths import read_json, write_json

FILE = "gpu_seconds.json"  # in the run's folder: one entry a machine, by when it began
EVERY_SECONDS = 30.0
RESERVE_SECONDS = 60.0  # a last step and its checkpoint, when max_cost is near


class Kept(TypedDict, total=False):
    seconds: dict[str, float]


class Meter:
    """Counts this machine's seconds, after those of the machines before it."""

    def __init__(self, folder: Path) -> None:
        self.path, self.begun, self.written = folder / FILE, time.time(), 0.0
        stored = read_json(self.path, Kept) if self.path.exists() else {}
        self.before: dict[str, float] = stored.get("seconds", {})

    def seconds(self) -> float:
        return sum(self.before.values()) + time.time() - self.begun

    def seconds_left(self, max_cost: float | None, dollars_per_hour: float | None) -> float:
        """Return the seconds until `max_cost` is spent, less a reserve; infinity without limit or price."""
        if max_cost is None or not dollars_per_hour:
            return math.inf
        return max_cost / dollars_per_hour * 3600 - self.seconds() - RESERVE_SECONDS

    def tick(self) -> None:
        """Write, if the last time is long enough ago."""
        if time.time() - self.written > EVERY_SECONDS:
            self.keep()

    def keep(self) -> None:
        """Write this machine's seconds so far."""
        self.written = time.time()
        seconds = {**self.before, f"{self.begun:.3f}": round(self.written - self.begun, 3)}
        write_json(self.path, {"format": 1, "seconds": seconds})
