"""What the stages of a job read, fetched before a GPU waits for it."""

from pathlib import Path
from typing import Any, cast

from nanolit.jobs.build import build
from nanolit.jobs.plans import stage_plan
from nanolit.phases.job import Job


def fetch(job: Job) -> None:
    """Bring every dataset and task of the job's stages to this machine; ValueError names what is missing."""
    tasks: list[dict[str, Any]] = []
    for stage in job["stages"]:
        if stage == "base":
            build(job["data"]).prepare(Path(job["root"]), num_shards=stage_plan(job, stage)["shards"])
        elif stage == "rl":
            plan = stage_plan(job, stage)
            tasks += [plan["task"], plan["validation"]]
        elif stage != "tokenizer":
            mixture = cast(dict[str, Any], job["stage"])[stage]["mixture"]
            tasks += [*mixture["sources"], *mixture["validation"]]
    if set(job["stages"]) & {"mid", "sft", "rl"}:
        tasks += job["chat_tasks"]["tasks"]
    for task in tasks:
        build(task)
