"""What the stages of a job read, fetched before a GPU waits for it."""

from pathlib import Path

from nanolit.jobs.build import build
from nanolit.jobs.plans import stage_plan
from nanolit.phases.job import Job


def fetch(job: Job) -> None:
    """Bring every dataset and task of the job's stages to this machine; ValueError names what is missing."""
    for stage in job["stages"]:
        if stage == "base":
            build(job["data"]).prepare(Path(job["root"]), num_shards=stage_plan(job, stage)["shards"])
        elif stage == "rl":
            plan = stage_plan(job, stage)
            build(plan["task"]), build(plan["validation"])
        elif stage != "tokenizer":
            mixture = job["stage"][stage]["mixture"]
            for source in [*mixture["sources"], *mixture["validation"]]:
                build(source)
    if set(job["stages"]) & {"mid", "sft", "rl"}:
        for task in job["chat_tasks"]["tasks"]:
            build(task)
