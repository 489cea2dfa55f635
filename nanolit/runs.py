"""List runs, newest first, with the state of each stage and their different settings.

    nanolit runs root=FOLDER

val_bpb is base's, on held-out text (later stages are validated on their own conversations). A star marks runs
measured on other text than most. The last column has the settings typed for a run and not for the others.
"""

import shutil
import sys
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from nanolit.machine.arguments import Root, read
from nanolit.machine.exit import command
from nanolit.machine.paths import run_folder
from nanolit.machine.terminal import printable
from nanolit.report.folders import Run, find_runs
from nanolit.report.tables import age, markdown_table, score

# Where a run is, how it is watched, and what the other columns show
PLACES = ("run", "root", "phase", "stages", "cluster", "logger", "wait", "offline", "dry_run", "max_cost")
NARROWEST = 12  # characters of a column that is cut to fit


@command
def main(words: Sequence[str]) -> None:
    width = shutil.get_terminal_size().columns if sys.stdout.isatty() else None
    print(printable(list_runs(read(Root, words, about=__doc__).home, now=time.time(), width=width)), end="")


def list_runs(root: Path, *, now: float, width: int | None = None) -> str:
    """Return the table of runs, at most `width` wide, and notes; `now` is in seconds since the epoch."""
    runs = find_runs(root)
    if not runs:
        return f"no runs in {run_folder(root, '')}; make one with python -m nanolit.train experiment=demo\n"
    rows, notes, typed = [], [], [words_of(run) for run in runs]
    common = set.intersection(*map(set, typed)) if len(runs) > 1 else set()
    usual = Counter(filter(None, map(checksum_of, runs))).most_common(1)
    for run, words in zip(runs, typed, strict=True):
        try:
            stages, bpb, checksum = describe_stages(run), score(run.val_bpb), checksum_of(run)
            bpb += " *" if checksum and checksum != usual[0][0] else ""
            notes += errors(run)
        except ValueError as error:
            stages, bpb = "unreadable", score(None)
            notes.append(f"{run.name}: {error}")
        differs = " ".join(word for word in words if word not in common)
        rows.append([run.name, age(now - run.changed), bpb, stages, differs])
    if any(row[2].endswith("*") for row in rows):
        notes.append("* measured on other held-out text than most: don't compare these values")
    header = ["Run", "Age", "val_bpb", "Stages", "Differs in"]
    table = markdown_table(header, fitted(header, rows, width), num_left=5, widest=None)
    return table + "".join(f"{line}\n" for line in notes)


def words_of(run: Run) -> list[str]:
    """Return the words typed for a run that may decide its result; [] where they are not known."""
    try:
        words = [str(word) for word in run.job.get("overrides") or []]
    except ValueError:
        return []
    if any(word.startswith("data.path=") for word in words):
        words = [word for word in words if word != "data=local"]
    return [word for word in words if word.lstrip("+").partition("=")[0] not in PLACES]


def checksum_of(run: Run) -> str | None:
    try:
        return run.val_checksum
    except ValueError:  # said of the run itself
        return None


def fitted(header: Sequence[str], rows: list[list[str]], width: int | None) -> list[list[str]]:
    """Cut the last two columns so that a table is at most `width` wide; the others stay whole."""
    if width is None:
        return rows
    widths = [max(len(row[column]) for row in (header, *rows)) for column in range(len(header))]
    room = width - sum(widths[:-2]) - 3 * len(header) - 1
    last = max(NARROWEST, min(widths[-1], room - min(widths[-2], room // 2)))
    most = [max(NARROWEST, room - last), last]
    return [[*row[:-2], *map(shortened, row[-2:], most)] for row in rows]


def shortened(text: str, most: int) -> str:
    return text if len(text) <= most else f"{text[: most - 1]}…"


def describe_stages(run: Run) -> str:
    """Return 'tokenizer, base done, sft running 3/10, rl waiting'."""
    folders = {stage.name: stage for stage in run.stages}
    groups: dict[str, list[str]] = {}  # names by state, those of one state together
    for name, state in run.states().items():
        stage = folders.get(name)
        where = ""
        if state not in ("done", "waiting") and stage and stage.step is not None:
            where = f" {stage.step:,}" + (f"/{stage.num_steps:,}" if stage.num_steps else "")
        groups.setdefault(f"{state}{where}", []).append(name)
    return ", ".join(f"{', '.join(names)} {state}" for state, names in groups.items())


def errors(run: Run) -> list[str]:
    """Return the errors of the stages that failed, a line each."""
    return [
        f"{run.name}/{stage.name}: {' '.join(str(stage.result.get('error')).split())}"
        for stage in run.stages
        if stage.status == "failed"
    ]


if __name__ == "__main__":
    sys.exit(main())
