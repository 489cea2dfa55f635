"""`python -m nanolit.runs`: the runs there are, newest first, with the state of every stage."""

import sys
import time
from pathlib import Path

from nanolit.machine import arguments
from nanolit.machine.exit import leave
from nanolit.machine.paths import home, run_folder
from nanolit.report.folders import Run, find_runs
from nanolit.report.tables import MISSING, age, markdown_table, score

USAGE = """\
List the runs, newest first: their stages and states, the last validation bits per byte with the checksum of
the rows that it is of (only figures of the same rows compare), and how long ago they last wrote anything.

  python -m nanolit.runs root=FOLDER

  root=FOLDER    where runs live (default: NANOLIT_HOME, else ./runs)
"""


def main(words: list[str] | None = None) -> int:
    """Parse and print; returns the exit code: 2 with one line on stderr for a mistake of the user."""
    try:
        settings = arguments.parse(
            sys.argv[1:] if words is None else words,
            prog="python -m nanolit.runs",
            usage=USAGE,
            keys=("root",),
        )
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(list_runs(home(settings.get("root")), now=time.time()), end="")
    return 0


def list_runs(root: Path, *, now: float) -> str:
    """The table of runs, and below it one line per stage that failed; `now` in seconds since the epoch."""
    runs = find_runs(root)
    if not runs:
        return f"no runs in {run_folder(root, '')}; make one with python -m nanolit.train experiment=demo\n"
    rows, problems = [], []
    for run in runs:
        try:
            stages, bpb, rows_of = describe_stages(run), score(run.val_bpb), run.val_checksum or MISSING
            problems += errors(run)
        except ValueError as error:
            stages, bpb, rows_of = "unreadable", score(None), MISSING
            problems.append(f"{run.name}: {error}")
        rows.append([run.name, stages, bpb, rows_of, age(now - run.changed)])
    table = markdown_table(["Run", "Stages", "val_bpb", "of rows", "Age"], rows, num_left=2)
    return table + "".join(f"{line}\n" for line in problems)


def describe_stages(run: Run) -> str:
    """'base done, sft running: step 3 of 10': finished stages by name, the others with how far they are."""
    folders = {stage.name: stage for stage in run.stages}
    texts = []
    for name, state in run.states().items():
        stage = folders.get(name)
        where = ""
        if state != "done" and stage and stage.step is not None:
            where = f": step {stage.step:,}" + (f" of {stage.num_steps:,}" if stage.num_steps else "")
        texts.append(f"{name} {state}{where}")
    return ", ".join(texts)


def errors(run: Run) -> list[str]:
    """What went wrong in the stages that failed, a line each."""
    return [
        f"{run.name}/{stage.name}: {' '.join(str(stage.result.get('error')).split())}"
        for stage in run.stages
        if stage.status == "failed"
    ]


if __name__ == "__main__":
    leave(main)
