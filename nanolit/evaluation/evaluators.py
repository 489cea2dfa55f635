"""Evaluators that score a stage while it trains. callbacks/evaluate.py calls them; none knows of trainers."""

import math
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
from torch import Tensor

from nanolit.evaluation.bits_per_byte import validation_scores
from nanolit.evaluation.chat_tasks import evaluate_generative
from nanolit.inference.engine import Engine
from nanolit.tasks.task import Task


class Evaluator(ABC):
    """Scores a model on all ranks, and keeps the newest scores for checkpoints and results."""

    about = ""  # a line that is said once, before the first score

    @abstractmethod
    def evaluate(self, engine: Engine) -> dict[str, float]:
        """Return the scores as columns of metrics.csv."""

    @abstractmethod
    def remark(self) -> str:
        """Return the newest scores as words for a person."""

    @abstractmethod
    def state(self) -> dict[str, Any]:
        """Return the newest scores; all None before the first."""

    @abstractmethod
    def load(self, state: Mapping[str, Any]) -> str:
        """Take over what `state` returned before an interruption; return what to tell about it, or ""."""


class BitsPerByte(Evaluator):
    """Bits per byte of `batches`: this rank's micro-batches of the validation rows, always the same.

    `rows` identifies the validation rows of all ranks; it is stored beside the score.
    """

    def __init__(
        self, batches: Iterable[tuple[Tensor, Tensor]], *, rows: Mapping[str, Any], token_bytes: np.ndarray
    ) -> None:
        self.batches, self.rows, self.token_bytes = batches, dict(rows), token_bytes
        self.value: float | None = None
        self.best: float | None = None

    @property
    def about(self) -> str:
        return describe_rows(self.rows)

    def evaluate(self, engine: Engine) -> dict[str, float]:
        self.value, loss = validation_scores(engine.model, self.batches, self.token_bytes)
        self.best = min(self.best or math.inf, self.value)
        return {"val_bpb": self.value, "val_loss": loss}

    def remark(self) -> str:
        return f"validation {self.value:.4f} bits per byte"

    def state(self) -> dict[str, Any]:
        return {"val_bpb": self.value, "best_val_bpb": self.best, "val_rows": self.rows}

    def load(self, state: Mapping[str, Any]) -> str:
        before = state.get("val_rows", self.rows)  # absent in checkpoints of older versions
        if before != self.rows:
            return f"the {describe_rows(before)} changed: the best score starts again"
        self.value, self.best = state.get("val_bpb"), state.get("best_val_bpb")
        return ""


def describe_rows(rows: Mapping[str, Any]) -> str:
    """Return the line that says which rows bits per byte are of; figures of other rows don't compare."""
    return f"validation rows: {rows['tokens']:,} tokens in {rows['rows']:,} rows, checksum {rows['checksum']}"


# Raise it whenever the same seed draws other answers. 1: one prompt at a time, random numbers by SHA-256
SAMPLING = 2


class Passes(Evaluator):
    """pass@1 and pass@`num_samples` of a task, sampled as the rollouts are."""

    def __init__(
        self, task: Task, *, num_samples: int, temperature: float, top_k: int | None, max_tokens: int
    ) -> None:
        self.task, self.num_samples = task, num_samples
        self.sampling = {"temperature": temperature, "top_k": top_k, "max_tokens": max_tokens}
        self.passes: tuple[float, float] | None = None

    def evaluate(self, engine: Engine) -> dict[str, float]:
        score = evaluate_generative(engine, self.task, num_samples=self.num_samples, **self.sampling)
        engine.release()  # training needs the memory
        self.passes = (score.pass_at[0], score.pass_at[-1])
        return {"pass_at_1": self.passes[0], "pass_at_k": self.passes[1]}

    def remark(self) -> str:
        first, last = self.passes or (math.nan, math.nan)
        return f"{self.task.name} pass@1 {first:.1%}, pass@{self.num_samples} {last:.1%}"

    def state(self) -> dict[str, Any]:
        first, last = self.passes or (None, None)
        return {"pass_at_1": first, "pass_at_k": last, "sampling": SAMPLING}

    def load(self, state: Mapping[str, Any]) -> str:
        first, last = state.get("pass_at_1"), state.get("pass_at_k")
        if first is not None and last is not None:
            self.passes = (first, last)
        if "step" in state and state.get("sampling", 1) != SAMPLING:
            return (
                f"an older version sampled up to step {state['step']:,}; from here on the same seed gives "
                "other answers, so the run will end differently"
            )
        return ""
