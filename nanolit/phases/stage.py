"""What a phase is built from, and what building it gives."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from nanolit.config.build import build
from nanolit.evaluation.evaluators import Evaluator
from nanolit.model.gpt import GPT
from nanolit.optim.muon_adamw import MuonAdamW
from nanolit.phases.core import Phase
from nanolit.planning.derivation import TrainingPlan
from nanolit.tokenizer.bpe import Tokenizer


@dataclass(frozen=True, kw_only=True)
class Inputs:
    """What every phase needs besides its job and its plan; `optimizer` holds MuonAdamW's settings."""

    gpt: GPT
    tokenizer: Tokenizer
    optimizer: dict[str, Any]
    compile: bool
    finished_steps: int
    restore: Callable[[MuonAdamW], None] | None
    rank: int

    def training(self, plan: TrainingPlan) -> dict[str, Any]:
        """Return the arguments that every Phase's constructor has, but the number of steps."""
        return {
            "gpt": self.gpt,
            "groups": plan.groups,
            "optimizer": self.optimizer,
            "schedule": build(plan.schedule),
            "finished_steps": self.finished_steps,
            "compile": self.compile,
            "restore": self.restore,
        }


@dataclass(frozen=True, kw_only=True)
class Training:
    """A phase, the stream of its steps, and its score; `left_out` says what data is never seen, or "" ."""

    phase: Phase
    stream: Any  # PretrainStream, ConversationStream or PromptStream: all load_position and yield steps
    evaluator: Evaluator
    left_out: str = ""
