"""Jobs before anything of them begins: the plan of the only stage, or a row for each job or stage."""

import heapq
from collections.abc import Sequence
from typing import cast

from nanolit.config.schema import Job
from nanolit.machine.terminal import say
from nanolit.planning.plans import Plans, TokenizerPlan, notes, total
from nanolit.planning.show import fitting_text, money, show_plans, steps_text
from nanolit.planning.sizes import BatchPlan
from nanolit.report.tables import markdown_table


def show_jobs(planned: Sequence[tuple[Job, Plans]], *, at_a_time: int | None = None) -> None:
    """Print what fits on a screen; ValueError where all together pass max_cost."""
    if len(planned) == 1 and len(planned[0][1]) == 1:
        show_plans(planned)
        return
    say(f"{plans_table(planned)}{sum_line(planned, at_a_time=at_a_time)}")
    say("python -m nanolit.plan … shows all of a stage's plan")
    for note in notes(planned):
        say(note)


def plans_table(planned: Sequence[tuple[Job, Plans]]) -> str:
    """Return a row for each job, or for each stage of the only one."""
    rows = []
    for job, plans in planned:
        groups = [[plan] for plan in plans.values()] if len(planned) == 1 else [[*plans.values()]]
        for group in groups:
            hours, dollars = total(group)
            name = f"{job['run']} · {group[0].stage}" if len(planned) == 1 else job["run"]
            steps = " + ".join(steps_text(plan) for plan in group if not isinstance(plan, TokenizerPlan))
            peaks = [plan.memory for plan in group if isinstance(plan, BatchPlan) and plan.memory]
            memory = max(peaks, key=lambda one: one["gib"]["peak"], default=None)
            time = "unknown" if hours is None else f"{hours:,.2f}"
            cost = money(dollars) if any(plan.cost for plan in group) else "–"
            rows.append([name, steps, fitting_text(memory), time, cost])
    return markdown_table(["Run", "Steps", "Memory of a GPU", "Hours", "Cost"], rows, num_left=3)


def sum_line(planned: Sequence[tuple[Job, Plans]], *, at_a_time: int | None) -> str:
    """Return all jobs together, and how long they take when the next begins as one ends."""
    totals = [total([*plans.values()]) for _, plans in planned]
    hours, dollars = [time for time, _ in totals], [price for _, price in totals]
    text = f"{len(planned)} jobs" if len(planned) > 1 else f"{len(planned[0][1])} stages"
    if len(planned) > 1 and at_a_time:
        text += f", at most {at_a_time} at a time"
    if None not in hours:
        text += f": {sum(cast(list[float], hours)):,.1f} hours"
    if None not in hours and len(planned) > 1 and at_a_time:
        ends = [0.0] * at_a_time
        for time in cast(list[float], hours):
            heapq.heapreplace(ends, ends[0] + time)
        text += f", done after {max(ends):,.1f}"
    if any(plan.cost for _, plans in planned for plan in plans.values()):
        text += f"; {money(None if None in dollars else sum(cast(list[float], dollars)))} in all"
    return text
