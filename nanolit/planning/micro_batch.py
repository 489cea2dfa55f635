"""`micro_batch=auto`: which micro-batches were tried on a GPU, remembered in <root>/micro_batch.json.

jobs/trial.py tries them. No choice changes what is learned: the order of the data doesn't depend on it.
"""

from pathlib import Path
from typing import Any, NamedTuple

from nanolit.config.names import short_hash
from nanolit.config.schema import Job
from nanolit.machine.paths import read_json, write_json
from nanolit.planning.batch import BatchPlan
from nanolit.planning.derivation import TrainingPlan
from nanolit.planning.memory import fits


class Tried(NamedTuple):
    """The largest micro-batch known to fit (0: none is) and the smallest known not to (None: none is)."""

    fits: int = 0
    fails: int | None = None

    def open(self, choices: list[int]) -> list[int]:
        """The choices that nothing is known of, in rising order."""
        return [one for one in choices if one > self.fits and (self.fails is None or one < self.fails)]


def is_auto(job: Job, stage: str) -> bool:
    """Whether the stage's micro-batch is to be tried; never on a CPU, in rl, or for three tiny steps."""
    settings: Any = job["stage"].get(stage, {})
    tried = stage not in ("tokenizer", "rl") and job["cluster"]["gpu"] != "cpu" and not job["fast_dev_run"]
    return tried and settings.get("micro_batch") == "auto"


def best_known(plan: BatchPlan, known: Tried) -> int:
    """The largest micro-batch known to fit, else the derived one, if it isn't known to be too large."""
    most = known.fits or min(plan.micro_batch, (known.fails or plan.micro_batch + 1) - 1)
    return max(one for one in plan.micro_batches if one <= max(most, 1))


def with_micro_batch(job: Job, stage: str, rows: int) -> Job:
    """The job with another micro-batch for one stage."""
    stages: Any = job["stage"]
    changed: Any = {**stages, stage: {**stages[stage], "micro_batch": rows}}
    return {**job, "stage": changed}


def tried(job: Job, plan: TrainingPlan) -> Tried:
    """What is known of this GPU, model and precision."""
    path = _path(job)
    entries = read_json(path)["tried"] if path.exists() else {}
    return Tried(**entries.get(_key(job, plan), {}))


def remember(job: Job, plan: TrainingPlan, found: Tried) -> None:
    """Keep what was found beside what is known of other GPUs, models and precisions."""
    path = _path(job)
    entries = read_json(path)["tried"] if path.exists() else {}
    write_json(path, {"format": 1, "tried": {**entries, _key(job, plan): found._asdict()}})


def out_of_memory(job: Job, plan: TrainingPlan) -> str:
    """The line for a stage that ran out of memory: what fits; with auto, that is what comes next."""
    rows, gpu = plan.micro_batch, job["cluster"]["gpu"] or "the device"
    message = f"{plan.stage} ran out of memory on {gpu} with micro_batch={rows}"
    smaller = [one for one in plan.micro_batches if one < rows]
    if not smaller:
        return f"{message}; take a GPU with more memory, more devices, or a smaller model or model.context"
    likely = [one for one in smaller if fits(job, plan.gpt, one, gpu=gpu)]
    next_rows = max(likely or smaller)
    if is_auto(job, plan.stage):
        remember(job, plan, Tried(fails=rows))
        return f"{message}; this is remembered: the same command tries less"
    by = "by the plan's estimate fits" if likely else "is the next smaller"
    return f"{message}; give micro_batch={next_rows}, which {by}, or micro_batch=auto; the result is the same"


def _path(job: Job) -> Path:
    return Path(job["root"]) / "micro_batch.json"


def _key(job: Job, plan: TrainingPlan) -> str:
    eager = job["compile"] is False or not plan.equal_rows
    words = [
        f"{plan.ranks} × {job['cluster']['gpu']}",
        f"d{plan.gpt['depth']}-{short_hash(plan.gpt)}",
        job["precision"] or "bf16",
        *(["eager"] if eager else []),
    ]
    return " · ".join(words)
