"""Ask before what takes long or costs much: once, and only where a person is at a terminal."""

import sys
from collections.abc import Sequence

from nanolit.config.schema import Job
from nanolit.machine.paths import run_folder
from nanolit.machine.terminal import at_terminal, say
from nanolit.planning.plans import Plans, total
from nanolit.planning.show import amount, money

ASK_HOURS = 24.0  # on this machine
ASK_DOLLARS = 25.0  # by the plan, unless max_cost states how many are all right
DEMO = "python -m nanolit.train experiment=demo"


def confirm(planned: Sequence[tuple[Job, Plans]]) -> None:
    """Say when the jobs' plans take more than a day here or ASK_DOLLARS; SystemExit if a person says no.

    With yes=true, elsewhere than at a terminal, and for runs that have begun, nobody is asked.
    """
    new = [(job, plans) for job, plans in planned if not begun(job)]
    remark = warning(new) if new else ""
    if not remark:
        return
    if new[0][0]["yes"] or not (sys.stdin.isatty() and at_terminal()):
        say(remark)
        return
    try:
        answer = input(f"{remark}\nBegin? [y/N] ")
    except EOFError:
        answer = ""
    if answer.strip().lower() not in ("y", "yes"):
        raise SystemExit("Nothing was begun. The same command with yes=true does not ask.")


def warning(planned: Sequence[tuple[Job, Plans]]) -> str:
    """Return what is long or dear about the jobs together, "" where neither is."""
    job = planned[0][0]
    hours, dollars = total([plan for _, plans in planned for plan in plans.values()])
    what = f"{len(planned)} jobs take" if len(planned) > 1 else f"{job['run']} takes"
    if job["cluster"]["kind"] == "local" and hours and hours > ASK_HOURS:
        demo = f"; for a tiny model in minutes: {DEMO}" if job["cluster"]["gpu"] == "cpu" else ""
        return f"{what} about {amount(hours)} on this machine{demo}"
    if dollars and dollars > ASK_DOLLARS and job["max_cost"] is None:
        return f"{what} about {money(dollars)} on cluster={job['cluster']['name']}"
    return ""


def begun(job: Job) -> bool:
    """Return True if the run has trained here before, or was submitted from here: it was asked about then."""
    folder = run_folder(job["root"], job["run"])
    return any(folder.glob("*/plan.json")) or (folder / "submission.json").exists()
