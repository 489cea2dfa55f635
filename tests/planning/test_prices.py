"""What a stage costs, by conf/prices.yaml."""

import datetime

import pytest
import yaml

from nanolit.config.compose import compose, options
from nanolit.machine.paths import conf_folder
from nanolit.planning.derivation import Plan
from nanolit.planning.plans import fresh_plans

PRICES = yaml.safe_load((conf_folder() / "prices.yaml").read_text())


def plans_of(*overrides: str) -> list[Plan]:
    return list(fresh_plans(compose(list(overrides))).values())


def test_prices_have_a_date_and_every_modal_cluster_has_one():
    assert datetime.date.fromisoformat(PRICES["date"]) >= datetime.date(2026, 6, 1)
    for name in options("cluster"):
        if name.startswith("modal"):
            (plan,) = plans_of(f"cluster={name}")
            assert plan.cost["dollars"] > 0


def test_an_hour_is_its_gpus_cores_and_memory():
    """Oracle: Modal's prices of mid-2026 by hand: an H100 3.95, a core 0.0472, a GiB 0.008 an hour."""
    (plan,) = plans_of("model=d26", "cluster=modal_8xh100")
    assert plan.cost["dollars_per_hour"] == pytest.approx(8 * 3.95 + 32 * 0.0472 + 256 * 0.008)
    assert plan.cost["dollars"] == pytest.approx(plan.cost["dollars_per_hour"] * plan.hours["total_hours"])
    (twice,) = plans_of("model=d26", "cluster=modal_2x8xh100")
    assert twice.cost["dollars_per_hour"] == 2 * plan.cost["dollars_per_hour"]


def test_the_tokenizer_is_paid_without_gpus():
    tokenizer, base = plans_of("stages=[tokenizer,base]", "cluster=modal_8xh100")
    assert tokenizer.cost["dollars_per_hour"] < base.cost["dollars_per_hour"] / 8
