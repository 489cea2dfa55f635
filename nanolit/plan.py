"""Plan a job: parameters, tokens, FLOPs, hours, dollars, memory; it never launches.

    nanolit plan phase=base model=d26 cluster=modal_8xh100
    nanolit plan phase=base model=d26 cluster=all           hours, dollars and memory on every cluster

Takes the settings of nanolit train.
"""

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from nanolit.config.compose import compose, options
from nanolit.machine.arguments import read_some, setting
from nanolit.machine.exit import command
from nanolit.planning.derivation import Plan
from nanolit.planning.plans import fresh_plans, show_plans
from nanolit.planning.prices import check_cost, total
from nanolit.planning.show import clusters_table

ALL = "cluster=all"


@dataclass(frozen=True)
class Settings:
    """How the plan is printed."""

    json: bool = setting(
        "--json: print what plan.json holds; several stages by name, with cluster=all by cluster", False
    )


@command
def main(words: Sequence[str]) -> None:
    settings, overrides = read_some(Settings, words, about=__doc__)
    if ALL in overrides:
        show_clusters(overrides, as_json=settings.json)
    elif settings.json:
        job = compose(overrides)
        plans = fresh_plans(job)
        print_json(next(iter(plans.values())) if len(plans) == 1 else plans)
        check_cost([(job, list(plans.values()))])
    else:
        show_plans([compose(overrides)])


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
    sys.exit(main())
