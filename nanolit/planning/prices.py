"""What a plan costs, by conf/prices.yaml: dollars for each stage, and a refusal above `max_cost`."""

from collections.abc import Sequence
from typing import Any

import yaml

from nanolit.config.schema import Cluster, Job
from nanolit.machine.paths import conf_folder
from nanolit.planning.derivation import Plan


def cost(plan: Plan, cluster: Cluster) -> dict[str, Any] | None:
    """Dollars of a stage and an hour of it, and the date of the prices; None where nobody bills.

    The tokenizer is trained without GPUs. `dollars` is None where the price or the hours are unknown.
    """
    prices = yaml.safe_load((conf_folder() / "prices.yaml").read_text(encoding="utf-8"))
    if cluster["kind"] not in prices:
        return None
    known = prices[cluster["kind"]]
    gpus = 0 if plan["stage"] == "tokenizer" else cluster["devices"]
    per_hour = None
    if gpus == 0 or cluster["gpu"] in known:
        gpu = known[cluster["gpu"]] if gpus else 0
        host = known["core"] * cluster.get("cpu", 0) + known["gib"] * cluster.get("memory", 0) / 1024
        per_hour = cluster["nodes"] * (gpus * gpu + host)
    hours = plan["hours"]["total_hours"]
    dollars = None if per_hour is None or hours is None else per_hour * hours
    return {"dollars": dollars, "dollars_per_hour": per_hour, "prices": prices["date"]}


def total(plans: Sequence[Plan]) -> tuple[float | None, float | None]:
    """Hours and dollars of all stages together; None where one of them is unknown, or nobody bills."""
    hours = [plan["hours"]["total_hours"] for plan in plans]
    dollars = [plan["cost"] and plan["cost"]["dollars"] for plan in plans]
    return tuple(None if None in parts else sum(parts) for parts in (hours, dollars))  # type: ignore[return-value]


def check_cost(planned: Sequence[tuple[Job, Sequence[Plan]]]) -> str | None:
    """ValueError where the jobs together pass `max_cost`, or may; a note to print where it is ignored."""
    job, plans = planned[0][0], [plan for _, plans in planned for plan in plans]
    limit, cluster = job["max_cost"], job["cluster"]
    if limit is None:
        return None
    if all(plan["cost"] is None for plan in plans):
        return f"max_cost={limit:g} is ignored: nobody bills for cluster={cluster['name']} (conf/prices.yaml)"
    _, dollars = total(plans)
    what = f"{len(planned)} jobs" if len(planned) > 1 else job["run"]
    if dollars is None:
        unknown = next(plan for plan in plans if plan["cost"]["dollars"] is None)
        stage, missing, remedy = unknown["stage"], "duration", ""
        if unknown["cost"]["dollars_per_hour"] is None:
            missing, remedy = "price", "add it to conf/prices.yaml, or "
        elif unknown.get("expected_steps", 1) is None:
            remedy = f"give stage.{stage}.max_steps=N, or "
        raise ValueError(
            f"max_cost={limit:g} cannot be kept: the {missing} of {stage} on {cluster['gpu']} is not known; "
            f"{remedy}leave max_cost out to go on without a limit"
        )
    if dollars > limit:
        raise ValueError(
            f"{what} would cost about ${dollars:,.2f} on cluster={cluster['name']}, above max_cost={limit:g};"
            " raise it, or choose less: python -m nanolit.plan cluster=all … compares clusters"
        )
    return None
