"""Write a run's report card with curves and the final table, or compare runs.

nanolit report demo                    writes report.md and report.html, with pictures, to the run's folder
nanolit report demo d12-modern-s1      one report each
nanolit report compare=A,B,C           side by side, with the differences from A that exceed noise
nanolit report compare=A,B plot=curves.png column=loss
"""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from nanolit.machine.arguments import Root, read, setting
from nanolit.machine.exit import command
from nanolit.machine.paths import write_atomically
from nanolit.machine.terminal import printable
from nanolit.report import card, compare, curves
from nanolit.report.folders import open_run


@dataclass(frozen=True, kw_only=True)
class Settings(Root):
    """Whose report to write, or which runs to compare."""

    run: tuple[str, ...] | None = setting(
        "the runs (nanolit runs lists them)", None, value="RUN", positional=True
    )
    compare: tuple[str, ...] | None = setting(
        "instead of run: two or more runs; runs that differ only in the seed count as one", None, value="A,B"
    )
    plot: Path | None = setting(
        "with compare: plot one metric of all runs to this PNG file", None, value="FILE"
    )
    stage: Literal["base", "mid", "sft", "rl"] = setting("with plot: which stage", "base")
    column: str = setting("with plot: which column of metrics.csv", "val_bpb")


@command
def main(words: Sequence[str]) -> None:
    settings = read(Settings, words, about=__doc__)
    if (settings.run is None) == (settings.compare is None):
        raise ValueError("run is missing; give either run=RUN for a report, or compare=A,B")
    if settings.run:
        if settings.plot:
            raise ValueError("plot= needs compare=A,B; a report always has its curves")
        for name in settings.run:
            print(printable(card.final_table(settings.home, name)))
            path = card.write_report(settings.home, name)
            print(printable(f"{path.with_suffix('.html')}\n{path}"))
    else:
        run_comparison(settings, settings.compare or ())


def run_comparison(settings: Settings, names: Sequence[str]) -> None:
    print(printable(compare.compare(settings.home, names)))
    if settings.plot is None:
        return
    runs = [open_run(settings.home, name) for name in names]
    write_atomically(settings.plot, curves.draw_comparison(runs, settings.stage, column=settings.column))
    print(settings.plot)


if __name__ == "__main__":
    sys.exit(main())
