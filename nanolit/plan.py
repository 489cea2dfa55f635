"""Plan: `python -m nanolit.plan phase=base model=d26 cluster=modal_8xh100` says what training would do.

`cluster=all` compares the hours, dollars and memory of every cluster.
"""

import argparse
import json
import sys
from typing import Any

from nanolit.config.compose import compose, options
from nanolit.machine.exit import leave
from nanolit.planning.derivation import Plan
from nanolit.planning.plans import fresh_plans, show_plans
from nanolit.planning.prices import check_cost, total
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
            print_json(next(iter(plans.values())) if len(plans) == 1 else plans)
            check_cost([(job, list(plans.values()))])
        else:
            show_plans([compose(arguments.overrides)])
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
            check_cost([(job, list(plans.values()))])
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


def summary(plans: dict[str, Plan]) -> dict[str, Any]:
    """What a cluster takes for all stages: their sums, and the memory of the one that needs most."""
    stages = list(plans.values())
    hours, dollars = total(stages)
    trained = [plan for plan in stages if plan.get("memory")]
    most = max(trained, key=lambda plan: plan["memory"]["gib"]["peak"], default=stages[-1])
    where = stages[-1]["hours"]
    return {
        "gpus": "cpu" if where["gpu"] == "cpu" else f"{where['devices']} × {where['gpu']}",
        "hours": hours,
        "dollars": dollars,
        "billed": any(plan["cost"] for plan in stages),
        "micro_batch": most.get("micro_batch"),
        "memory": most.get("memory"),
        "stages": plans,
    }


if __name__ == "__main__":
    leave(main)
