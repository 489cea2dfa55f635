"""The plans of a job: derived now, but what an earlier start of the same run derived comes first."""

from collections.abc import Mapping, Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from nanolit.config.build import build
from nanolit.config.names import tokenizer_name
from nanolit.config.schema import Job
from nanolit.machine.paths import read_json, stage_folder
from nanolit.planning.derivation import BasePlan, FinetunePlan, Plan, derive, from_json
from nanolit.planning.max_cost import check_cost
from nanolit.planning.micro_batch import best_known, is_auto, tried, with_micro_batch
from nanolit.planning.show import plan_table, total_line
from nanolit.planning.tokenizer import TokenizerPlan

Plans = Mapping[str, Plan]  # by stage

# What may differ between two starts of one run: where it runs and how it is watched.
PRESENT = {
    "ranks",
    "micro_batch",
    "accumulation",
    "hours",
    "memory",
    "cost",
    "eval_every",
    "save_every",
    "sample_every",
}


def fresh_plan(job: Job, stage: str) -> Plan:
    """Derive the plan of a stage by today's rules, whatever is on disk of the run."""
    names = {"dataset": build(job["data"]), "tokenizer": tokenizer_name(job)}
    plan = derive(job, stage, **names)
    if is_auto(job, stage) and isinstance(plan, BasePlan | FinetunePlan):
        rows = best_known(plan, tried(job, plan))
        plan = derive(with_micro_batch(job, stage, rows), stage, **names)
    return plan


def fresh_plans(job: Job) -> dict[str, Plan]:
    """Derive the plans of the job's stages, by name."""
    return {stage: fresh_plan(job, stage) for stage in job["stages"]}


def plan_jobs(jobs: Sequence[Job]) -> list[tuple[Job, Plans]]:
    """Return each job with its plans."""
    return [(job, fresh_plans(job)) for job in jobs]


def keep_stored(job: Job, plan: Plan) -> Plan:
    """Return the plan that training uses: if the stage already has a plan.json, its values win.

    So an upgrade never changes a run in progress. PRESENT is of today's start. A tokenizer's plan is always
    today's: its name says what it is learned from, and the text may have been mended since.
    """
    path = stage_folder(job["root"], job["run"], plan.stage) / "plan.json"
    if isinstance(plan, TokenizerPlan) or not path.exists():
        return plan
    stored: dict[str, Any] = read_json(path)
    kept = {field.name for field in fields(plan)} & stored.keys() - PRESENT
    return replace(plan, **{name: stored[name] for name in kept})


def read_plan(folder: Path) -> Plan:
    """Return the plan in a stage's folder."""
    return from_json(read_json(folder / "plan.json"))


def show_plans(planned: Sequence[tuple[Job, Plans]]) -> None:
    """Print what the jobs would be, with hours and dollars; ValueError where all together pass max_cost.

    What submits jobs calls this first.
    """
    for job, plans in planned:
        stages = list(plans.values())
        tables = [
            plan_table(plan, known=before) for before, plan in zip([None, *stages], stages, strict=False)
        ]
        print("\n\n".join(tables), flush=True)
        if len(stages) > 1:
            print(f"\n{total_line(job['run'], stages)}", flush=True)
    if note := check_cost(planned):
        print(note, flush=True)
