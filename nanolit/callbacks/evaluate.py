"""Scores while training: on all ranks, with the raw module, off the training clock."""

import math
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from typing import Any

import lightning as L
import numpy as np
from torch import Tensor

from nanolit.callbacks.throughput import Clock, Recorder, say
from nanolit.evaluation.bits_per_byte import bits_per_byte, describe_rows
from nanolit.evaluation.chat_tasks import evaluate_generative, evaluate_tasks
from nanolit.inference.engine import Engine
from nanolit.machine.device import rank
from nanolit.phases.core import Phase
from nanolit.tasks.task import Task


class Evaluation(L.Callback, ABC):
    """Calls `evaluate` every `eval_every` steps (None: at the end only) and after the last step."""

    def __init__(self, *, eval_every: int | None, recorder: Recorder, clock: Clock) -> None:
        self.eval_every, self.recorder, self.clock = eval_every, recorder, clock

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        assert isinstance(pl_module, Phase)
        step = pl_module.finished_steps
        if step != pl_module.num_steps and not (self.eval_every and step % self.eval_every == 0):
            return
        with self.clock.paused():
            pl_module.gpt.eval()
            row = self.evaluate(pl_module)
            pl_module.gpt.train()
            self.recorder.record(trainer, {"step": step, **row})

    @abstractmethod
    def evaluate(self, phase: Phase) -> dict[str, float]:
        """The scores of now, as columns of metrics.csv; tells them to the person too."""

    @abstractmethod
    def state(self) -> dict[str, Any]:
        """The newest scores, for checkpoints and results."""

    @abstractmethod
    def load(self, state: dict[str, Any]) -> None:
        """Take up what `state` gave before the interruption."""


class EvaluateBitsPerByte(Evaluation):
    """Bits per byte of `batches`: this rank's micro-batches of the validation rows, always the same.

    `rows` identifies the validation rows of all ranks; it is told once, and stored beside the score.
    """

    def __init__(
        self,
        batches: Iterable[tuple[Tensor, Tensor]],
        *,
        rows: Mapping[str, Any],
        token_bytes: np.ndarray,
        **watching: Any,
    ) -> None:
        super().__init__(**watching)
        self.batches, self.rows, self.token_bytes = batches, dict(rows), token_bytes
        self._described = False
        self.value: float | None = None
        self.best: float | None = None

    def evaluate(self, phase: Phase) -> dict[str, float]:
        self.value = bits_per_byte(phase.gpt, self.batches, self.token_bytes)
        self.best = min(self.best or math.inf, self.value)
        if rank() == 0:
            if not self._described:
                say(f"  {describe_rows(self.rows)}")
                self._described = True
            say(f"  step {phase.finished_steps}: validation {self.value:.4f} bits per byte")
        return {"val_bpb": self.value}

    def state(self) -> dict[str, Any]:
        return {"val_bpb": self.value, "best_val_bpb": self.best, "val_rows": self.rows}

    def load(self, state: dict[str, Any]) -> None:
        before = state.get("val_rows", self.rows)  # absent in checkpoints of older versions
        if before == self.rows:
            self.value, self.best = state.get("val_bpb"), state.get("best_val_bpb")
        elif rank() == 0:
            say(f"the {describe_rows(before)} are replaced by others: the best score begins anew")


class EvaluatePasses(Evaluation):
    """pass@1 and pass@`num_samples` of a task, sampled as the rollouts are."""

    def __init__(
        self,
        engine: Engine,
        task: Task,
        *,
        num_samples: int,
        temperature: float,
        top_k: int | None,
        max_tokens: int,
        **watching: Any,
    ) -> None:
        super().__init__(**watching)
        self.engine, self.task, self.num_samples = engine, task, num_samples
        self.sampling = {"temperature": temperature, "top_k": top_k, "max_tokens": max_tokens}
        self.passes: tuple[float, float] | None = None

    def evaluate(self, phase: Phase) -> dict[str, float]:
        score = evaluate_generative(self.engine, self.task, num_samples=self.num_samples, **self.sampling)
        self.passes = (score.pass_at[0], score.pass_at[-1])
        if rank() == 0:
            say(
                f"  step {phase.finished_steps}: {self.task.name} pass@1 {score.pass_at[0]:.1%}, "
                f"pass@{self.num_samples} {score.pass_at[-1]:.1%}"
            )
        return {"pass_at_1": score.pass_at[0], "pass_at_k": score.pass_at[-1]}

    def state(self) -> dict[str, Any]:
        first, last = self.passes or (None, None)
        return {"pass_at_1": first, "pass_at_k": last}

    def load(self, state: dict[str, Any]) -> None:
        if state.get("pass_at_1") is not None:
            self.passes = (state["pass_at_1"], state["pass_at_k"])


class EvaluateChat(L.Callback):
    """Accuracy on the chat tasks after the last step; `metrics` holds it by name, ChatCORE last."""

    def __init__(
        self, engine: Engine, tasks: list[Task], *, max_tokens: int, max_problems: int | None, clock: Clock
    ) -> None:
        self.engine, self.tasks = engine, tasks
        self.max_tokens, self.max_problems, self.clock = max_tokens, max_problems, clock
        self.metrics: dict[str, float] = {}

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        assert isinstance(pl_module, Phase)
        if pl_module.finished_steps != pl_module.num_steps:
            return
        with self.clock.paused():
            pl_module.gpt.eval()
            scores = evaluate_tasks(
                self.engine, self.tasks, max_problems=self.max_problems, max_tokens=self.max_tokens
            )
            for name, value in scores:
                self.metrics[name] = value
                if rank() == 0:
                    say(f"  {name}: {value:.1%}")
            pl_module.gpt.train()
