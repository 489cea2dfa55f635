"""What callbacks read of a phase and its trainer, without a model."""

from types import SimpleNamespace
from typing import Any

import lightning as L
import torch

from nanolit.phases.core import Phase


class StandInPhase(Phase):
    """A phase whose steps are said to be done."""

    def __init__(self, *, num_steps: int, num_tokens: int = 0, num_processed: int = 0, loss: float = 2.0):
        L.LightningModule.__init__(self)
        self.gpt: Any = None
        self.num_steps, self.finished_steps = num_steps, 0
        self.num_tokens, self.num_processed = num_tokens, num_processed
        self.metrics = {}
        self.step_loss = torch.tensor(loss)
        self.epoch = self.cropped_fraction = 0.0
        self.schedule: Any = SimpleNamespace(at=lambda *_: SimpleNamespace(lr=1.0))


def trainer_of(world_size: int) -> Any:
    strategy = SimpleNamespace(reduce=lambda tensor, reduce_op: tensor)
    return SimpleNamespace(strategy=strategy, world_size=world_size, loggers=[])
