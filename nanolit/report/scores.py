"""The scores of a stage, each with its error bar, the number of questions, and what guessing gets."""

import functools
import math
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from nanolit.evaluation.scores import Item, Scored, mean_centered, read_items
from nanolit.planning.plans import RLPlan
from nanolit.report.folders import Run, Stage, as_number
from nanolit.report.sections import Table
from nanolit.report.tables import MISSING, score
from nanolit.tasks.bundle import LABELS

METRICS = (
    "val_bpb",
    "CORE",
    "ARC-Challenge",
    "ARC-Easy",
    "GSM8K",
    "HumanEval",
    "MMLU",
    "SpellingBee",
    "mean above guessing",
    "ChatCORE",
)
MEANS = ("mean above guessing", "ChatCORE")
ERROR = ", standard error"  # the end of the name of a metric that is another's error
BITS = "bits per byte"
CHANCE = {label.name: label.baseline / 100 for label in LABELS}


@dataclass(frozen=True)
class Measured:
    """A figure, its standard error, the number of questions asked, that of the whole task, chance's score."""

    value: float
    error: float | None = None
    asked: int | None = None
    of: int | None = None
    chance: float | None = None

    @property
    def text(self) -> str:
        return score(self.value) if self.error is None else f"{self.value:.3f} ± {self.error:.3f}"

    @property
    def questions(self) -> str:
        if self.asked is None:
            return MISSING
        return f"{self.asked:,} of {self.of:,}" if self.of and self.of > self.asked else f"{self.asked:,}"

    @property
    def is_guessing(self) -> bool:
        """Tell whether guessing does as well, within two standard errors."""
        known = self.chance is not None and self.error is not None
        return known and self.value - self.chance < 2 * self.error  # type: ignore[operator]


def measured(stage: Stage) -> dict[str, Measured]:
    """Return every metric of the stage.

    Error and number come from the items on disk where these are the ones that gave the score.
    """
    metrics, found, tasks = stage.metrics, {}, []
    for name, value in metrics.items():
        if name.endswith(ERROR):
            continue
        if (task := scored_items(stage, name)) and math.isclose(task[0].accuracy, value, abs_tol=1e-9):
            tasks.append(task[0])
            found[name] = Measured(value, task[0].error, task[0].num_items, task[1], task[0].baseline)
        elif is_core(name):
            found[name] = Measured(value, metrics.get(name + ERROR), core_questions(stage, value), chance=0.0)
        elif asked := sampled_questions(stage, name):
            # The error of one answer a problem; of several it is less
            found[name] = Measured(value, Scored(name, asked, value, 0.0).error, asked)
        else:
            found[name] = Measured(value, metrics.get(name + ERROR))
    for name in MEANS:
        if name in found and tasks and math.isclose(mean_centered(tasks)[0], found[name].value, abs_tol=1e-9):
            asked = sum(task.num_items for task in tasks)
            found[name] = Measured(found[name].value, mean_centered(tasks)[1], asked, chance=0.0)
    return found


def scored_items(stage: Stage, task: str) -> tuple[Scored, int | None] | None:
    """Return the task's score and how many problems the whole task has; None without items on disk.

    All of them were asked, unless chat.json says that the last evaluation asked fewer.
    """
    path = stage.item_files.get(task)
    header, items = read_stored(path) if path else ({}, [])
    baseline = as_number(header.get("baseline", CHANCE.get(task)))
    if not items or baseline is None:
        return None
    accuracy = sum(item["right"] for item in items) / len(items)
    if asked := (stage.chat.get("asked") or {}).get(task):
        return Scored(task, asked, stage.metrics.get(task, accuracy), baseline), header.get("of")
    return Scored(task, len(items), accuracy, baseline), header.get("of")


def sampled_questions(stage: Stage, name: str) -> int | None:
    """Return how many held-out problems RL's pass@1 is of."""
    if not name.startswith("pass@1") or not isinstance(stage.plan, RLPlan):
        return None
    task = stage.plan.validation or {}
    return task.get("max_rows") or task.get("size")


def core_scores(stage: Stage) -> dict[str, Scored]:
    """Return CORE's tasks as they were asked last; without those whose number of questions is not known."""
    scores = {}
    for task, content in (stage.core.get("tasks") or {}).items():
        accuracy, asked = as_number(content.get("accuracy")), as_number(content.get("asked"))
        if accuracy is None:
            continue
        if asked is None and (found := scored_items(stage, task)):  # of an older version
            asked = found[0].num_items if math.isclose(found[0].accuracy, accuracy, abs_tol=1e-9) else None
        if asked:
            scores[task] = Scored(task, int(asked), accuracy, CHANCE.get(task, 0.0))
    return scores


def core_questions(stage: Stage, mean: float) -> int | None:
    """Return how many questions a mean of CORE is of; None for the mean of an earlier evaluation."""
    scores = core_scores(stage).values()
    if not scores or not math.isclose(mean_centered(scores)[0], mean, abs_tol=1e-9):
        return None
    return sum(scored.num_items for scored in scores)


def read_stored(path: Path) -> tuple[Item, list[Item]]:
    """Return the header and the items of a file; none of a damaged one, for which no card is refused."""
    return _read_once(path, path.stat().st_mtime_ns)


@functools.lru_cache(maxsize=64)
def _read_once(path: Path, _changed: int) -> tuple[Item, list[Item]]:
    """Keep what counts: all of CORE's items with their questions are many megabytes."""
    try:
        header, items = read_items(path)
    except (ValueError, OSError):
        return {}, []
    return header, [{key: item[key] for key in ("index", "prompt", "right")} for item in items]


def is_core(name: str) -> bool:
    """Tell whether a metric is CORE's mean, of all its questions or of a part."""
    return name.split(" of ")[0] == "CORE"


def sorted_metrics(names: Iterable[str]) -> list[str]:
    """Sort metrics: known ones in the card's order, others by name before the means above guessing.

    "val_bpb of rows 3fa9…" takes the place of val_bpb.
    """
    order = {name: place for place, name in enumerate(METRICS)}
    return sorted(set(names), key=lambda name: (order.get(name.split(" of ")[0], len(METRICS) - 2.5), name))


def final_scores(run: Run) -> Table | None:
    """Return a row per metric and a column (BASE, MID, SFT, RL) per stage that has any; None without one."""
    by_stage = {stage.name: found for stage in run.stages if (found := measured(stage))}
    names = sorted_metrics(name for found in by_stage.values() for name in found)
    if not names:
        return None
    rows, short = [], {"val_bpb": BITS, **parts_of_core(names)}
    for name in names:
        cells = [found.get(name) for found in by_stage.values()]
        there = [cell for cell in cells if cell]
        questions = " / ".join(dict.fromkeys(cell.questions for cell in there))
        chance = next((cell.chance for cell in there if cell.chance is not None), None)
        values = [cell.text if cell else MISSING for cell in cells]
        rows.append([short.get(name, name), *values, questions, guessed(chance)])
    return Table(["Metric", *(name.upper() for name in by_stage), "n", "Chance"], rows)


def guessed(chance: float | None) -> str:
    """Return what guessing gets, without digits that say nothing."""
    return MISSING if chance is None else f"{chance:.3g}"


def parts_of_core(names: Iterable[str]) -> dict[str, str]:
    """Return a short name for each mean that is not quite CORE, as "CORE of at most 500 a task"."""
    parts = [name for name in names if is_core(name) and name != "CORE"]
    return {
        name: f"CORE {'in part' if 'at most' in name else 'as asked'}" + f" ({place})" * (len(parts) > 1)
        for place, name in enumerate(parts, 1)
    }


def remarks_on(run: Run) -> list[str]:
    """Return what a reader of the final table must know: what ± is, what compares, what is mere guessing."""
    by_stage = {stage.name: measured(stage) for stage in run.stages}
    cells = [cell for found in by_stage.values() for cell in found.values()]
    names = sorted_metrics(name for found in by_stage.values() for name in found)
    parts = parts_of_core(names)
    others = next((named for stage in run.stages if (named := other_questions(stage))), "")
    remarks = remark_on_bits(run)
    remarks += [
        f"{short}: {name.removeprefix('CORE of ')}{others if name.endswith('originals') else ''}. Compare it "
        "only with scores of the same kind."
        for name, short in parts.items()
    ]
    if any(cell.error is not None for cell in cells):
        remarks.append("± is one standard error over the n questions asked.")
    if part := next((cell.questions for cell in cells if " of " in cell.questions), None):
        remarks.append(f'"{part}" are a fixed random part of the task.')
    if sampled := next((name for name in names if name.startswith("pass@1")), None):
        remarks.append(
            f"{sampled}: answers sampled at random, as in training; elsewhere the most likely token each "
            "time."
        )
    last = next((found for found in reversed(by_stage.values()) if any(c.asked for c in found.values())), {})
    if reached := [parts.get(n, n) for n, cell in last.items() if cell.is_guessing and n not in MEANS]:
        remarks.append(f"No better than guessing (within two standard errors): {', '.join(reached)}.")
    return remarks


def other_questions(stage: Stage) -> str:
    """Return " (hellaswag, coqa)", CORE's tasks whose questions are not the originals; "" without any."""
    others = stage.core.get("other_questions")
    return f" ({', '.join(map(str, others))})" if others and isinstance(others, list) else ""


def remark_on_bits(run: Run) -> list[str]:
    """Return how bits per byte read, and on how many tokens each stage's are."""
    scored = [stage for stage in run.stages if stage.val_bpb is not None]
    tokens = {stage.name.upper(): as_number(stage.val_rows.get("tokens")) for stage in scored}
    known = [f"{count:,} tokens after {name}" for name, count in tokens.items() if count is not None]
    remarks = [f"Bits per byte (lower is better) on held-out text: {', '.join(known)}."] if known else []
    if len(scored) > 1:
        remarks.append(
            "Every stage has its own validation rows: compare bits per byte only between runs, not between "
            "stages."
        )
    return remarks


def core_tasks(stage: Stage) -> Table | None:
    """Return CORE's score by task with standard errors; None if the stage has none."""
    rows, scores = [], core_scores(stage)
    for name, content in (stage.core.get("tasks") or {}).items():
        if (accuracy := as_number(content.get("accuracy"))) is None:
            continue
        task, chance = Measured(accuracy, as_number(content.get("error"))), CHANCE.get(name, 0.0)
        asked = f"{scores[name].num_items:,}" if name in scores else MISSING
        above = Measured((task.value - chance) / (1 - chance), task.error and task.error / (1 - chance))
        rows.append([name, task.text, asked, guessed(chance), above.text])
    return Table(["Task", "Accuracy", "n", "Chance", "Above guessing"], rows) if rows else None
