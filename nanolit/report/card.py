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
from collections.abc import Iterator, Mapping
from pathlib import Path

from nanolit.machine import system
from nanolit.machine.paths import home, read_text, write_atomically
from nanolit.planning.plans import as_json
from nanolit.report import gradients
from nanolit.report.curves import write_curves
from nanolit.report.facts import facts_of, times_of
from nanolit.report.folders import Run, Stage, open_run
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
    portable,
    reworded,
    to_page,
)
from nanolit.report.settings import chosen_settings
from nanolit.report.tables import markdown_table, readable

NO_SCORES = "No stage has been evaluated yet."
CHAT = ("python", "-m", "nanolit.chat")
MOST_ARROWS = 50  # of a line of samples.md, any of which may be the one between prompt and reply
SHOWN_ELSEWHERE = ("format", "stage", "run", "status", "error", "metrics", "gradients")


def write_report(root: Path, run: str) -> Path:
    """Write report.md, report.html and the curves; returns report.md's path. ValueError: no such run."""
    card = report_card(open_run(root, run))
    path = root / "runs" / run / "report.md"
    write_atomically(path, card.markdown(path.parent))
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
        *([Facts(facts)] if (facts := facts_of(run)) else []),
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
    blocks += [Section("Time", times_of(run)), *chosen_settings(run)]
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
    data = next((stage.plan.data for stage in run.stages if stage.plan and not stage.plan.chats), None)
    parts = [
        f"d{model['depth']}" if model.get("depth") else None,
        f"{recipe['name']} recipe" if recipe.get("name") else None,
        f"data {data}" if data else None,
        f"seed {job['seed']}" if "seed" in job else None,
        f"written {datetime.datetime.now(datetime.UTC):%d %B %Y, %H:%M} UTC",
    ]
    return " · ".join(part for part in parts if part)


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
        said = Text(f"{what} after {stage.name.upper()}, always the most likely token.")
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
    """Return the last section (## …) of samples.md, "" if there is none."""
    if not path.exists():
        return ""
    text = read_text(path, remedy="delete it", errors="replace")
    return re.split(r"^## ", text, flags=re.MULTILINE)[-1].strip()


def _internals(run: Run, stage: Stage, pictures: list) -> Section:
    """Return everything known about a stage, one value a line."""
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
        blocks.append(Section("Last samples (samples.md)", [Code(text)]))
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
