"""List the runs, newest first, with the state of every stage.

    nanolit runs root=FOLDER

Beside it the last validation bits per byte, with the checksum of the rows they were measured on (only figures
of the same rows compare), and how long ago the run last wrote anything.
"""

import sys
import time
from collections.abc import Sequence
from pathlib import Path

from nanolit.machine.arguments import Root, read
from nanolit.machine.exit import command
from nanolit.machine.paths import run_folder
from nanolit.report.folders import Run, find_runs
from nanolit.report.tables import MISSING, age, markdown_table, score


@command
def main(words: Sequence[str]) -> None:
    print(list_runs(read(Root, words, about=__doc__).home, now=time.time()), end="")


def list_runs(root: Path, *, now: float) -> str:
    """Return the table of runs and a line per failed stage; `now` is in seconds since the epoch."""
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
    table = markdown_table(["Run", "Stages", "val_bpb", "of rows", "Age"], rows, num_left=2, widest=None)
    return table + "".join(f"{line}\n" for line in problems)


def describe_stages(run: Run) -> str:
    """Return 'tokenizer, base done, sft running: step 3 of 10': the finished stages first."""
    folders = {stage.name: stage for stage in run.stages}
    texts, done = [], []
    for name, state in run.states().items():
        stage = folders.get(name)
        where = ""
        if state == "done":
            done.append(name)
            continue
        if stage and stage.step is not None:
            where = f": step {stage.step:,}" + (f" of {stage.num_steps:,}" if stage.num_steps else "")
        texts.append(f"{name} {state}{where}")
    return ", ".join([*([f"{', '.join(done)} done"] if done else []), *texts])


def errors(run: Run) -> list[str]:
    """Return the errors of the stages that failed, a line each."""
    return [
        f"{run.name}/{stage.name}: {' '.join(str(stage.result.get('error')).split())}"
        for stage in run.stages
        if stage.status == "failed"
    ]


if __name__ == "__main__":
    sys.exit(main())
