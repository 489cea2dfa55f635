"""`python -m nanolit.report run=RUN`: write the report card; `… compare run=A,B`: runs side by side."""

import sys
from pathlib import Path

from nanolit.config.schema import MODEL_STAGES
from nanolit.machine import arguments
from nanolit.machine.exit import leave
from nanolit.machine.paths import home, write_atomically
from nanolit.report import card, compare, curves
from nanolit.report.folders import open_run

PROG = "python -m nanolit.report"
CARD_USAGE = """\
Write a run's report card, report.md with curves and the final table.

  python -m nanolit.report run=demo            several: run=demo,d12-modern-s1
  python -m nanolit.report compare run=A,B     print runs side by side (compare --help)

  run=RUN        a run below root (python -m nanolit.runs lists them)
  root=FOLDER    where runs live (default: NANOLIT_HOME, else ./runs)
"""
COMPARE_USAGE = """\
Print several runs side by side: the metrics of every stage, and the settings in which they differ.

  python -m nanolit.report compare run=A,B plot=curves.png

  run=A,B,…      two runs or more below root
  root=FOLDER    where runs live (default: NANOLIT_HOME, else ./runs)
  plot=FILE      also draw one metric of all of them into this PNG file
  stage=base     the stage to draw: base, mid, sft or rl
  column=val_bpb the column of metrics.csv to draw
"""


def main(words: list[str] | None = None) -> int:
    """Parse, write or print; returns the exit code: 2 with one line on stderr for a mistake of the user."""
    words = sys.argv[1:] if words is None else words
    try:
        if words[:1] == ["compare"]:
            run_comparison(words[1:])
        else:
            run_card(words)
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def run_card(words: list[str]) -> None:
    settings = arguments.parse(words, prog=PROG, usage=CARD_USAGE, keys=("run", "root"))
    root = home(settings.get("root"))
    for name in _runs(settings):
        path = card.write_report(root, name)
        print(card.final_table(root, name))
        print(path)


def run_comparison(words: list[str]) -> None:
    keys = ("run", "root", "plot", "stage", "column")
    settings = arguments.parse(words, prog=f"{PROG} compare", usage=COMPARE_USAGE, keys=keys)
    root, names = home(settings.get("root")), _runs(settings)
    if (stage := settings.get("stage", "base")) not in MODEL_STAGES:
        raise ValueError(f"stage={stage} has no curves; allowed: {', '.join(MODEL_STAGES)}")
    print(compare.compare(root, names))
    if "plot" not in settings:
        return
    runs = [open_run(root, name) for name in names]
    path = Path(settings["plot"])
    write_atomically(path, curves.draw_comparison(runs, stage, column=settings.get("column", "val_bpb")))
    print(path)


def _runs(settings: dict[str, str]) -> list[str]:
    if "run" not in settings:
        raise ValueError("say which run: run=RUN (python -m nanolit.runs lists them)")
    return arguments.names(settings["run"])


if __name__ == "__main__":
    leave(main)
