"""The plan of a stage: derived now, but what an earlier start of the same run derived comes first."""

from collections.abc import Sequence
from typing import Any

from nanolit.jobs.build import build
from nanolit.jobs.names import tokenizer_name
from nanolit.jobs.show import plan_table
from nanolit.machine.paths import read_json, stage_folder
from nanolit.phases.derivation import Plan, derive
from nanolit.phases.job import Job

# What may differ between two starts of one run: where it runs and how it is watched.
PRESENT = ("ranks", "micro_batch", "accumulation", "hours", "eval_every", "save_every", "sample_every")


def fresh_plan(job: Job, stage: str) -> Plan:
    """What the job derives today, whatever is on disk."""
    return derive(job, stage, dataset=build(job["data"]), tokenizer=tokenizer_name(job))


def stage_plan(job: Job, stage: str) -> Plan:
    """The plan that training uses: a stored plan.json keeps what decides the result, come new rules."""
    plan = fresh_plan(job, stage)
    path = stage_folder(job["root"], job["run"], stage) / "plan.json"
    if not path.exists():
        return plan
    stored: dict[str, Any] = read_json(path)
    return {**plan, **{key: value for key, value in stored.items() if key not in PRESENT}}


def show_plans(jobs: Sequence[Job]) -> None:
    """Print what the jobs would be. What submits jobs calls this first."""
    for job in jobs:
        for stage in job["stages"]:
            print(plan_table(fresh_plan(job, stage)), flush=True)
