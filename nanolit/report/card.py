"""The report card of one run: report.md with a section per stage, and the final table by stage.

The header follows nanochat's card (https://github.com/karpathy/nanochat, nanochat/report.py of October 2025):
hardware, software, git, then the stages, the table and the time.
"""

import datetime
import os
import platform
import re
import shlex
import statistics
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from nanolit.config.names import flatten
from nanolit.machine import system
from nanolit.machine.clock import duration
from nanolit.machine.paths import home, write_atomically
from nanolit.planning.plans import as_json
from nanolit.report import gradients
from nanolit.report.curves import write_curves
from nanolit.report.folders import Run, Stage, as_number, open_run
from nanolit.report.tables import markdown_table, readable, score

METRICS = (
    "val_bpb",
    "CORE",
    "CORE, standard error",
    "ARC-Challenge",
    "ARC-Easy",
    "GSM8K",
    "HumanEval",
    "MMLU",
    "SpellingBee",
    "mean above guessing",
    "ChatCORE",
)
SHOWN_ELSEWHERE = ("format", "stage", "run", "status", "error", "metrics", "gradients")


def write_report(root: Path, run: str) -> Path:
    """Write report.md and the curves of every stage; returns the report's path. ValueError: no such run."""
    found = open_run(root, run)
    states = found.states()
    parts = [
        f"# Report card: {found.name}\n",
        _header(found),
        _machine(),
        *(_stage_section(found, stage, states[stage.name]) for stage in found.stages),
        "## Final table\n\n" + _table_of(found),
        _comparable(found),
        "## Time\n\n" + _times(found),
        f"Talk to the model: `{chat_command(root, found.name)}`\n",
    ]
    path = found.folder / "report.md"
    write_atomically(path, "\n".join(parts))
    return path


def chat_command(root: Path, run: str) -> str:
    """Return the command that chats with a run, with root= unless it is the root anyway."""
    where = [] if Path(root).absolute() == home() else [f"root={root}"]
    return shlex.join(["python", "-m", "nanolit.chat", f"run={run}", *where])


def final_table(root: Path, run: str) -> str:
    """Return a run's metrics: a row per metric, a column (BASE, MID, SFT, RL) per trained stage."""
    return _table_of(open_run(root, run))


def _table_of(run: Run) -> str:
    measured = {stage.name: stage.metrics for stage in run.stages if stage.name != "tokenizer"}
    names = sorted_metrics(name for metrics in measured.values() for name in metrics)
    if not names:
        return "No stage has been evaluated yet.\n"
    rows = [[name, *(score(metrics.get(name)) for metrics in measured.values())] for name in names]
    return markdown_table(["Metric", *(name.upper() for name in measured)], rows)


def _comparable(run: Run) -> str:
    """Say which rows each stage's val_bpb is of: the same model scores otherwise on others."""
    rows = [
        f"{stage.name}: {stage.val_rows['rows']:,} rows, checksum {stage.val_rows['checksum']}"
        if stage.val_rows
        else f"{stage.name}: unknown"
        for stage in run.stages
        if stage.val_bpb is not None
    ]
    told = f" ({'; '.join(rows)})" if rows else ""
    return (
        f"Each stage's val_bpb is of its own validation rows{told}: compare it between runs with the same "
        "rows, not between stages.\n"
    )


def sorted_metrics(names: Iterable[str]) -> list[str]:
    """Sort metrics: known ones in the card's order, others by name before the means above guessing.

    "val_bpb of rows 3fa9…" takes the place of val_bpb.
    """
    order = {name: place for place, name in enumerate(METRICS)}
    return sorted(set(names), key=lambda name: (order.get(name.split(" of ")[0], len(METRICS) - 2.5), name))


def _header(run: Run) -> str:
    now = datetime.datetime.now(datetime.UTC)
    rows = [["written", f"{now:%Y-%m-%d %H:%M} UTC"]]
    job = flatten(run.job)
    for label, keys in {
        "recipe": ("recipe.name", "recipe"),
        "depth": ("model.depth",),
        "cluster": ("cluster.name", "cluster"),
        "seed": ("seed",),
    }.items():
        if value := next((job[key] for key in keys if job.get(key) is not None), None):
            rows.append([label, str(value)])
    if data := next((stage.plan.data for stage in run.stages if stage.plan), None):
        rows.append(["data", data])
    return markdown_table(["Run", run.name], rows, num_left=2)


def _machine() -> str:
    graphics = system.gpu_names()
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    rows = [
        ["CPU", f"{cpu_name()}, {os.cpu_count()} cores, {memory:.0f} GiB"],
        ["GPU", " + ".join(f"{graphics.count(name)}x {name}" for name in dict.fromkeys(graphics)) or "none"],
        ["system", f"{platform.system()} {platform.release()} {platform.machine()}"],
        ["Python", platform.python_version()],
        *([name, system.version(name) or "not installed"] for name in ("nanolit", "torch", "lightning")),
        ["git", system.commit() or "not a checkout"],
    ]
    return "## Machine\n\nWhere this report was written.\n\n" + markdown_table(["", ""], rows, num_left=2)


def cpu_name() -> str:
    """Return the processor's name as the system knows it."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8")
        if named := re.search(r"^(?:model name|Model)\s*:\s*(.+)$", text, re.MULTILINE):
            return named[1]
    except OSError:
        pass
    return (
        system.output("sysctl", "-n", "machdep.cpu.brand_string")
        or platform.processor()
        or platform.machine()
    )


def _stage_section(run: Run, stage: Stage, state: str) -> str:
    step = f" at step {stage.step:,} of {stage.num_steps:,}" if stage.step and stage.num_steps else ""
    parts = [f"## {stage.name.upper()}\n", f"State: {state}{step}\n"]
    if error := stage.result.get("error"):
        parts.append(f"Error: {' '.join(str(error).split())}\n")
    if remark := gradients.remark_of(stage, run.job):
        parts.append(f"{remark[0].upper()}{remark[1:]}.\n")
    result = {key: value for key, value in stage.result.items() if key not in SHOWN_ELSEWHERE}
    if mfu := [value for _step, value in stage.series("mfu")]:
        result["mfu, median"] = statistics.median(mfu)
    parts += [_values("Plan", as_json(stage.plan) if stage.plan else {}), _values("Result", result)]
    if metrics := {name: value for name, value in stage.metrics.items() if name != "val_bpb"}:
        rows = [[name, score(metrics[name])] for name in sorted_metrics(metrics)]
        parts.append("### Metrics\n\n" + markdown_table(["Metric", "Value"], rows))
    comparison = stage.folder / "comparison.md"
    if comparison.exists():
        parts.append("### Comparison\n\n" + comparison.read_text(encoding="utf-8"))
    if curves := write_curves(run, stage):
        pictures = "".join(f"![{path.stem} of {stage.name}]({stage.name}/{path.name})\n\n" for path in curves)
        parts.append("### Curves\n\n" + pictures.rstrip("\n") + "\n")
    return "\n".join(part for part in [*parts, _samples(stage)] if part)


def _values(title: str, values: Mapping[str, object]) -> str:
    """Return a section with every value that is set; "" when there is none."""
    rows = [[key, text] for key, text in _lines(values) if text and key not in ("format", "run", "stage")]
    return f"### {title}\n\n" + markdown_table([title, "Value"], rows, num_left=2) if rows else ""


def _lines(values: Mapping[str, object], prefix: str = "") -> Iterator[tuple[str, str]]:
    """Yield dotted key and text; an object of plain values is one line: gpt → 'depth 4, width 256, …'."""
    for key, value in values.items():
        if isinstance(value, dict) and any(isinstance(item, dict) for item in value.values()):
            yield from _lines(value, f"{prefix}{key}.")
        elif value is not None:
            yield f"{prefix}{key}", readable(value)


def _samples(stage: Stage) -> str:
    """Return the newest samples, fenced: what a model writes must not turn into Markdown of the card."""
    text = last_samples(stage.folder / "samples.md")
    if not text:
        return ""
    longest = max((len(ticks) for ticks in re.findall(r"`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    link = f"The last of [samples.md]({stage.name}/samples.md)."
    return f"### Samples\n\n{link}\n\n{fence}text\n{text}\n{fence}\n"


def last_samples(path: Path) -> str:
    """Return the last section (## …) of samples.md, "" where there is none."""
    if not path.exists():
        return ""
    text = path.read_text(encoding="utf-8", errors="replace")
    return re.split(r"^## ", text, flags=re.MULTILINE)[-1].strip()


def _times(run: Run) -> str:
    """Return each stage's training time, and its wall time where the result has it."""
    clocks = {
        stage.name: [as_number(stage.result.get(key)) for key in ("seconds", "wall_seconds")]
        for stage in run.stages
    }
    sums = [_sum(times) for times in zip(*clocks.values(), strict=True)]
    rows = [
        [name, *("-" if time is None else duration(time) for time in times)]
        for name, times in (*clocks.items(), ("total", sums))
    ]
    table = markdown_table(["Stage", "Training", "Wall clock"], rows)
    return table + "\nTraining leaves out evaluation, samples and checkpoints; wall clock has all of it.\n"


def _sum(values: Iterable[float | None]) -> float | None:
    """Return the sum; None when one of them is unknown."""
    known = list(values)
    return None if None in known else sum(value for value in known if value is not None)
