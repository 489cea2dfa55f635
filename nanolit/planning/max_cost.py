"""What jobs take together, and a refusal above `max_cost`."""

from collections.abc import Mapping, Sequence

from nanolit.config.schema import Job
from nanolit.planning.derivation import Plan


def total(plans: Sequence[Plan]) -> tuple[float | None, float | None]:
    """Return hours and dollars of all stages; None where one of them is unknown, or nobody bills."""
    return (
        sum_of_known([plan.hours["total_hours"] for plan in plans]),
        sum_of_known([plan.cost and plan.cost["dollars"] for plan in plans]),
    )


def sum_of_known(parts: Sequence[float | None]) -> float | None:
    known = [part for part in parts if part is not None]
    return sum(known) if len(known) == len(parts) else None


def check_cost(planned: Sequence[tuple[Job, Mapping[str, Plan]]]) -> str | None:
    """Raise ValueError if the jobs together pass `max_cost`, or may; return a note where it is ignored."""
    job, plans = planned[0][0], [plan for _, plans in planned for plan in plans.values()]
    limit, cluster = job["max_cost"], job["cluster"]
    if limit is None:
        return None
    if all(plan.cost is None for plan in plans):
        return f"max_cost={limit:g} is ignored: nobody bills for cluster={cluster['name']} (conf/prices.yaml)"
    _, dollars = total(plans)
    what = f"{len(planned)} jobs" if len(planned) > 1 else job["run"]
    if dollars is None:
        raise ValueError(unknown_cost(job, next(plan for plan in plans if not known_dollars(plan))))
    if dollars > limit:
        raise ValueError(
            f"{what} would cost about ${dollars:,.2f} on cluster={cluster['name']}, above max_cost={limit:g};"
            " raise it, or choose less: python -m nanolit.plan cluster=all … compares clusters"
        )
    return None


def known_dollars(plan: Plan) -> bool:
    return plan.cost is not None and plan.cost["dollars"] is not None


def unknown_cost(job: Job, plan: Plan) -> str:
    """Return the error for a stage whose price or duration is not known."""
    missing, remedy = "duration", ""
    if plan.cost is None or plan.cost["dollars_per_hour"] is None:
        missing, remedy = "price", "add it to conf/prices.yaml, or "
    elif getattr(plan, "expected_steps", 1) is None:
        remedy = f"give stage.{plan.stage}.max_steps=N, or "
    return (
        f"max_cost={job['max_cost']:g} cannot be kept: the {missing} of {plan.stage} on "
        f"{job['cluster']['gpu']} is not known; {remedy}leave max_cost out to go on without a limit"
    )
