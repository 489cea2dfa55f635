"""Plan: `python -m nanolit.plan phase=base model=d26 cluster=modal_8xh100` says what training would do.

`cluster=all` compares the hours, dollars and memory of every cluster.
"""

import argparse
import json
import sys
from typing import Any

from nanolit.config.compose import compose, options
from nanolit.machine.exit import leave
from nanolit.planning.derivation import BasePlan, FinetunePlan, Plan, as_json
from nanolit.planning.max_cost import check_cost, total
from nanolit.planning.plans import Plans, fresh_plans, plan_jobs, show_plans
from nanolit.planning.show import clusters_table

ALL = "cluster=all"


def main() -> int:
    """Print the plan of every stage of the job; 2 for input that was refused."""
    parser = argparse.ArgumentParser(prog="python -m nanolit.plan", description=__doc__)
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="as for python -m nanolit.train")
    parser.add_argument(
        "--json",
        action="store_true",
        help="what plan.json holds; several stages by name, with cluster=all by cluster",
    )
    arguments = parser.parse_args()
    try:
        if ALL in arguments.overrides:
            show_clusters(arguments.overrides, as_json=arguments.json)
        elif arguments.json:
            job = compose(arguments.overrides)
            plans = fresh_plans(job)
            by_stage = {stage: as_json(plan) for stage, plan in plans.items()}
            print_json(next(iter(by_stage.values())) if len(plans) == 1 else by_stage)
            check_cost([(job, plans)])
        else:
            show_plans(plan_jobs([compose(arguments.overrides)]))
    except ValueError as error:
        print(error, file=sys.stderr)
        return 2
    return 0


def print_json(content: Any) -> None:
    print(json.dumps(content, indent=2, ensure_ascii=False))


def show_clusters(overrides: list[str], *, as_json: bool) -> None:
    """The same job on every cluster; ValueError where it can be planned on none."""
    found: dict[str, dict[str, Any]] = {}
    errors = []
    for name in options("cluster"):
        try:
            job = compose([f"cluster={name}" if one == ALL else one for one in overrides])
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


def summary(plans: Plans) -> dict[str, Any]:
    """What a cluster takes for all stages: their sums, and the memory of the one that needs most."""
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
    """The memory that a stage takes of a GPU; 0 where none is known."""
    memory = plan.memory if isinstance(plan, BasePlan | FinetunePlan) else None
    return memory["gib"]["peak"] if memory else 0.0


if __name__ == "__main__":
    leave(main)
