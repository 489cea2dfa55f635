"""The facts at the top of a card: how large, how long, for how much, on what."""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import yaml

from nanolit.machine.paths import CONF
from nanolit.machine.terminal import duration
from nanolit.planning.plans import TrainingPlan
from nanolit.report.folders import Run, as_number
from nanolit.report.sections import Block, Table, Text
from nanolit.report.tables import MISSING


def facts_of(run: Run) -> list[tuple[str, str]]:
    """Return the facts a reader asks for first, as (label, value), without unknown ones."""
    base = next((stage.plan for stage in run.stages if isinstance(stage.plan, TrainingPlan)), None)
    training, wall = _totals(run)
    tokens = _sum(stage.number("tokens") for stage in run.stages if stage.name != "tokenizer")
    facts = [
        ("Parameters", _short(base.num_parameters) if base and base.num_parameters else MISSING),
        ("Tokens trained on", _short(tokens) if tokens else MISSING),
        ("Training", spoken(training)),
        ("Wall clock", spoken(wall)),
        _cost(run),
        ("Hardware", _hardware(run)),
    ]
    return [(label, value) for label, value in facts if value != MISSING]


def _short(value: float) -> str:
    """Return 1441792 as '1.4 million'."""
    for size, word in ((1e12, "trillion"), (1e9, "billion"), (1e6, "million")):
        if value >= size:
            return f"{value / size:.3g} {word}"
    return f"{value:,.0f}"


def _hardware(run: Run) -> str:
    cluster = run.job.get("cluster") or {}
    gpu, count = cluster.get("gpu"), (cluster.get("devices") or 1) * (cluster.get("nodes") or 1)
    if not gpu:
        return MISSING
    return "CPU" if gpu == "cpu" else f"{count} × {gpu}"


def _cost(run: Run) -> tuple[str, str]:
    """Return a label and what the wall clock cost at the plan's prices, or would cost to rent."""
    if any(stage.plan and stage.plan.cost for stage in run.stages):
        return "Cost", _dollars(run)
    cluster = run.job.get("cluster") or {}
    _, wall = _totals(run)
    if (price := rent(cluster)) and wall is not None:
        return "Cost if rented", f"${wall / 3600 * price.dollars_per_hour:,.2f}"
    return "Cost", "own machine" if cluster.get("kind") == "local" else MISSING


def _dollars(run: Run) -> str:
    """Return the sum of every stage's wall clock at its own price."""
    dollars = []
    for stage in run.stages:
        if stage.plan:
            seconds, rate = stage.number("wall_seconds"), (stage.plan.cost or {}).get("dollars_per_hour")
            dollars.append(None if seconds is None or rate is None else seconds / 3600 * rate)
    total = _sum(dollars)
    return MISSING if total is None else f"${total:,.2f}"


def _totals(run: Run) -> tuple[float | None, float | None]:
    """Return the run's training time and wall clock; a tokenizer that is done has no training time."""
    training = [
        as_number(stage.result.get("seconds", 0.0 if stage.name == "tokenizer" and stage.result else None))
        for stage in run.stages
    ]
    return _sum(training), _sum(stage.number("wall_seconds") for stage in run.stages)


def spoken(seconds: float | None) -> str:
    """Return 346 as '5 min 46 s', 13860 as '3 h 51 min'."""
    if seconds is None or seconds < 60:
        return MISSING if seconds is None else f"{seconds:.0f} s"
    parts = duration(seconds).split(":")
    return f"{parts[0]} h {int(parts[1])} min" if len(parts) == 3 else f"{parts[0]} min {int(parts[1])} s"


def _time(seconds: float | None) -> str:
    return MISSING if seconds is None else duration(seconds)


def times_of(run: Run) -> list[Block]:
    """Return each stage's steps, tokens and time, and their sums."""
    rows = []
    for stage in run.stages:
        counts = [MISSING if n is None else f"{n:,.0f}" for n in (stage.step, stage.number("tokens"))]
        cells = [*counts, *(_time(stage.number(key)) for key in ("seconds", "wall_seconds"))]
        rows.append([stage.name.upper(), *cells])
    rows.append(["total", "", "", *map(_time, _totals(run))])
    said = "Training time excludes evaluation, samples and checkpoints; wall clock includes them."
    if priced := next((stage.plan.cost for stage in run.stages if stage.plan and stage.plan.cost), None):
        said += f" The cost is for the wall-clock time, at prices of {priced['prices']}."
    elif price := rent(run.job.get("cluster") or {}):
        said += (
            f" Renting {price.what} costs ${price.dollars_per_hour:,.2f} per hour (prices of {price.date})."
        )
    return [Table(["Stage", "Steps", "Tokens", "Training", "Wall clock"], rows), Text(said)]


def _sum(values: Iterable[float | None]) -> float | None:
    """Return the sum; None when one of them is unknown."""
    known = list(values)
    return None if None in known else sum(value for value in known if value is not None)


@dataclass(frozen=True)
class Rent:
    what: str  # "1 × H200"
    dollars_per_hour: float
    date: str  # of the prices


def rent(cluster: Mapping[str, Any]) -> Rent | None:
    """Return the price of a local cluster's GPUs alone; None for a CPU, and where there is no price."""
    if cluster.get("kind") != "local":
        return None
    prices = yaml.safe_load((CONF / "prices.yaml").read_text(encoding="utf-8"))
    words = {*re.split(r"[\s-]+", str(cluster.get("gpu")).upper())}  # "NVIDIA A100-SXM4-80GB" is an A100-80GB
    count = (cluster.get("devices") or 1) * (cluster.get("nodes") or 1)
    for name, price in prices["modal"].items():
        if {*name.split("-")} <= words:
            return Rent(f"{count} × {name}", count * price, prices["date"])
    return None
