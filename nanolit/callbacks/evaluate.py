"""Scores while training: on all ranks, with the raw module, off the training clock."""

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import lightning as L

from nanolit.callbacks.throughput import Recorder
from nanolit.evaluation.chat_tasks import evaluate_tasks
from nanolit.evaluation.core import fitting, mean_of_part
from nanolit.evaluation.evaluators import Evaluator
from nanolit.evaluation.spans import OwnScorer
from nanolit.inference.engine import Engine
from nanolit.machine.clock import Clock
from nanolit.machine.device import rank
from nanolit.machine.terminal import say
from nanolit.phases.core import Phase
from nanolit.tasks.task import Task
from nanolit.tokenizer.bpe import Tokenizer

CORE_PART = 500  # questions of each task while training goes on: nanochat's part, a ninth of the whole


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


class EvaluateCore(L.Callback):
    """CORE of at most `max_per_task` questions a task every `core_every` steps; the whole comes after fit."""

    def __init__(
        self,
        tokenizer: Tokenizer,
        bundle: Path,
        *,
        core_every: int,
        max_per_task: int,
        recorder: Recorder,
        clock: Clock,
    ) -> None:
        self.tokenizer, self.bundle = tokenizer, bundle
        self.core_every, self.max_per_task = core_every, max_per_task
        self.recorder, self.clock = recorder, clock

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: object, batch: object, batch_idx: int
    ) -> None:
        assert isinstance(pl_module, Phase)
        step = pl_module.finished_steps
        if step == pl_module.num_steps or step % self.core_every:
            return
        with self.clock.paused():
            scorer = OwnScorer(pl_module.gpt)
            mean, error = fitting(
                mean_of_part, scorer, self.tokenizer, self.bundle, max_per_task=self.max_per_task
            )
            if rank() == 0:
                say(f"  step {step}: CORE of at most {self.max_per_task} a task {mean:.4f} ± {error:.4f}")
            self.recorder.record(trainer, {"step": step, "core_part": mean})


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
            for task in self.tasks:
                if task.conditions and rank() == 0:
                    say(f"  {task.name}: {task.conditions}")
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
