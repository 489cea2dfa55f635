"""What it would cost to rent the GPUs of a machine of one's own, by conf/prices.yaml."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import yaml

from nanolit.machine.paths import conf_folder


@dataclass(frozen=True)
class Rent:
    what: str  # "1 × H200"
    dollars_per_hour: float
    date: str  # of the prices


def rent(cluster: Mapping[str, Any]) -> Rent | None:
    """Return the price of a local cluster's GPUs alone; None for a CPU, and where there is no price."""
    if cluster.get("kind") != "local":
        return None
    prices = yaml.safe_load((conf_folder() / "prices.yaml").read_text(encoding="utf-8"))
    words = {*re.split(r"[\s-]+", str(cluster.get("gpu")).upper())}  # "NVIDIA A100-SXM4-80GB" is an A100-80GB
    count = (cluster.get("devices") or 1) * (cluster.get("nodes") or 1)
    for name, price in prices["modal"].items():
        if {*name.split("-")} <= words:
            return Rent(f"{count} × {name}", count * price, prices["date"])
    return None
