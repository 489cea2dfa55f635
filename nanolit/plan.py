"""Estimate a job's parameters, tokens, FLOPs, hours, dollars and memory, without starting it.

    nanolit plan phase=base model=d26 cluster=modal_8xh100
    nanolit plan phase=base model=d26 cluster=all           hours, dollars and memory on every cluster

Takes the settings of nanolit train.
"""

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass

from nanolit.config.compose import compose
from nanolit.config.schema import Job
from nanolit.config.words import options
from nanolit.jobs.inputs import origin
from nanolit.machine.arguments import read_some, setting
from nanolit.machine.exit import command
from nanolit.planning.plans import Plan, Plans, as_json, check_cost, fresh_plans, plan_jobs, total
from nanolit.planning.show import clusters_table, show_plans
from nanolit.planning.sizes import TextPlan

ALL = "cluster=all"


@dataclass(frozen=True)
class Settings:
    """The form in which the plan is printed."""

    json: bool = setting(
        "--json: print plan.json, keyed by stage if there are several, or by cluster with cluster=all", False
    )


@command
def main(words: Sequence[str]) -> None:
    settings, overrides = read_some(Settings, words, about=__doc__)
    if ALL in overrides:
        show_clusters(overrides, as_json=settings.json)
        return
    job = compose(overrides)
    if settings.json:
        plans = fresh_plans(job)
        by_stage = {stage: as_json(plan) for stage, plan in plans.items()}
        print_json(next(iter(by_stage.values())) if len(plans) == 1 else by_stage)
        check_cost([(job, plans)])
    else:
        show_plans(plan_jobs([job]))
    note_missing_origin(job)


def note_missing_origin(job: Job) -> None:
    """Say on stderr that the run of `start_from` isn't here yet: a plan can do without, training can't."""
    models = [stage for stage in job["stages"] if stage != "tokenizer"]
    if job["start_from"] and models and job["cluster"]["kind"] == "local":
        try:
            origin(job, models[0])
        except ValueError as error:
            print(f"note: {error}", file=sys.stderr)


def print_json(content: object) -> None:
    print(json.dumps(content, indent=2, ensure_ascii=False))


def show_clusters(overrides: list[str], *, as_json: bool) -> None:
    """Print the plan of the same job on every cluster; ValueError if it fits none."""
    found: dict[str, dict[str, object]] = {}
    errors = []
    for name in options("cluster"):
        try:
            job = compose([f"cluster={name}" if word == ALL else word for word in overrides])
            plans = fresh_plans(job)
            check_cost([(job, plans)])
            found[name] = summary(plans)
        except ValueError as error:
            found[name] = {"error": str(error)}
            errors.append(error)
    if len(errors) == len(found):
        raise errors[0]
    if as_json:
        print_json(found)
    else:
        print(clusters_table(found))


def summary(plans: Plans) -> dict[str, object]:
    """Return what a cluster takes for all stages: their sums, and the memory of the one that needs most."""
    stages = list(plans.values())
    hours, dollars = total(stages)
    most = max(reversed(stages), key=peak_gib)
    where = stages[-1].hours
    return {
        "gpus": "cpu" if where["gpu"] == "cpu" else f"{where.get('devices')} × {where['gpu']}",
        "hours": hours,
        "dollars": dollars,
        "billed": any(plan.cost for plan in stages),
        "micro_batch": getattr(most, "micro_batch", None),
        "memory": getattr(most, "memory", None),
        "stages": {stage: as_json(plan) for stage, plan in plans.items()},
    }


def peak_gib(plan: Plan) -> float:
    """Return the memory that a stage takes of a GPU; 0 where none is known."""
    memory = plan.memory if isinstance(plan, TextPlan) else None
    return memory["gib"]["peak"] if memory else 0.0


if __name__ == "__main__":
    sys.exit(main())
