"""Validation bits per byte while training: on all ranks, with the raw module, off the training clock."""

import math
from collections.abc import Iterable
from typing import Any

import lightning as L
import numpy as np
from torch import Tensor

from nanolit.callbacks.throughput import Clock, Recorder, say
from nanolit.evaluation.bits_per_byte import bits_per_byte
from nanolit.machine.device import rank
from nanolit.phases.core import Phase


class EvaluateBitsPerByte(L.Callback):
    """Every `eval_every` steps (None: at the end only) and after the last step.

    `batches` are this rank's micro-batches of the validation rows, the same at every evaluation.
    """

    def __init__(
        self,
        batches: Iterable[tuple[Tensor, Tensor]],
        *,
        token_bytes: np.ndarray,
        eval_every: int | None,
        recorder: Recorder,
        clock: Clock,
    ) -> None:
        self.batches, self.token_bytes, self.eval_every = batches, token_bytes, eval_every
        self.recorder, self.clock = recorder, clock
        self.value = math.nan
        self.best = math.inf

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        assert isinstance(pl_module, Phase)
        step = pl_module.finished_steps
        if step != pl_module.num_steps and not (self.eval_every and step % self.eval_every == 0):
            return
        with self.clock.paused():
            pl_module.gpt.eval()
            self.value = bits_per_byte(pl_module.gpt, self.batches, self.token_bytes)
            pl_module.gpt.train()
            self.best = min(self.best, self.value)
            self.recorder.record(trainer, {"step": step, "val_bpb": self.value})
        if rank() == 0:
            say(f"  step {step}: validation {self.value:.4f} bits per byte")
