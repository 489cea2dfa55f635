"""Scores and samples of the raw model while it trains, off the training clock."""

import re
import time
from collections.abc import Callable, Mapping
from dataclasses import KW_ONLY, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import lightning as L

from nanolit.callbacks.progress import Clock
from nanolit.callbacks.throughput import Recorder
from nanolit.evaluation.chat_tasks import evaluate_tasks
from nanolit.evaluation.core import fitting, mean_of_part, others_in_words, replaced
from nanolit.evaluation.evaluators import Evaluator
from nanolit.evaluation.spans import OwnScorer
from nanolit.inference.engine import Engine
from nanolit.inference.request import Request
from nanolit.machine.device import rank
from nanolit.machine.paths import read_text, write_atomically
from nanolit.machine.terminal import say
from nanolit.phases.core import Phase
from nanolit.tasks.bundle import LABELS
from nanolit.tasks.task import Task
from nanolit.tokenizer.bpe import Tokenizer
from nanolit.tokenizer.conversation import render_prompt

CORE_PART = 500  # questions of each task while training goes on: nanochat's part, a ninth of the whole
TEXTS = (
    "The capital of France is",
    "The first thing that she saw was",
    "In the year 1900,",
    "Water is made of",
    "If yesterday was Friday, then tomorrow will be",
)
QUESTIONS = ("Who are you?", "What is 3+4?", "Spell the word: apple", "Why is the sky blue?")

Prompts = list[tuple[str, list[int]]]  # what a person reads, and its ids


@dataclass(eq=False)
class Evaluate(L.Callback):
    """Ask the `evaluator` every `eval_every` steps and after the last step."""

    evaluator: Evaluator
    _: KW_ONLY
    engine: Callable[[], Engine]
    eval_every: int
    recorder: Recorder
    clock: Clock
    has_told: bool = field(default=False, init=False)

    def on_train_batch_end(self, trainer: L.Trainer, phase: Phase, *_: object) -> None:
        step = phase.finished_steps
        if step != phase.num_steps and step % self.eval_every:
            return
        with self.clock.paused():
            phase.gpt.eval()
            scores = self.evaluator.evaluate(self.engine())
            phase.gpt.train()
            self.tell(step)
            self.recorder.record(trainer, {"step": step, **scores})

    def tell(self, step: int) -> None:
        """Say the scores on rank 0, the first time after what they are of."""
        if rank() != 0:
            return
        if not self.has_told and self.evaluator.about:
            say(f"  {self.evaluator.about}")
        self.has_told = True
        say(f"  step {step}: {self.evaluator.remark()}")


@dataclass(eq=False)
class EvaluateCore(L.Callback):
    """CORE of at most `max_per_task` questions a task every `core_every` steps; the whole comes after fit."""

    tokenizer: Tokenizer
    bundle: Path
    _: KW_ONLY
    core_every: int
    max_per_task: int
    recorder: Recorder
    clock: Clock

    def on_train_batch_end(self, trainer: L.Trainer, phase: Phase, *_: object) -> None:
        step = phase.finished_steps
        if step == phase.num_steps or step % self.core_every:
            return
        with self.clock.paused():
            scorer = OwnScorer(phase.gpt)
            mean, error = fitting(
                mean_of_part, scorer, self.tokenizer, self.bundle, max_per_task=self.max_per_task
            )
            if rank() == 0:
                name = f"CORE of at most {self.max_per_task} a task"
                say(f"  step {step}: {name} {mean:.4f} ± {error:.4f}{self.reservation}")
            self.recorder.record(trainer, {"step": step, "core_part": mean})

    @cached_property
    def reservation(self) -> str:
        """A remark for scores whose questions are not all CORE's, else ""."""
        told = others_in_words(replaced(self.bundle, LABELS))
        return f" ({told})" if told else ""


@dataclass(eq=False)
class EvaluateChat(L.Callback):
    """Accuracy on the chat tasks after the last step; `metrics` holds it by name, ChatCORE last.

    The items go to `folder`, always from the first: weights without a release have no name to resume by.
    """

    engine: Callable[[], Engine]
    tasks: list[Task]
    _: KW_ONLY
    max_tokens: int
    max_per_task: int | None
    folder: Path
    clock: Clock
    metrics: dict[str, float] = field(default_factory=dict, init=False)

    def on_train_batch_end(self, trainer: L.Trainer, phase: Phase, *_: object) -> None:
        if phase.finished_steps != phase.num_steps:
            return
        with self.clock.paused():
            phase.gpt.eval()
            for task in self.tasks:
                if task.conditions and rank() == 0:
                    say(f"  {task.name}: {task.conditions}")
            scores = evaluate_tasks(
                self.engine(),
                self.tasks,
                max_per_task=self.max_per_task,
                max_tokens=self.max_tokens,
                folder=self.folder,
                about={"asked": time.time()},
            )
            for name, value in scores:
                self.metrics[name] = value
                if rank() == 0:
                    say(f"  {name}: {value:.1%}")
            phase.gpt.train()


def sample_prompts(asked: Mapping[str, Any], tokenizer: Tokenizer, *, chats: bool) -> Prompts:
    """Return questions for a model that answers, else beginnings of texts; the usual where none are given."""
    if not chats:
        return [(text, [tokenizer.bos_id, *tokenizer.encode(text)]) for text in asked.get("texts", TEXTS)]
    return [
        (text, render_prompt({"messages": [{"role": "user", "content": text}]}, tokenizer))
        for text in asked.get("questions", QUESTIONS)
    ]


@dataclass(eq=False)
class WriteSamples(L.Callback):
    """Every `sample_every` steps (None: at the end only) and after the last step, on rank 0 alone."""

    path: Path
    _: KW_ONLY
    engine: Callable[[], Engine]
    prompts: Callable[[Tokenizer], Prompts]
    sample_every: int | None
    max_tokens: int
    clock: Clock
    # Of the whole file, which is written anew each time: never through a link that someone left there
    text: str = field(default="", init=False)

    def on_train_start(self, trainer: L.Trainer, phase: Phase) -> None:
        if rank() == 0 and self.path.exists():
            text = read_text(self.path, remedy="delete it, or move it away")
            self.text = until(text, phase.finished_steps)
            write_atomically(self.path, self.text)

    def on_train_batch_end(self, trainer: L.Trainer, phase: Phase, *_: object) -> None:
        step = phase.finished_steps
        if step != phase.num_steps and not (self.sample_every and step % self.sample_every == 0):
            return
        if rank() != 0:
            return
        with self.clock.paused():
            phase.gpt.eval()
            written = self._replies(self.engine())
            phase.gpt.train()
        lines = "".join(f"- {prompt!r} → {reply!r}\n" for prompt, reply in written)
        self.text += f"## Step {step}\n\n{lines}\n"
        write_atomically(self.path, self.text)
        say(f"  step {step}: {written[0][0]!r} → {written[0][1]!r}")

    def _replies(self, engine: Engine) -> list[tuple[str, str]]:
        """Return each prompt with the reply to it."""
        prompts = self.prompts(engine.tokenizer)
        requests = [
            Request(prompt_ids=ids, max_tokens=self.max_tokens, temperature=0.0) for _, ids in prompts
        ]
        replies = [completion.body_ids for (completion,) in engine.complete_all(requests)]
        engine.release()  # training needs the memory
        texts = map(engine.tokenizer.decode, replies)
        return list(zip([prompt for prompt, _ in prompts], texts, strict=True))


def until(text: str, step: int) -> str:
    """The samples up to a step: a run that goes on from there writes the later ones again."""
    before, *parts = re.split(r"^## Step ([0-9]{1,15})$", text, flags=re.MULTILINE)
    sections = zip(parts[::2], parts[1::2], strict=True)
    return before + "".join(f"## Step {its}{body}" for its, body in sections if int(its) <= step)
