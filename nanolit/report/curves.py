"""Curves of metrics.csv as PNG files: one message per picture, said in its title.

matplotlib is imported inside functions and drawn on its off-screen canvas (Agg): no display, no global state.
"""

import io
import math
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import TYPE_CHECKING

from nanolit.machine.paths import write_atomically
from nanolit.machine.terminal import printable
from nanolit.report.folders import Run, Stage
from nanolit.report.sections import Picture

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Series = Sequence[tuple[float, float]]
NOISY = ("loss", "reward", "sequence_length")  # of other data each step; scores are of the same each time
SMOOTHED_FROM = 16  # points of a noisy column; fewer are drawn as they are
REACH = 32  # points to each side that the smoothed line averages at most
STEEP = 4  # from that ratio of the highest to the lowest loss shown, the axis is logarithmic


@dataclass(frozen=True)
class Theme:
    """The colors of a picture: on a light page, or on a dark one."""

    paper: str
    ink: str
    lines: tuple[str, ...]


LIGHT = Theme("#ffffff", "#3b424b", ("#2f6fdb", "#d9660d", "#2e8b57", "#8a5fbf", "#c02f4a", "#4a4a4a"))
DARK = Theme("#161b22", "#b6bec8", ("#6ea8ff", "#ffa657", "#5fc98f", "#c39bf0", "#ff7b8f", "#c8c8c8"))


@dataclass(frozen=True)
class Plot:
    """One picture: its columns, each with what the legend calls it, and what their values are."""

    name: str
    columns: Mapping[str, str]
    title: str
    unit: str
    form: str = ".4g"  # of a value in the title; with a % sign, of the axis too


PLOTS = (
    Plot("loss", {"loss": "training", "val_loss": "validation"}, "loss in", "nats per token"),
    Plot("val_bpb", {"val_bpb": ""}, "validation", "bits per byte, lower is better"),
    Plot("reward", {"reward": ""}, "mean reward", "mean reward, higher is better"),
    Plot(
        "pass_at_k",
        {"pass_at_1": "at the first try", "pass_at_k": "in one of several tries"},
        "problems solved",
        "held-out problems",
        ".0%",
    ),
    Plot("sequence_length", {"sequence_length": ""}, "reply length", "tokens", ".1f"),
)


def plots_of(stage: Stage) -> list[Plot]:
    """Return the pictures that the stage's metrics give: columns with at least two points.

    RL's loss says nothing about how well it learns; bits per byte are the validation loss in other units.
    """
    long = {name for name in stage.columns if len(stage.series(name)) > 1}
    plots = {plot.name: plot for plot in PLOTS if long & plot.columns.keys()}
    if stage.name == "rl":
        plots.pop("loss", None)
    if "val_loss" in long:
        plots.pop("val_bpb", None)
    return list(plots.values())


def write_curves(run: Run, stage: Stage) -> list[Picture]:
    """Draw every picture of the stage into its folder."""
    pictures = []
    for plot in plots_of(stage):
        path = stage.folder / f"{plot.name}.png"
        write_atomically(path, draw_stage(plot, run, stage))
        pictures.append(Picture(path, draw_stage(plot, run, stage, theme=DARK), title_of(plot, run, stage)))
    return pictures


def draw_stage(plot: Plot, run: Run, stage: Stage, *, theme: Theme = LIGHT) -> bytes:
    """Draw a PNG of the plot's columns over the optimizer steps."""
    lines = {name: series for name in plot.columns if (series := stage.series(name))}
    figure, axes = _canvas(theme)
    for color, (name, points) in zip(theme.lines, lines.items(), strict=False):
        _draw_line(axes, name, points, color=color, label=plot.columns[name])
    if plot.name == "loss" and is_smoothed("loss", losses := [value for _, value in lines.get("loss", ())]):
        _leave_out_the_fall(axes, losses, [value for _, value in lines.get("val_loss", ())])
    if plot.form.endswith("%"):
        axes.yaxis.set_major_formatter(lambda share, _: f"{100 * share:.3g}%")
    if len(lines) > 1:
        axes.legend(frameon=False, labelcolor=theme.ink)
    _label(axes, title_of(plot, run, stage), plot.unit, theme=theme)
    return _png(figure)


def title_of(plot: Plot, run: Run, stage: Stage) -> str:
    """Return a picture's message, "demo, sft: loss in training 4.833 → 2.871, validation 3.1 → 2.9".

    The values are those of the lines: a single step's say little.
    """
    told = []
    for name, label in plot.columns.items():
        if series := [value for _, value in stage.series(name) if math.isfinite(value)]:
            line = smoothed(series, steep=name == "loss") if is_smoothed(name, series) else series
            first, last = (f"{value:{plot.form}}" for value in (line[0], line[-1]))
            told.append(f"{label} {first} → {last}".lstrip())
    return f"{run.name}, {stage.name}: {plot.title} {', '.join(told) or 'is not finite'}"


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
            f"column={column} stage={stage}: none of {names} has logged it; logged columns: "
            f"{', '.join(logged) or 'none'}"
        )
    checksums = {stage.val_rows["checksum"] for stage in drawn.values() if stage.val_rows}
    if column == "val_bpb" and len(checksums) > 1:
        raise ValueError(
            f"column=val_bpb stage={stage}: {', '.join(drawn)} were evaluated on different validation rows "
            f"({', '.join(sorted(checksums))}); plot runs with the same rows, or column=loss"
        )
    by_tokens = all("tokens" in folder.columns for folder in drawn.values())
    figure, axes = _canvas()
    for color, (name, folder) in zip(LIGHT.lines * len(drawn), drawn.items(), strict=False):
        points = _over_tokens(folder, column) if by_tokens else folder.series(column)
        _draw_line(axes, column, points, color=color, label=f"{name}: {points[-1][1]:.4g}")
    axes.legend(frameon=False)
    _label(axes, f"{stage}: {column} of {len(drawn)} runs", column, x="tokens" if by_tokens else "step")
    return _png(figure)


def smoothed(values: Sequence[float], *, steep: bool = False) -> list[float]:
    """Return the values averaged over their neighbors, twice, so that the nearest count most.

    Gaps (NaN) keep the average. With `steep`, for a loss that falls from chance, a mean reaches no farther to
    the right than to the left: else the line would begin far below the first value.
    """
    reach = min(REACH, len(values) // (24 if steep else 8))  # more would lift a short curve above its bend
    return _averaged(_averaged(values, reach, steep=steep), reach, steep=steep)


def _averaged(values: Sequence[float], reach: int, *, steep: bool) -> list[float]:
    """Return each value's mean with those at most `reach` places away."""
    finite = [value if math.isfinite(value) else 0.0 for value in values]
    sums = [0.0, *accumulate(finite)]
    counts = [0, *accumulate(math.isfinite(value) for value in values)]
    result = []
    for place in range(len(values)):
        begin, end = max(0, place - reach), min(len(values), place + reach + 1)
        end = min(end, 2 * place + 1) if steep else end
        count = counts[end] - counts[begin]
        kept = result[-1] if result else math.nan
        result.append((sums[end] - sums[begin]) / count if count else kept)
    return result


def _over_tokens(stage: Stage, column: str) -> list[tuple[float, float]]:
    """Return (tokens, value) pairs: evaluations carry no token count, so training rows give it."""
    known = stage.series("tokens")
    return [(_interpolate(known, step), value) for step, value in stage.series(column)]


def _interpolate(points: Series, x: float) -> float:
    """Piecewise linear through (0, 0) and `points` (ascending x), constant after the last."""
    before = (0.0, 0.0)
    for point in points:
        if point[0] >= x:
            span = point[0] - before[0]
            return before[1] + (point[1] - before[1]) * ((x - before[0]) / span if span else 1.0)
        before = point
    return before[1]


def is_smoothed(column: str, points: Sequence) -> bool:
    """Tell whether a series is drawn as a smoothed line."""
    return column in NOISY and len(points) >= SMOOTHED_FROM


def _draw_line(axes: "Axes", column: str, points: Series, *, color: str, label: str) -> None:
    """Draw one series: with its points if it has few; a long noisy one smoothed, above its faint self."""
    x, y = [point[0] for point in points], [point[1] for point in points]
    if not is_smoothed(column, points):
        marker = "o" if len(points) < 2 * SMOOTHED_FROM else ""
        axes.plot(x, y, color=color, label=label, marker=marker, markersize=4, linewidth=1.8)
    else:
        axes.plot(x, y, color=color, alpha=0.3, linewidth=0.9)
        axes.plot(x, smoothed(y, steep=column == "loss"), color=color, label=label, linewidth=2)


def _leave_out_the_fall(axes: "Axes", losses: Sequence[float], validation: Sequence[float]) -> None:
    """End the axis at the loss after a twentieth of the steps: the fall from chance flattens all else."""
    from matplotlib.ticker import FormatStrFormatter, LogLocator, NullFormatter

    line = smoothed(losses, steep=True)[max(2, len(losses) // 20) :]
    top = max(filter(math.isfinite, line), default=0.0)
    bottom = min(filter(math.isfinite, [*line, *validation]), default=0.0)
    if top <= bottom:
        return
    if bottom > 0 and top / bottom > STEEP:
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 3, 5)))
        axes.yaxis.set_major_formatter(FormatStrFormatter("%g"))
        axes.yaxis.set_minor_formatter(NullFormatter())
        axes.set_ylim(bottom * 0.9, top)
    else:
        axes.set_ylim(bottom - 0.08 * (top - bottom), top)


def _canvas(theme: Theme = LIGHT) -> "tuple[Figure, Axes]":
    """Return axes that a phone can show: letters of 10 points on 5.4 inches."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5.4, 3.4), layout="constrained", facecolor=theme.paper)
    axes = figure.add_subplot(facecolor=theme.paper)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(theme.ink)
    axes.tick_params(labelsize=10, color=theme.ink, labelcolor=theme.ink)
    axes.grid(alpha=0.2, color=theme.ink)
    axes.margins(x=0.02)
    return figure, axes


def _label(axes: "Axes", title: str, y: str, *, x: str = "optimizer step", theme: Theme = LIGHT) -> None:
    from matplotlib.ticker import EngFormatter, MaxNLocator

    lines = "\n".join(textwrap.wrap(printable(title), width=52))
    axes.set_title(lines, loc="left", fontsize=11, fontweight="bold", parse_math=False, color=theme.ink)
    axes.set_xlabel(x, fontsize=10, color=theme.ink)
    axes.set_ylabel(y, fontsize=10, color=theme.ink)
    axes.xaxis.set_major_locator(MaxNLocator(nbins=6, integer=True))
    axes.xaxis.set_major_formatter(EngFormatter(sep=""))


def _png(figure: "Figure") -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=160)
    return buffer.getvalue()
