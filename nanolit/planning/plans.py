"""The plan of a stage: derived now, but what an earlier start of the same run derived comes first."""

from collections.abc import Sequence
from typing import Any

from nanolit.config.build import build
from nanolit.config.names import tokenizer_name
from nanolit.config.schema import Job
from nanolit.machine.paths import read_json, stage_folder
from nanolit.planning.derivation import Plan, derive
from nanolit.planning.micro_batch import best_known, is_auto, tried, with_micro_batch
from nanolit.planning.prices import check_cost, cost
from nanolit.planning.show import plan_table, total_line

# What may differ between two starts of one run: where it runs and how it is watched.
PRESENT = (
    "ranks",
    "micro_batch",
    "accumulation",
    "hours",
    "memory",
    "cost",
    "eval_every",
    "save_every",
    "sample_every",
)


def fresh_plan(job: Job, stage: str) -> Plan:
    """What the job derives today, whatever is on disk."""
    names = {"dataset": build(job["data"]), "tokenizer": tokenizer_name(job)}
    plan = derive(job, stage, **names)
    if is_auto(job, stage):
        rows = best_known(plan, tried(job, stage, plan))
        plan = derive(with_micro_batch(job, stage, rows), stage, **names)
    return {**plan, "cost": cost(plan, job["cluster"])}


def stage_plan(job: Job, stage: str) -> Plan:
    """The plan that training uses: a stored plan.json keeps what decides the result, come new rules.

    Not a tokenizer's: its name says what it is learned from, and the text may have been mended since.
    """
    plan = fresh_plan(job, stage)
    path = stage_folder(job["root"], job["run"], stage) / "plan.json"
    if stage == "tokenizer" or not path.exists():
        return plan
    stored: dict[str, Any] = read_json(path)
    return {**plan, **{key: value for key, value in stored.items() if key not in PRESENT}}


def fresh_plans(job: Job) -> dict[str, Plan]:
    """The plan of every stage of the job, by name."""
    return {stage: fresh_plan(job, stage) for stage in job["stages"]}


def show_plans(jobs: Sequence[Job]) -> None:
    """Print what the jobs would be, with hours and dollars; ValueError where all together pass max_cost.

    What submits jobs calls this first.
    """
    planned = [(job, list(fresh_plans(job).values())) for job in jobs]
    for job, plans in planned:
        tables = [plan_table(plan, known=before) for before, plan in zip([None, *plans], plans, strict=False)]
        print("\n\n".join(tables), flush=True)
        if len(plans) > 1:
            print(f"\n{total_line(job['run'], plans)}", flush=True)
    if note := check_cost(planned):
        print(note, flush=True)
