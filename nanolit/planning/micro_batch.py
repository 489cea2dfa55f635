"""`micro_batch=auto`: which micro-batches were tried on a GPU, remembered in <root>/micro_batch.json.

jobs/trial.py tries them. No choice changes what is learned: the order of the data doesn't depend on it.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from typing_extensions import TypedDict

from nanolit.config.names import short_hash
from nanolit.config.schema import Job
from nanolit.machine.paths import read_json, write_json
from nanolit.model.accounting import Hyperparameters
from nanolit.planning.costs import num_ranks


class Tried(NamedTuple):
    """The largest micro-batch known to fit (0: none is) and the smallest known not to (None: none is)."""

    fits: int = 0
    fails: int | None = None

    def open(self, choices: Sequence[int]) -> list[int]:
        """Return the choices of which nothing is known, in rising order."""
        return [rows for rows in choices if rows > self.fits and (self.fails is None or rows < self.fails)]


class Entry(TypedDict):
    fits: int
    fails: int | None


class Memory(TypedDict):
    """The content of micro_batch.json: a `Tried` for each GPU, model and precision."""

    tried: dict[str, Entry]


def best_known(choices: Sequence[int], derived: int, known: Tried) -> int:
    """Return the largest choice known to fit, else the derived one, if it isn't known to be too large."""
    most = known.fits or min(derived, (known.fails or derived + 1) - 1)
    return max(rows for rows in choices if rows <= max(most, 1))


def tried(job: Job, gpt: Hyperparameters, *, equal_rows: bool) -> Tried:
    """Return what is known of this GPU, model and precision; `equal_rows` is the plan's."""
    entry: Entry = _entries(job).get(_key(job, gpt, equal_rows), {"fits": 0, "fails": None})
    return Tried(entry["fits"], entry["fails"])


def remember(job: Job, gpt: Hyperparameters, found: Tried, *, equal_rows: bool) -> None:
    """Keep what was found beside what is known of other GPUs, models and precisions."""
    entries = {**_entries(job), _key(job, gpt, equal_rows): found._asdict()}
    write_json(_path(job), {"format": 1, "tried": entries})


def _entries(job: Job) -> dict[str, Any]:
    return read_json(_path(job), Memory)["tried"] if _path(job).exists() else {}


def _path(job: Job) -> Path:
    return Path(job["root"]) / "micro_batch.json"


def _key(job: Job, gpt: Hyperparameters, equal_rows: bool) -> str:
    words = [
        f"{num_ranks(job)} × {job['cluster']['gpu']}",
        f"d{gpt['depth']}-{short_hash(gpt)}",
        job["precision"] or "bf16",
        *(["eager"] if job["compile"] is False or not equal_rows else []),
    ]
    return " · ".join(words)
