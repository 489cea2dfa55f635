"""Curves of metrics.csv as PNG files: one message per picture, said in its title.

matplotlib is imported inside functions and drawn on its off-screen canvas (Agg): no display, no global state.
"""

import io
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from nanolit.machine.paths import write_atomically
from nanolit.report.folders import Run, Stage

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Series = Sequence[tuple[float, float]]
COLORS = ("#1f5fa8", "#d1495b", "#2e8b57", "#8a5fbf", "#c77d0a", "#4a4a4a")
SMOOTHED_FROM = 40  # points; fewer are drawn as they are
DECAY = 0.9  # of the smoothed line where there are 200 points and more, as in nanochat's logs


@dataclass(frozen=True)
class Plot:
    """One picture: the columns that it draws (those that exist) and what their values are."""

    name: str
    columns: tuple[str, ...]
    title: str
    unit: str


PLOTS = (
    Plot("loss", ("loss", "val_loss"), "loss", "loss (nats per learned token)"),
    Plot("val_bpb", ("val_bpb",), "validation", "bits per byte, lower is better"),
    Plot("reward", ("reward",), "mean reward", "reward, higher is better"),
    Plot("sequence_length", ("sequence_length",), "reply length", "tokens"),
)
LABELS = {"loss": "training", "val_loss": "validation"}


def plots_of(stage: Stage) -> list[Plot]:
    """Return the pictures that the stage's metrics give: known columns with at least two points."""
    passes = tuple(name for name in stage.columns if name.startswith(("pass_at_", "pass@")))
    candidates = [*PLOTS, Plot("pass_at_k", passes, "pass@k", "share of problems solved")]
    return [plot for plot in candidates if any(len(stage.series(name)) > 1 for name in plot.columns)]


def write_curves(run: Run, stage: Stage) -> list[Path]:
    """Draw every picture of the stage into its folder; returns their paths."""
    paths = []
    for plot in plots_of(stage):
        path = stage.folder / f"{plot.name}.png"
        write_atomically(path, draw_stage(plot, run, stage))
        paths.append(path)
    return paths


def draw_stage(plot: Plot, run: Run, stage: Stage) -> bytes:
    """Draw a PNG of the plot's columns over the optimizer steps; the title tells first and last value."""
    lines = {name: series for name in plot.columns if (series := stage.series(name))}
    main, series = next(iter(lines.items()))
    figure, axes = _canvas()
    for color, (name, points) in zip(COLORS * len(lines), lines.items(), strict=False):
        _draw_line(axes, points, color=color, label=LABELS.get(name, name), evaluated=name != "loss")
    if len(lines) > 1:
        axes.legend(frameon=False)
    which = f"{plot.title} ({LABELS.get(main, main)})" if len(lines) > 1 else plot.title
    unit = "policy-gradient loss" if stage.name == "rl" and main == "loss" else plot.unit
    _label(axes, f"{run.name} · {stage.name}: {which} {_journey(series)}", unit)
    return _png(figure)


def draw_comparison(runs: Sequence[Run], stage: str, *, column: str = "val_bpb") -> bytes:
    """Draw a PNG with one column of several runs over the tokens seen (steps where tokens were not logged).

    ValueError when no run has logged the column in that stage.
    """
    drawn = {run.name: folder for run in runs for folder in run.stages if folder.name == stage}
    drawn = {name: folder for name, folder in drawn.items() if folder.series(column)}
    if not drawn:
        names = ", ".join(run.name for run in runs)
        logged = sorted({name for run in runs for folder in run.stages for name in folder.columns} - {"step"})
        raise ValueError(
            f"column={column} stage={stage}: none of {names} has logged that; "
            f"the columns there are: {', '.join(logged) or 'none'}"
        )
    checksums = {stage.val_rows["checksum"] for stage in drawn.values() if stage.val_rows}
    if column == "val_bpb" and len(checksums) > 1:
        raise ValueError(
            f"column=val_bpb stage={stage}: {', '.join(drawn)} were evaluated on different validation rows "
            f"({', '.join(sorted(checksums))}); draw runs of the same rows, or column=loss"
        )
    by_tokens = all("tokens" in folder.columns for folder in drawn.values())
    figure, axes = _canvas()
    for color, (name, folder) in zip(COLORS * len(drawn), drawn.items(), strict=False):
        points = _over_tokens(folder, column) if by_tokens else folder.series(column)
        _draw_line(
            axes, points, color=color, label=f"{name}: {points[-1][1]:.4g}", evaluated=column != "loss"
        )
    axes.legend(frameon=False)
    _label(axes, f"{stage}: {column} of {len(drawn)} runs", column, x="tokens" if by_tokens else "step")
    return _png(figure)


def smoothed(values: Sequence[float]) -> list[float]:
    """Return the exponential moving average, unbiased from the first value on; gaps (NaN) keep the average.

    It looks back over a twentieth of the values at most: a longer memory visibly lags behind a short curve.
    """
    decay = min(DECAY, max(0.0, 1 - 20 / max(len(values), 1)))
    average, weight, result = 0.0, 0.0, []
    for value in values:
        if math.isfinite(value):
            average = decay * average + (1 - decay) * value
            weight = decay * weight + 1 - decay
        result.append(average / weight if weight else math.nan)
    return result


def _over_tokens(stage: Stage, column: str) -> list[tuple[float, float]]:
    """Return (tokens, value) pairs: evaluations carry no token count, so training rows give it."""
    known = stage.series("tokens")
    points = []
    for step, value in stage.series(column):
        points.append((_interpolate(known, step), value))
    return points


def _interpolate(points: Series, x: float) -> float:
    """Piecewise linear through (0, 0) and `points` (ascending x), constant after the last."""
    before = (0.0, 0.0)
    for point in points:
        if point[0] >= x:
            span = point[0] - before[0]
            return before[1] + (point[1] - before[1]) * ((x - before[0]) / span if span else 1.0)
        before = point
    return before[1]


def _draw_line(axes: "Axes", points: Series, *, color: str, label: str, evaluated: bool) -> None:
    """Draw one series: with markers if it has few points, smoothed if it is long and noisy."""
    x, y = [point[0] for point in points], [point[1] for point in points]
    if evaluated or len(points) < SMOOTHED_FROM:
        axes.plot(
            x, y, color=color, label=label, marker="o" if len(points) < SMOOTHED_FROM else "", markersize=4
        )
    else:
        axes.plot(x, y, color=color, alpha=0.25, linewidth=1)
        axes.plot(x, smoothed(y), color=color, label=label, linewidth=2)


def _journey(series: Series) -> str:
    finite = [(step, value) for step, value in series if math.isfinite(value)]
    if not finite:
        return "is not finite"
    return f"{finite[0][1]:.4g} → {finite[-1][1]:.4g} at step {finite[-1][0]:,.0f}"


def _canvas() -> "tuple[Figure, Axes]":
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 4.5), layout="constrained")
    axes = figure.add_subplot()
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(alpha=0.25)
    axes.margins(x=0.02)
    return figure, axes


def _label(axes: "Axes", title: str, y: str, *, x: str = "optimizer step") -> None:
    from matplotlib.ticker import EngFormatter, MaxNLocator

    axes.set_title(title, loc="left", fontsize=13, fontweight="bold", parse_math=False)
    axes.set_xlabel(x, fontsize=11)
    axes.set_ylabel(y, fontsize=11)
    axes.tick_params(labelsize=10)
    axes.xaxis.set_major_locator(MaxNLocator(nbins=8, integer=True))
    axes.xaxis.set_major_formatter(EngFormatter(sep=""))


def _png(figure: "Figure") -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=130)
    return buffer.getvalue()
