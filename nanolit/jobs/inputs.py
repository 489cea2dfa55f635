"""What the stages of a job learn from and are asked, fetched before a GPU waits for it."""

from typing import Any, cast

from nanolit.config.build import build
from nanolit.config.schema import Job
from nanolit.planning.derivation import RLPlan
from nanolit.planning.plans import fresh_plan


def fetch_tasks(job: Job) -> None:
    """Bring the rows of every task of the job's stages to this machine; ValueError names what is missing."""
    tasks: list[dict[str, Any]] = []
    for stage in job["stages"]:
        if stage == "rl":
            plan = fresh_plan(job, stage)
            assert isinstance(plan, RLPlan)
            tasks += [plan.task, plan.validation]
        elif stage in ("mid", "sft"):
            mixture = cast(dict[str, Any], job["stage"])[stage]["mixture"]
            tasks += [*mixture["sources"], *mixture["validation"]]
    if set(job["stages"]) & {"mid", "sft", "rl"}:
        tasks += job["chat_tasks"]["tasks"]
    for task in tasks:
        build(task)
