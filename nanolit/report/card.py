"""The report card of one run: scores, cost, conversation and curves first, what lies underneath folded away.

One tree of sections gives report.md and report.html. The idea of a card is nanochat's
(https://github.com/karpathy/nanochat, nanochat/report.py of October 2025).
"""

import ast
import datetime
import os
import platform
import re
import shlex
import statistics
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from nanolit.machine import system
from nanolit.machine.paths import home, read_text, write_atomically
from nanolit.machine.terminal import duration
from nanolit.planning.plans import TrainingPlan, as_json
from nanolit.report import gradients
from nanolit.report.curves import write_curves
from nanolit.report.folders import Run, Stage, as_number, open_run
from nanolit.report.page import to_page
from nanolit.report.places import portable
from nanolit.report.prices import rent
from nanolit.report.scores import core_tasks, final_scores, remarks_on
from nanolit.report.sections import (
    Block,
    Code,
    Exchange,
    Facts,
    Pictures,
    Section,
    Table,
    Text,
    reworded,
    to_markdown,
)
from nanolit.report.settings import chosen_settings
from nanolit.report.tables import MISSING, markdown_table, readable

NO_SCORES = "No stage has been evaluated yet."
CHAT = ("python", "-m", "nanolit.chat")
MOST_ARROWS = 50  # of a line of samples.md, any of which may be the one between prompt and reply
SHOWN_ELSEWHERE = ("format", "stage", "run", "status", "error", "metrics", "gradients")


def write_report(root: Path, run: str) -> Path:
    """Write report.md, report.html and the curves; returns report.md's path. ValueError: no such run."""
    card = report_card(open_run(root, run))
    path = root / "runs" / run / "report.md"
    write_atomically(path, to_markdown(card, folder=path.parent))
    write_atomically(path.with_suffix(".html"), to_page(card))
    return path


def report_card(run: Run) -> Section:
    """Return the card of a run, its curves drawn, without the folders of the machine."""
    pictures = {stage.name: write_curves(run, stage) for stage in run.stages}
    # A stage's first one or two tell how it went; the others are for whoever looks closer
    first = [picture for drawn in pictures.values() for picture in drawn[:2]]
    table = final_scores(run)
    scores = [table, *map(Text, remarks_on(run))] if table else [Text(NO_SCORES)]
    blocks: list[Block] = [
        Text(_subtitle(run)),
        *([Facts(facts)] if (facts := _facts(run)) else []),
        *([Section("State", problems)] if (problems := list(map(Text, _problems(run)))) else []),
        Section("Scores", scores),
    ]
    if said := talk(run):
        title = "What it writes" if isinstance(said[0], Exchange) and not said[0].chat else "Conversation"
        blocks.append(Section(title, [*said, Code(shlex.join([*CHAT, f"run={run.name}"]))]))
    if first:
        blocks.append(Section("Curves", [Pictures(first)]))
    blocks += [
        Section(f"CORE by task, {stage.name}", [tasks])
        for stage in run.stages
        if (tasks := core_tasks(stage))
    ]
    blocks += [Section("Time", _times(run)), *chosen_settings(run)]
    stages = [_internals(run, stage, pictures[stage.name][2:]) for stage in run.stages]
    blocks.append(Section("Internals: plan, result and samples of every stage", [*stages, _machine()], True))
    blocks = [reworded(block, lambda text: portable(text, run.root.absolute())) for block in blocks]
    return Section(f"Report card: {run.name}", blocks)


def chat_command(root: Path, run: str) -> str:
    """Return the command that chats with a run, with root= unless it is the root anyway."""
    where = [] if Path(root).absolute() == home() else [f"root={root}"]
    return shlex.join([*CHAT, f"run={run}", *where])


def final_table(root: Path, run: str) -> str:
    """Return a run's metrics: a row per metric, a column (BASE, MID, SFT, RL) per stage that has any."""
    table = final_scores(open_run(root, run))
    return markdown_table(table.header, table.rows) if table else f"{NO_SCORES}\n"


def _subtitle(run: Run) -> str:
    job = run.job
    model, recipe = job.get("model") or {}, job.get("recipe") or {}
    data = next((stage.plan.data for stage in run.stages if stage.plan), None)
    parts = [
        f"d{model['depth']}" if model.get("depth") else None,
        f"{recipe['name']} recipe" if recipe.get("name") else None,
        f"data {data}" if data else None,
        f"seed {job['seed']}" if "seed" in job else None,
        f"written {datetime.datetime.now(datetime.UTC):%d %B %Y, %H:%M} UTC",
    ]
    return " · ".join(part for part in parts if part)


def _facts(run: Run) -> list[tuple[str, str]]:
    """Return what a reader asks first: how large, how long, how much, on what."""
    base = next((stage.plan for stage in run.stages if isinstance(stage.plan, TrainingPlan)), None)
    training, wall = _totals(run)
    tokens = _sum(as_number(stage.result.get("tokens")) for stage in run.stages if stage.name != "tokenizer")
    facts = [
        ("Parameters", _short(base.num_parameters) if base and base.num_parameters else MISSING),
        ("Tokens learned", _short(tokens) if tokens else MISSING),
        ("Training", _spoken(training)),
        ("Wall clock", _spoken(wall)),
        _cost(run),
        ("Hardware", _hardware(run)),
    ]
    return [(label, value) for label, value in facts if value != MISSING]


def _short(value: float) -> str:
    """Return 1441792 as '1.4 million'."""
    for size, word in ((1e12, "trillion"), (1e9, "billion"), (1e6, "million")):
        if value >= size:
            return f"{value / size:.3g} {word}"
    return f"{value:,.0f}"


def _hardware(run: Run) -> str:
    cluster = run.job.get("cluster") or {}
    gpu, count = cluster.get("gpu"), (cluster.get("devices") or 1) * (cluster.get("nodes") or 1)
    if not gpu:
        return MISSING
    return "CPU" if gpu == "cpu" else f"{count} × {gpu}"


def _cost(run: Run) -> tuple[str, str]:
    """Return a label and what the wall clock cost at the plan's prices, or would cost to rent."""
    if any(stage.plan and stage.plan.cost for stage in run.stages):
        return "Cost", _dollars(run)
    cluster = run.job.get("cluster") or {}
    _, wall = _totals(run)
    if (price := rent(cluster)) and wall is not None:
        return "Cost, if rented", f"${wall / 3600 * price.dollars_per_hour:,.2f}"
    return "Cost", "own machine" if cluster.get("kind") == "local" else MISSING


def _dollars(run: Run) -> str:
    """Return the sum of every stage's wall clock at its own price."""
    plans = [stage.plan for stage in run.stages if stage.plan]
    hours = [as_number(stage.result.get("wall_seconds")) for stage in run.stages if stage.plan]
    total = _sum(
        None
        if seconds is None or not plan.cost or plan.cost["dollars_per_hour"] is None
        else seconds / 3600 * plan.cost["dollars_per_hour"]
        for seconds, plan in zip(hours, plans, strict=True)
    )
    return MISSING if total is None else f"${total:,.2f}"


def _totals(run: Run) -> tuple[float | None, float | None]:
    """Return the run's training time and wall clock; a tokenizer that is done has no training time."""
    training = [
        as_number(stage.result.get("seconds", 0.0 if stage.name == "tokenizer" and stage.result else None))
        for stage in run.stages
    ]
    return _sum(training), _sum(as_number(stage.result.get("wall_seconds")) for stage in run.stages)


def _spoken(seconds: float | None) -> str:
    """Return 346 as '5 min 46 s', 13860 as '3 h 51 min'."""
    if seconds is None or seconds < 60:
        return MISSING if seconds is None else f"{seconds:.0f} s"
    parts = duration(seconds).split(":")
    return f"{parts[0]} h {int(parts[1])} min" if len(parts) == 3 else f"{parts[0]} min {int(parts[1])} s"


def _time(seconds: float | None) -> str:
    return MISSING if seconds is None else duration(seconds)


def _problems(run: Run) -> Iterator[str]:
    """Yield what is wrong with the run: stages that aren't done, errors, gradients of older versions."""
    states = run.states()
    for stage in run.stages:
        if (state := states[stage.name]) != "done":
            yield f"{stage.name.upper()}: {state}{_progress(stage)}."
        if error := stage.result.get("error"):
            yield f"Error: {' '.join(str(error).split())}"
        if remark := gradients.remark_of(stage, run.job):
            yield f"{remark[0].upper()}{remark[1:]}."


def _progress(stage: Stage) -> str:
    if not stage.step:
        return ""
    return f" at step {stage.step:,}" + (f" of {stage.num_steps:,}" if stage.num_steps else "")


def talk(run: Run) -> list[Block]:
    """Return what the last stage that has samples wrote when asked; a base continues texts."""
    for stage in reversed(run.stages):
        text = last_samples(stage.folder / "samples.md")
        if not text:
            continue
        chats = getattr(stage.plan, "chats", stage.name != "base")
        turns = list(_turns(text))
        what = "Its replies to fixed questions" if chats else "How it continues texts"
        said = Text(f"{what} after {stage.name.upper()}, each token the likeliest one.")
        return [Exchange(turns, chat=chats) if turns else Code(text), said]
    return []


def _turns(samples: str) -> Iterator[tuple[str, str]]:
    """Yield (prompt, reply) of the lines "- 'prompt' → 'reply'" of samples.md."""
    for line in samples.splitlines():
        places = [match.start() for match in re.finditer(" → ", line)] if line.startswith("- ") else []
        for place in places[:MOST_ARROWS]:
            try:
                prompt, reply = ast.literal_eval(line[2:place]), ast.literal_eval(line[place + 3 :])
            except (ValueError, SyntaxError, RecursionError, MemoryError):  # the last two of deep brackets
                continue
            yield str(prompt), str(reply)
            break


def last_samples(path: Path) -> str:
    """Return the last section (## …) of samples.md, "" where there is none."""
    if not path.exists():
        return ""
    text = read_text(path, remedy="delete it", errors="replace")
    return re.split(r"^## ", text, flags=re.MULTILINE)[-1].strip()


def _times(run: Run) -> list[Block]:
    """Return each stage's steps, tokens and time, and their sums."""
    rows = []
    for stage in run.stages:
        counts = [stage.step, as_number(stage.result.get("tokens"))]
        times = [as_number(stage.result.get(key)) for key in ("seconds", "wall_seconds")]
        cells = [*(MISSING if count is None else f"{count:,.0f}" for count in counts), *map(_time, times)]
        rows.append([stage.name.upper(), *cells])
    rows.append(["total", "", "", *map(_time, _totals(run))])
    said = "Training leaves out evaluation, samples and checkpoints; wall clock has all of it."
    if priced := next((stage.plan.cost for stage in run.stages if stage.plan and stage.plan.cost), None):
        said += f" The cost is the wall clock's, at the prices of {priced['prices']}."
    elif price := rent(run.job.get("cluster") or {}):
        said += (
            f" To rent {price.what} costs ${price.dollars_per_hour:,.2f} an hour (prices of {price.date})."
        )
    return [Table(["Stage", "Steps", "Tokens", "Training", "Wall clock"], rows), Text(said)]


def _sum(values: Iterable[float | None]) -> float | None:
    """Return the sum; None when one of them is unknown."""
    known = list(values)
    return None if None in known else sum(value for value in known if value is not None)


def _internals(run: Run, stage: Stage, pictures: list) -> Section:
    """Return all that is known of a stage, a value a line."""
    result = {key: value for key, value in stage.result.items() if key not in SHOWN_ELSEWHERE}
    if mfu := [value for _step, value in stage.series("mfu")]:
        result["mfu, median"] = statistics.median(mfu)
    blocks: list[Block] = [Text(f"{run.states()[stage.name].capitalize()}{_progress(stage)}.")]
    for title, values in (("Plan", as_json(stage.plan) if stage.plan else {}), ("Result", result)):
        rows = [[key, text] for key, text in _lines(values) if text and key not in ("format", "run", "stage")]
        blocks += [Table([title, "Value"], rows, num_left=2)] if rows else []
    comparison = stage.folder / "comparison.md"
    if comparison.exists():
        blocks.append(
            Section("Comparison", [Code(read_text(comparison, remedy="delete it", errors="replace").strip())])
        )
    blocks += [Pictures(pictures)] if pictures else []
    if text := last_samples(stage.folder / "samples.md"):
        blocks.append(Section("The last of samples.md", [Code(text)]))
    return Section(stage.name.upper(), blocks)


def _lines(values: Mapping[str, object], prefix: str = "") -> Iterator[tuple[str, str]]:
    """Yield dotted key and text; an object of plain values is one line: gpt → 'depth 4, width 256, …'."""
    for key, value in values.items():
        if isinstance(value, dict) and any(isinstance(item, dict) for item in value.values()):
            yield from _lines(value, f"{prefix}{key}.")
        elif value is not None:
            yield f"{prefix}{key}", readable(value)


def _machine() -> Section:
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
    return Section("The machine that wrote this report", [Table(["", ""], rows, num_left=2)])


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
