"""Speed and loss: a row of metrics.csv for programs, and what the progress of people is told."""

import csv
import gc
import math
import re
import statistics
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import lightning as L
import torch
from lightning.pytorch.loggers import WandbLogger

from nanolit.callbacks.progress import Clock, Progress
from nanolit.machine.paths import read_table, write_atomically
from nanolit.phases.core import Phase

COLUMNS = (
    "step",
    "loss",
    "val_bpb",
    "val_loss",
    "core_part",
    "core",
    "lr_multiplier",
    "tokens",
    "flops",
    "seconds",
    "tokens_per_second",
    "mfu",
    "reward",
    "sequence_length",
    "pass_at_1",
    "pass_at_k",
    "epoch",
    "cropped_fraction",
    "data_wait_fraction",
)


class Recorder:
    """Rank 0's writer of metrics: a row of metrics.csv always, the Lightning logger where there is one.

    A resumed run drops the rows that it will write again, so that its file equals that of one never stopped.
    """

    def __init__(
        self,
        path: Path,
        *,
        finished_steps: int,
        enabled: bool,
        log_every: int = 0,
        progress: Progress | None = None,
    ) -> None:
        self.path, self.enabled, self.progress = path, enabled, progress
        if not enabled:
            return
        rows = history(path, finished_steps, log_every=log_every) if finished_steps else []
        lines = [",".join(COLUMNS), *(",".join(row.get(name, "") for name in COLUMNS) for row in rows)]
        write_atomically(path, "\n".join(lines) + "\n")

    def record(self, trainer: L.Trainer, row: dict[str, float | int]) -> None:
        """Write one row; floats keep every digit, so that equal runs have equal files."""
        if not self.enabled:
            return
        unknown = row.keys() - set(COLUMNS)
        assert not unknown, unknown
        if self.progress:
            self.progress.note(row)
        with self.path.open("a", newline="", encoding="utf-8") as file:
            csv.writer(file, lineterminator="\n").writerow([row.get(name, "") for name in COLUMNS])
        step = int(row["step"])
        for logger in trainer.loggers:
            if isinstance(logger, WandbLogger):  # log_metrics lets W&B count from 0 in every process
                logger.experiment.log({**row, "trainer/global_step": step}, step=step)
            else:
                logger.log_metrics(dict(row), step=step)


def history(path: Path, finished_steps: int, *, log_every: int) -> list[dict[str, str]]:
    """Return the rows up to the step that a run resumes after; a warning says what is damaged or missing.

    A file that loses lines by that is kept as metrics.damaged.csv.
    """
    names, table = read_table(path) if path.exists() else ([], [])
    sound = [row for row in table if len(row) == len(names) and is_row(row)]
    rows = [row for row in sound if int(row["step"]) <= finished_steps]
    logged = {int(row["step"]) for row in rows if row.get("loss")}
    due = {1, *range(log_every, finished_steps + 1, log_every)} if log_every else set()
    broken = len(table) - len(sound)
    if broken or due - logged:
        told = [f"{broken:,} of its lines are not rows"] if broken else []
        told += [f"{len(due - logged):,} of {len(due):,} logged steps are missing"] if due - logged else []
        kept = path.with_name("metrics.damaged.csv")
        if table:
            write_atomically(kept, path.read_bytes())  # never through a link that a stranger left there
            told += [f"its old content is in {kept.name}"]
        warnings.warn(f"{path} is damaged up to step {finished_steps:,}: {', '.join(told)}", stacklevel=2)
    return rows


def is_row(row: dict[str, str]) -> bool:
    """Tell whether a line of metrics.csv is a step and numbers."""
    try:
        return re.fullmatch(r"[0-9]{1,15}", row["step"]) is not None and all(
            math.isfinite(float(cell)) or cell in ("nan", "inf", "-inf") for cell in row.values() if cell
        )
    except (KeyError, ValueError):
        return False


class Mark(NamedTuple):
    """The counts at a step that was logged, or at the start."""

    step: int
    tokens: int
    processed: int
    seconds: float
    waited: float


@dataclass(eq=False, kw_only=True)
class Throughput(L.Callback):
    """Every `log_every` steps: the step's loss over all ranks, tokens per second, MFU.

    The loss stays on the device between those steps: reading it there and then would stall the GPU.
    """

    recorder: Recorder
    clock: Clock
    log_every: int
    flops_per_token: float
    peak_flops: float | None  # of one device, a second; None: no MFU, as on a CPU
    tokens: int = 0  # learned so far
    processed: int = 0  # taken in by the model so far, which FLOPs and MFU count
    progress: Progress | None = None
    waited: Callable[[], float] | None = None  # the seconds that this rank has waited for its data
    earlier: Mapping[str, float | None] = field(default_factory=dict)  # measured before the stage was resumed

    def __post_init__(self) -> None:
        self.loss = self._earlier("loss")  # these are as last logged
        self.epoch = self._earlier("epoch")
        self.cropped_fraction = self._earlier("cropped_fraction")
        self.data_wait_fraction = self._earlier("data_wait_fraction")
        self.speeds: list[float] = []

    def _earlier(self, name: str) -> float:
        value = self.earlier.get(name)
        return math.nan if value is None else value

    def on_train_start(self, trainer: L.Trainer, phase: Phase) -> None:
        self.clock.restart()
        self._first = self._last = self._mark(phase.finished_steps)

    def _mark(self, step: int) -> Mark:
        waited = self.waited() if self.waited else 0.0
        return Mark(step, self.tokens, self.processed, self.clock.seconds, waited)

    def on_train_batch_end(
        self, trainer: L.Trainer, phase: Phase, outputs: object, batch: object, batch_idx: int
    ) -> None:
        step = phase.finished_steps
        self.tokens += phase.num_tokens
        self.processed += phase.num_processed
        if batch_idx == 0:
            self._freeze_garbage()
        if step % self.log_every == 0 or step in (1, phase.num_steps):
            self._log(trainer, phase, step)
        elif self.progress and trainer.world_size == 1 and phase.device.type == "cpu":
            self.progress.note({"loss": float(phase.step_loss)})  # nobody has to wait for it there
        if self.progress:
            self.progress.advance(step)

    def _freeze_garbage(self) -> None:
        """Keep the collector off what the first step built: graphs and caches live as long as the run."""
        gc.collect()
        gc.freeze()

    def teardown(self, trainer: L.Trainer, phase: Phase, stage: str) -> None:
        gc.unfreeze()  # the next stage of this process needs the memory

    def _log(self, trainer: L.Trainer, phase: Phase, step: int) -> None:
        self.loss = float(trainer.strategy.reduce(phase.step_loss, reduce_op="sum"))
        before, now = self._last, self._mark(step)
        self._last = now
        stretch = max(now.seconds - before.seconds, 1e-9)
        speed = (now.tokens - before.tokens) / stretch
        if len(self.speeds) or before.step != step - 1 or self.log_every == 1:
            self.speeds.append(speed)
        row: dict[str, float | int] = {
            "step": step,
            "loss": self.loss,
            "lr_multiplier": phase.schedule.at(step - 1, phase.num_steps).lr,
            "tokens": self.tokens,
            "flops": self.processed * self.flops_per_token,
            "seconds": round(now.seconds, 3),
            "tokens_per_second": round(speed, 1),
        }
        if self.peak_flops:
            flops_per_second = (now.processed - before.processed) * self.flops_per_token / stretch
            row["mfu"] = round(flops_per_second / (self.peak_flops * trainer.world_size), 4)
        progress = torch.tensor([phase.epoch, phase.cropped_fraction], device=phase.device)
        self.epoch, self.cropped_fraction = trainer.strategy.reduce(progress, reduce_op="mean").tolist()
        row["epoch"] = round(self.epoch, 4)
        row["cropped_fraction"] = round(self.cropped_fraction, 4)
        if self.waited:
            row["data_wait_fraction"] = round((now.waited - before.waited) / stretch, 4)
            first = self._first
            self.data_wait_fraction = (now.waited - first.waited) / max(now.seconds - first.seconds, 1e-9)
        row.update(phase.metrics)
        self.recorder.record(trainer, row)

    def tokens_per_second(self) -> float:
        """The median over the logged stretches, without the first, which holds the compilation."""
        if not self.speeds:
            return self._earlier("tokens_per_second")
        return statistics.median(self.speeds[1:] or self.speeds)
