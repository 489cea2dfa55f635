"""Scores while training: on all ranks, with the raw module, off the training clock."""

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import lightning as L

from nanolit.callbacks.throughput import Clock, Recorder, say
from nanolit.evaluation.chat_tasks import evaluate_tasks
from nanolit.evaluation.evaluators import Evaluator
from nanolit.inference.engine import Engine
from nanolit.machine.device import rank
from nanolit.phases.core import Phase
from nanolit.tasks.task import Task


class Evaluate(L.Callback):
    """Ask the `evaluator` every `eval_every` steps and after the last step."""

    def __init__(
        self, evaluator: Evaluator, *, engine: Engine, eval_every: int, recorder: Recorder, clock: Clock
    ) -> None:
        self.evaluator, self.engine, self.eval_every = evaluator, engine, eval_every
        self.recorder, self.clock = recorder, clock
        self.about = evaluator.about

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: object, batch: object, batch_idx: int
    ) -> None:
        assert isinstance(pl_module, Phase)
        step = pl_module.finished_steps
        if step != pl_module.num_steps and step % self.eval_every:
            return
        with self.clock.paused():
            pl_module.gpt.eval()
            scores = self.evaluator.evaluate(self.engine)
            pl_module.gpt.train()
            self.tell(step)
            self.recorder.record(trainer, {"step": step, **scores})

    def tell(self, step: int) -> None:
        """Say the scores on rank 0, the first time after what they are of."""
        if rank() != 0:
            return
        if self.about:
            say(f"  {self.about}")
        self.about = ""
        say(f"  step {step}: {self.evaluator.remark()}")

    def load(self, state: Mapping[str, Any]) -> None:
        """Take over the scores of before an interruption."""
        remark = self.evaluator.load(state)
        if remark and rank() == 0:
            say(remark)


class EvaluateChat(L.Callback):
    """Accuracy on the chat tasks after the last step; `metrics` holds it by name, ChatCORE last.

    The items go to `folder`, always anew: weights that have no release yet have no name to resume by.
    """

    def __init__(
        self,
        engine: Engine,
        tasks: list[Task],
        *,
        max_tokens: int,
        max_problems: int | None,
        folder: Path,
        clock: Clock,
    ) -> None:
        self.engine, self.tasks, self.folder = engine, tasks, folder
        self.max_tokens, self.max_problems, self.clock = max_tokens, max_problems, clock
        self.metrics: dict[str, float] = {}

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: object, batch: object, batch_idx: int
    ) -> None:
        assert isinstance(pl_module, Phase)
        if pl_module.finished_steps != pl_module.num_steps:
            return
        with self.clock.paused():
            pl_module.gpt.eval()
            scores = evaluate_tasks(
                self.engine,
                self.tasks,
                max_problems=self.max_problems,
                max_tokens=self.max_tokens,
                folder=self.folder,
                about={"asked": time.time()},
            )
            for name, value in scores:
                self.metrics[name] = value
                if rank() == 0:
                    say(f"  {name}: {value:.1%}")
            pl_module.gpt.train()
