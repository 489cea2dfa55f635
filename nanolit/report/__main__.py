"""Write a run's report card with curves and the final table, or compare runs.

nanolit report run=demo            several: run=demo,d12-modern-s1
nanolit report compare run=A,B     runs side by side (compare --help)
"""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from nanolit.machine.arguments import Root, read, setting
from nanolit.machine.exit import command
from nanolit.machine.paths import write_atomically
from nanolit.report import card, compare, curves
from nanolit.report.folders import open_run

COMPARISON = """
Print runs side by side: the metrics of every stage, and the settings in which they differ.

    nanolit report compare run=A,B plot=curves.png
"""


@dataclass(frozen=True, kw_only=True)
class CardSettings(Root):
    """Whose report to write."""

    run: tuple[str, ...] = setting("the runs (nanolit runs lists them)", value="RUN")


@dataclass(frozen=True, kw_only=True)
class ComparisonSettings(Root):
    """The runs to compare, and the metric to draw."""

    run: tuple[str, ...] = setting("two runs or more (nanolit runs lists them)", value="A,B")
    plot: Path | None = setting("also draw one metric of all of them into this PNG", None, value="FILE")
    stage: Literal["base", "mid", "sft", "rl"] = setting("the stage to draw", "base")
    column: str = setting("the column of metrics.csv to draw", "val_bpb")


@command
def main(words: Sequence[str]) -> None:
    if words[:1] == ["compare"]:
        run_comparison(read(ComparisonSettings, words[1:], about=COMPARISON))
    else:
        run_card(read(CardSettings, words, about=__doc__))


def run_card(settings: CardSettings) -> None:
    root = settings.home
    for name in settings.run:
        path = card.write_report(root, name)
        print(card.final_table(root, name))
        print(path)


def run_comparison(settings: ComparisonSettings) -> None:
    root = settings.home
    print(compare.compare(root, list(settings.run)))
    if settings.plot is None:
        return
    runs = [open_run(root, name) for name in settings.run]
    write_atomically(settings.plot, curves.draw_comparison(runs, settings.stage, column=settings.column))
    print(settings.plot)


if __name__ == "__main__":
    sys.exit(main())
