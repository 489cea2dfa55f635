"""How often a stage is evaluated, saved and sampled, in steps, and on how many validation rows."""

from typing import Any, TypedDict

from nanolit.config.schema import Job
from nanolit.planning.batch import FAST_DEV_ROWS


class Watching(TypedDict):
    eval_every: int
    save_every: int
    sample_every: int
    eval_tokens: int
    eval_rows: int


def watching(job: Job, settings: Any, defaults: Any) -> Watching:
    """Return the stage's own `settings` where they are given, else the recipe's `defaults`."""
    chosen = {
        name: settings[name] if settings[name] is not None else defaults[name]
        for name in ("eval_every", "save_every", "sample_every", "eval_tokens")
    }
    for name, value in chosen.items():
        if value < 1:
            raise ValueError(
                f"{name} is {value}; it must be 1 or more, or null for the recipe's {defaults[name]:,}"
            )
    rows = FAST_DEV_ROWS if job["fast_dev_run"] else max(1, chosen["eval_tokens"] // job["model"]["context"])
    return Watching(**chosen, eval_rows=rows)
