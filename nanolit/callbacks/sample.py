"""What the model writes while it learns: greedy continuations of fixed prompts, kept in samples.md."""

from pathlib import Path
from typing import Any

import lightning as L

from nanolit.callbacks.throughput import Clock, say
from nanolit.inference.engine import Engine
from nanolit.machine.device import rank
from nanolit.phases.core import Phase
from nanolit.tokenizer.bpe import Tokenizer

PROMPTS = (
    "The capital of France is",
    "The first thing that she saw was",
    "In the year 1900,",
    "Water is made of",
    "If yesterday was Friday, then tomorrow will be",
)


class WriteSamples(L.Callback):
    """Every `sample_every` steps (None: at the end only) and after the last step, on rank 0 alone."""

    def __init__(
        self, path: Path, *, tokenizer: Tokenizer, sample_every: int | None, max_tokens: int, clock: Clock
    ) -> None:
        self.path, self.tokenizer, self.sample_every = path, tokenizer, sample_every
        self.max_tokens, self.clock = max_tokens, clock

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
            samples = [self._continue(pl_module, prompt) for prompt in PROMPTS]
            pl_module.gpt.train()
        with self.path.open("a", encoding="utf-8") as file:
            file.write(f"## Step {step}\n\n" + "".join(f"- {text!r}\n" for text in samples) + "\n")
        say(f"  step {step}: {samples[0]!r}")

    def _continue(self, phase: Phase, prompt: str) -> str:
        ids = [self.tokenizer.bos_id, *self.tokenizer.encode(prompt)]
        engine = Engine(phase.gpt, self.tokenizer)
        written = [
            row[0] for row in engine.generate(ids, max_tokens=self.max_tokens, temperature=0.0, seed=0)
        ]
        return prompt + self.tokenizer.decode([token for token in written if token is not None])
