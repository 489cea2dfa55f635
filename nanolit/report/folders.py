"""A run's folder as values: its stages in order, their plans, results, metrics and states.

A run may be unfinished, killed or still going on: whatever file is missing is empty here, a half-written last
row of metrics.csv is read as far as it goes, and unknown columns are kept.
"""

import difflib
import sys
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from typing_extensions import TypedDict

from nanolit.config.names import flatten
from nanolit.config.schema import STAGES
from nanolit.config.stored import read_mapping
from nanolit.evaluation.scores import Gradients, ValRows, item_files
from nanolit.machine.locks import is_held
from nanolit.machine.paths import Json, as_null, by_step, read_json, read_table, run_folder, step_of
from nanolit.planning.plans import BasePlan, Plan, RLPlan, TrainingPlan, read_plan

TRACES = ("job.yaml", "plan.json", "metrics.csv", "samples.md", "result.json")

LARGEST = sys.float_info.max  # NaN is not below it either; an integer of JSON may be above
ANYTHING = 9  # levels of a plan: a report takes what there is
REMEDY = "delete it, and the same command creates it again"


class Result(TypedDict, total=False):
    """The fields that are read of results, progress and evaluations; each may lack some, and have more."""

    status: str
    run: str
    stage: str
    error: str
    step: int
    num_steps: int | None
    tokens: int
    processed_tokens: int
    seconds: float
    wall_seconds: float
    val_bpb: float | None
    val_rows: ValRows
    metrics: dict[str, Any]
    asked: dict[str, int]  # problems of each chat task
    gradients: Gradients
    asked_to_stop: bool


@dataclass(frozen=True)
class Stage:
    """One stage's folder; files are read when they are first asked for."""

    name: str
    folder: Path

    @cached_property
    def plan(self) -> Plan | None:
        """Return the stored plan; None before the stage has one."""
        return read_plan(self.folder, may_lack=ANYTHING) if (self.folder / "plan.json").exists() else None

    @cached_property
    def result(self) -> Json:
        """result.json; empty while the stage runs and after it was killed."""
        return read_result(self.folder / "result.json")

    @cached_property
    def progress(self) -> Json:
        """progress.json of the newest checkpoint: what a stage without a result knows of itself."""
        newest = reversed(by_step(self.folder / "checkpoints"))
        return next(filter(None, (read_result(folder / "progress.json") for folder in newest)), {})

    @property
    def resumes_after(self) -> int:
        """The step of the newest checkpoint that was written to its end; 0 without one."""
        written = [path for path in by_step(self.folder / "checkpoints") if (path / "manifest.json").exists()]
        return step_of(written[-1]) if written else 0

    @property
    def resumption(self) -> str:
        """Say from which step the same command resumes."""
        return f"the same command resumes {f'after step {n:,}' if (n := self.resumes_after) else 'at step 1'}"

    @cached_property
    def rows(self) -> list[dict[str, float]]:
        """metrics.csv: a row per logged step, only the cells that hold a number."""
        path = self.folder / "metrics.csv"
        rows = map(_numbers, read_table(path)[1]) if path.exists() else ()
        return [row for row in rows if as_number(row.get("step")) is not None]

    @property
    def columns(self) -> list[str]:
        """The metrics with at least one number, in the file's order of appearance."""
        return list(dict.fromkeys(name for row in self.rows for name in row))

    def series(self, column: str) -> list[tuple[float, float]]:
        """Return (step, value) of every row that has the column."""
        return [(row["step"], row[column]) for row in self.rows if column in row]

    @property
    def status(self) -> str:
        """The status in the result, "" without a result."""
        return str(self.result.get("status", ""))

    def number(self, key: str) -> float | None:
        """Return a finite number of the result, else None."""
        return as_number(self.result.get(key))

    @property
    def num_steps(self) -> int | None:
        """Optimizer steps in all: the result's, the plan's or its guess for an epoch; else None."""
        if isinstance(done := self.result.get("num_steps"), int):
            return done
        if not isinstance(self.plan, TrainingPlan):
            return None
        expected = None if isinstance(self.plan, BasePlan) else self.plan.expected_steps
        return self.plan.num_steps or expected

    @property
    def step(self) -> int | None:
        """The last finished step, as far as it is known."""
        if isinstance(step := self.result.get("step"), int):
            return step
        return int(self.rows[-1]["step"]) if self.rows else None

    @property
    def val_bpb(self) -> float | None:
        """The result's validation bits per byte, else the last that was logged."""
        if (value := self.number("val_bpb")) is not None:
            return value
        logged = self.series("val_bpb")
        return logged[-1][1] if logged else None

    @property
    def val_rows(self) -> Json:
        """Tokens, rows and checksum of the validation rows; empty in runs of older versions."""
        return self.result.get("val_rows") or self.progress.get("val_rows") or {}

    @property
    def metrics(self) -> dict[str, float]:
        """val_bpb, RL's pass@1, and every numeric metric of the chat tasks and of CORE, by name."""
        found = {"val_bpb": self.val_bpb} if self.val_bpb is not None else {}
        if isinstance(self.plan, RLPlan) and (passed := self.number("pass_at_1")) is not None:
            task = (self.plan.validation or {}).get("_target_", "").rpartition(".")[2]
            found[f"pass@1 of {task}"] = passed
        for content in (self.chat or self.result, self.core):
            found |= flat_numbers(content.get("metrics") or {})
        return found

    @property
    def item_files(self) -> dict[str, Path]:
        """The items on disk by task: of the chat tasks, and of CORE's."""
        return item_files(self.folder / "evaluation")

    @cached_property
    def chat(self) -> Json:
        """The scores of the last evaluation on chat tasks; empty in runs of older versions."""
        return read_result(self.folder / "evaluation" / "chat.json")

    @cached_property
    def core(self) -> Json:
        """The scores of CORE's tasks, as the last evaluation left them."""
        return read_result(self.folder / "evaluation" / "core.json")

    @property
    def changed(self) -> float:
        """The time when the stage last wrote something, in seconds since the epoch."""
        return max(_changed(self.folder / name) for name in TRACES) or _changed(self.folder)


@dataclass(frozen=True)
class Run:
    """A run's folder below `<root>/runs`."""

    folder: Path

    @property
    def name(self) -> str:
        return self.folder.name

    @property
    def root(self) -> Path:
        return self.folder.parents[1]

    @cached_property
    def stages(self) -> list[Stage]:
        """The stages that have a folder, in the pipeline's order."""
        return [Stage(name, self.folder / name) for name in STAGES if (self.folder / name).is_dir()]

    @cached_property
    def job(self) -> Json:
        """The job that ran last, with this version's keys; empty where none was kept."""
        kept = [folder / "job.yaml" for folder in (self.folder, *(stage.folder for stage in self.stages))]
        newest = max(kept, key=_changed)
        return read_mapping(newest) if newest.exists() else {}

    @property
    def locked(self) -> bool:
        """Tell whether a process on this machine holds the run's lock: then it runs now."""
        return is_held(self.folder / ".lock")

    @property
    def val_bpb(self) -> float | None:
        """The bits per byte of base; later stages are validated on conversations."""
        return next((stage.val_bpb for stage in self.stages if stage.name == "base"), None)

    @property
    def val_checksum(self) -> str | None:
        """The checksum of the rows that `val_bpb` is of; None where it is unknown."""
        return next((stage.val_rows.get("checksum") for stage in self.stages if stage.name == "base"), None)

    @property
    def changed(self) -> float:
        """The time when any of its stages last wrote something, in seconds since the epoch."""
        return max((stage.changed for stage in self.stages), default=_changed(self.folder))

    def states(self) -> dict[str, str]:
        """Return "done", "failed", "interrupted", "running" or "waiting" for each stage.

        While the lock is held, the first stage of the job with a folder and no result is the running one (an
        old result is deleted before a stage starts) and the unfinished ones after it wait. Without the lock,
        a stage that left no result was killed: "interrupted".
        """
        states = {stage.name: stage.status or "interrupted" for stage in self.stages}
        if not self.locked:
            return states
        begun = {stage.name for stage in self.stages if not stage.result}
        stages = [name for name in STAGES if name in (self.job.get("stages") or states)]
        running = next((name for name in stages if name in begun), None)
        if running:
            # A stage before it may have no folder: the tokenizer of another run serves.
            stages = stages[stages.index(running) :]
        states |= {name: "waiting" for name in stages if states.get(name) != "done"}
        states |= {running: "running"} if running else {}
        return {name: states[name] for name in STAGES if name in states}


def find_runs(root: Path) -> list[Run]:
    """Return every run below `root` that has a stage, newest first."""
    folder = run_folder(root, "")
    runs = []
    for path in folder.iterdir() if folder.is_dir() else ():
        try:
            runs += [run] if (run := Run(path)).stages else []
        except PermissionError:
            warnings.warn(f"{path} cannot be read and is left out; make it readable", stacklevel=2)
    return sorted(runs, key=lambda run: (-run.changed, run.name))


def open_run(root: Path, name: str) -> Run:
    """Return the run of that name; ValueError lists the runs there are."""
    runs = {run.name: run for run in find_runs(root)}
    if name in runs:
        return runs[name]
    if not runs:
        remedy = "make one with python -m nanolit.train experiment=demo, or set root=FOLDER"
        if (Path(root) / name).is_dir():  # root=runs/runs, say
            remedy = f"did you mean root={root.parent}?"
        raise ValueError(f"run={name}: there are no runs in {run_folder(root, '')}; {remedy}")
    near = difflib.get_close_matches(name, runs, n=1)
    hint = f"did you mean run={near[0]}? " if near else ""
    raise ValueError(f"there is no run {name} in {run_folder(root, '')}; {hint}available: {', '.join(runs)}")


def as_number(value: object) -> float | None:
    """Return `value` if it is a finite number, else None."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) <= LARGEST:
        return None
    return value


def flat_numbers(values: Mapping[str, object]) -> dict[str, float]:
    """Return the finite numbers among the leaves, by dotted key."""
    return {key: number for key, value in flatten(values).items() if (number := as_number(value)) is not None}


def read_result(path: Path) -> Json:
    """Return what a stage, a checkpoint or an evaluation has reached; empty where there is no file."""
    return read_json(path, Result, remedy=REMEDY, constant=as_null) if path.exists() else {}


def _numbers(row: Mapping[str, str]) -> dict[str, float]:
    """Return the cells of a CSV row that are numbers, without text, blanks and cells beyond the header."""
    numbers = {}
    for name, text in row.items():
        try:
            numbers[name] = float(text)
        except (TypeError, ValueError):
            continue
    return numbers


def _changed(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except OSError:
        return 0.0
