"""What a stage costs, by conf/prices.yaml."""

from typing import TypedDict

import yaml

from nanolit.config.schema import Cluster
from nanolit.machine.paths import conf_folder
from nanolit.planning.hours import Hours


class Cost(TypedDict):
    """Dollars of a stage and an hour of it, None where unknown, and the date of the prices."""

    dollars: float | None
    dollars_per_hour: float | None
    prices: str


def cost(stage: str, hours: Hours, cluster: Cluster) -> Cost | None:
    """Return what that many hours of the cluster cost; None where nobody bills.

    The tokenizer is trained without GPUs.
    """
    prices = yaml.safe_load((conf_folder() / "prices.yaml").read_text(encoding="utf-8"))
    if cluster["kind"] not in prices:
        return None
    known = prices[cluster["kind"]]
    gpus = 0 if stage == "tokenizer" else cluster["devices"]
    per_hour = None
    if gpus == 0 or cluster["gpu"] in known:
        gpu = known[cluster["gpu"]] if gpus else 0
        host = known["core"] * cluster.get("cpu", 0) + known["gib"] * cluster.get("memory", 0) / 1024
        per_hour = cluster["nodes"] * (gpus * gpu + host)
    total = hours["total_hours"]
    dollars = None if per_hour is None or total is None else per_hour * total
    return {"dollars": dollars, "dollars_per_hour": per_hour, "prices": prices["date"]}
