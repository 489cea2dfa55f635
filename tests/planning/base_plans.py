"""The plan of base for what is typed."""

from nanolit.config.compose import compose
from nanolit.planning.plans import BasePlan, fresh_plan


def base_plan(*overrides: str) -> BasePlan:
    plan = fresh_plan(compose(list(overrides)), "base")
    assert isinstance(plan, BasePlan)
    return plan
