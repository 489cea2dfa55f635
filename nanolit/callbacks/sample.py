"""What the model writes while it learns: greedy replies to fixed prompts, kept in samples.md."""

import re
from pathlib import Path
from typing import Any

import lightning as L

from nanolit.inference.engine import Engine
from nanolit.inference.request import Request
from nanolit.machine.clock import Clock
from nanolit.machine.device import rank
from nanolit.machine.paths import read_text, write_atomically
from nanolit.machine.terminal import say
from nanolit.phases.core import Phase
from nanolit.tokenizer.bpe import Tokenizer
from nanolit.tokenizer.conversation import render_prompt

TEXTS = (
    "The capital of France is",
    "The first thing that she saw was",
    "In the year 1900,",
    "Water is made of",
    "If yesterday was Friday, then tomorrow will be",
)
QUESTIONS = ("Who are you?", "What is 3+4?", "Spell the word: apple", "Why is the sky blue?")

Prompts = list[tuple[str, list[int]]]  # what a person reads, and its ids


def text_prompts(tokenizer: Tokenizer) -> Prompts:
    """Beginnings of texts, for a model that continues them."""
    return [(text, [tokenizer.bos_id, *tokenizer.encode(text)]) for text in TEXTS]


def chat_prompts(tokenizer: Tokenizer) -> Prompts:
    """Questions, for a model that answers them."""
    messages = [
        [{"role": "user", "content": text}, {"role": "assistant", "content": "-"}] for text in QUESTIONS
    ]
    rendered = [render_prompt({"messages": turns}, tokenizer) for turns in messages]
    return list(zip(QUESTIONS, rendered, strict=True))


class WriteSamples(L.Callback):
    """Every `sample_every` steps (None: at the end only) and after the last step, on rank 0 alone."""

    def __init__(
        self,
        path: Path,
        *,
        engine: Engine,
        prompts: Prompts,
        sample_every: int | None,
        max_tokens: int,
        clock: Clock,
    ) -> None:
        self.path, self.engine, self.prompts = path, engine, prompts
        self.sample_every, self.max_tokens, self.clock = sample_every, max_tokens, clock

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        assert isinstance(pl_module, Phase)
        if rank() == 0 and self.path.exists():
            text = read_text(self.path, remedy="delete it, or move it away")
            write_atomically(self.path, until(text, pl_module.finished_steps))

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        assert isinstance(pl_module, Phase)
        step = pl_module.finished_steps
        if step != pl_module.num_steps and not (self.sample_every and step % self.sample_every == 0):
            return
        if rank() != 0:
            return
        with self.clock.paused():
            pl_module.gpt.eval()
            written = list(zip([prompt for prompt, _ in self.prompts], self._replies(), strict=True))
            pl_module.gpt.train()
        with self.path.open("a", encoding="utf-8") as file:
            file.write(
                f"## Step {step}\n\n" + "".join(f"- {p!r} → {reply!r}\n" for p, reply in written) + "\n"
            )
        say(f"  step {step}: {written[0][0]!r} → {written[0][1]!r}")

    def _replies(self) -> list[str]:
        requests = [
            Request(prompt_ids=ids, max_tokens=self.max_tokens, temperature=0.0) for _, ids in self.prompts
        ]
        replies = [completion.body_ids for (completion,) in self.engine.complete_all(requests)]
        self.engine.release()  # training needs the memory
        return [self.engine.tokenizer.decode(ids) for ids in replies]


def until(text: str, step: int) -> str:
    """The samples up to a step: a run that goes on from there writes the later ones again."""
    before, *parts = re.split(r"^## Step (\d+)$", text, flags=re.MULTILINE)
    sections = zip(parts[::2], parts[1::2], strict=True)
    return before + "".join(f"## Step {its}{body}" for its, body in sections if int(its) <= step)
