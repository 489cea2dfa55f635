"""The training loop's hooks, shared by all phases: a phase adds only its loss.

One optimizer step, in the order in which Lightning calls us:

1. The loader gives a `Step`: the micro-batches of this rank, the number of learned tokens of the whole step
   over all ranks, and the position in the data after it.
2. `optimizer_step` hands the optimizer a closure and counts the step when it is done.
3. The closure runs `training_step`: the schedule sets learning rate, momentum and weight decay; each
   micro-batch but the last goes forward and backward at once; the last one's loss is returned.
4. Lightning calls `optimizer_zero_grad` (nothing to do: step 5 leaves no gradients) and runs the backward
   pass of the last micro-batch. Gradients of the micro-batches have added up in `.grad`.
5. `MuonAdamW.step` sums gradients over ranks, updates this rank's share, and gathers the parameters; then the
   gradients are cleared.
6. Callbacks see `on_train_batch_end`: metrics, evaluation, samples, checkpoint, interruption.

Losses are sums over learned tokens divided by the step's global number of them, so that neither the number of
ranks nor the micro-batch changes what is optimized.
"""

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import lightning as L
import torch
from lightning.pytorch.strategies import DDPStrategy
from torch import Tensor

from nanolit.config.build import build
from nanolit.config.schema import Job, Node
from nanolit.data.stream import Step
from nanolit.evaluation.evaluators import Evaluator
from nanolit.machine.device import world_size
from nanolit.machine.paths import PACKAGE, Json
from nanolit.model.gpt import GPT
from nanolit.optim.muon_adamw import MuonAdamW, build_groups
from nanolit.optim.scaling import GroupSettings
from nanolit.optim.schedule import Schedule
from nanolit.planning.plans import TrainingPlan
from nanolit.tokenizer.bpe import Tokenizer

Restore = Callable[[MuonAdamW], None]  # gives a fresh optimizer a checkpoint's state


def compile_gpt(gpt: GPT) -> Callable[..., Tensor]:
    """Return `gpt`, to be compiled at its first call; a later process finds the result in torch's cache."""
    import torch._functorch.config as functorch  # slow, and only needed here
    import torch.compiler.config as compiler

    # Of our operators the cache's key has the names alone; this puts their gradients' source into it
    sources = [path for name in ("kernels", "model") for path in sorted((PACKAGE / name).glob("*.py"))]
    compiler.cache_key_tag = hashlib.sha256(b"".join(map(Path.read_bytes, sources))).hexdigest()
    # Off by default, since a function might use what its graph doesn't show; ours use their arguments alone
    functorch.autograd_cache_allow_custom_autograd_functions = True
    # Every micro-batch has one shape, so it may be a constant of the graph; the first step of a d12 takes 29
    # s on an H200, 5 s from the cache (LOG.md, 2026-11-23)
    return torch.compile(gpt, dynamic=False)


class StoppedInStep(Exception):
    """A step was given up between two micro-batches: all else is as the step before it left it."""


class Phase(L.LightningModule):
    """A GPT, its optimizer and its schedule; `loss` says what is optimized.

    `groups` maps a role to its final settings: learning rates are already scaled.
    """

    # A resumed stage is a new Trainer for the steps that are left, so Lightning's loop state is never
    # restored
    log_every = 10  # steps between two readings of the loss: each one waits for the device

    def __init__(
        self,
        gpt: GPT,
        *,
        groups: Mapping[str, GroupSettings],
        optimizer: Node,
        schedule: Schedule,
        num_steps: int,
        finished_steps: int = 0,
        compile: bool = False,
        restore: Restore | None = None,
    ) -> None:
        super().__init__()
        self.gpt = gpt
        self.groups, self.optimizer_settings, self.schedule = groups, optimizer, schedule
        # The schedule's clock. Lightning's global_step begins at 0 in every process, this goes on after a
        # resume
        self.num_steps, self.finished_steps = num_steps, finished_steps
        self.restore = restore
        self.stops_in_step: Callable[[], bool] = lambda: False  # set by callbacks.saving; collective
        self.step_loss = torch.zeros(())
        self.num_tokens = 0  # learned by the last step, over all ranks
        self.num_processed = 0  # what the model took in for them: prompts and padding too
        self.metrics: dict[str, float] = {}  # what the last step measured besides, over all ranks
        self.position: Json = {}
        self.epoch = self.cropped_fraction = 0.0
        # A plain callable, not a submodule: parameter names and evaluation keep to the raw `gpt`. Otherwise
        # every name in a checkpoint would begin with `_orig_mod.`, and each new length of text would compile.
        self.forward_gpt: Callable[..., Tensor] = compile_gpt(gpt) if compile else gpt

    @classmethod
    def of(cls, job: Job, plan: TrainingPlan, inputs: "Inputs", *, num_steps: int, **own: Any) -> Self:
        """Join the plan's rates with the recipe's optimizer; both reach a phase here and nowhere else."""
        return cls(
            inputs.gpt,
            groups=plan.groups,
            optimizer=optimizer_settings(job),
            schedule=build(plan.schedule),
            num_steps=num_steps,
            finished_steps=inputs.finished_steps,
            compile=inputs.compile,
            restore=inputs.restore,
            **own,
        )

    def loss(self, ids_BT: Tensor, targets_BT: Tensor) -> Tensor:
        """Return the sum of this micro-batch's loss over its learned tokens, in nats."""
        # The model answers with the loss itself, because the logits of all tokens never exist
        # (kernels/loss.py)
        return self.forward_gpt(ids_BT, targets_BT, reduction="sum")

    def configure_optimizers(self) -> MuonAdamW:
        """Build the optimizer; Lightning calls this once, with the model on its device."""
        # One optimizer for Muon and AdamW: with two, Lightning hands accumulation and the closure back to us.
        # There is no lr_scheduler, because Lightning's move only rates: see set_multipliers.
        groups = build_groups(self.gpt.named_parameters(), self.gpt.parameter_roles(), self.groups)
        self.optimizer = MuonAdamW(groups, **self.optimizer_settings)
        if self.restore:
            self.restore(self.optimizer)
        return self.optimizer

    def set_multipliers(self) -> None:
        """Tell the optimizer this step's learning rates, momentum and weight decay."""
        self.optimizer.set_multipliers(**vars(self.schedule.at(self.finished_steps, self.num_steps)))

    def training_step(self, batch: Step, _index: int) -> Tensor | None:
        """Accumulate the gradients of a whole optimizer step; return the last micro-batch's loss."""
        # One loader item is one optimizer step, not one micro-batch. Lightning's batch count, global_step,
        # max_steps and validation interval then all count the same thing, its accumulate_grad_batches is not
        # needed, and the number of learned tokens is known before the first backward pass.
        self.set_multipliers()
        total = torch.zeros((), device=self.device)
        loss = total
        for index, micro_batch in enumerate(batch.micro_batches):
            if index:
                if self.stops_in_step():
                    raise StoppedInStep
                loss.backward()
            ids_BT, targets_BT = (tensor.to(self.device, non_blocking=True) for tensor in micro_batch)
            # Σ / global count, not a mean of means: finetuning's micro-batches learn different numbers of
            # tokens, and a mean would weigh a token more where there are few. The optimizer sums over ranks
            # to match.
            loss = self.loss(ids_BT, targets_BT) / batch.num_tokens
            # Kept on the device: reading it here would make the CPU wait for the GPU at every micro-batch
            total = total + loss.detach()
        self.step_loss, self.num_tokens = total, batch.num_tokens
        self.num_processed = world_size() * sum(ids_BT.numel() for ids_BT, _ in batch.micro_batches)
        self.position, self.epoch = batch.position, batch.epoch
        self.cropped_fraction = batch.cropped_fraction
        return loss

    def optimizer_step(
        self, epoch: int, batch_idx: int, optimizer: Any, optimizer_closure: Any = None
    ) -> None:
        """Run the closure and update, then clear the gradients for the next step's first micro-batch."""
        optimizer.step(closure=optimizer_closure)
        self.optimizer.zero_grad(set_to_none=True)
        self.finished_steps += 1

    def optimizer_zero_grad(self, epoch: int, batch_idx: int, optimizer: Any) -> None:
        """Do nothing: Lightning calls this in the closure, when gradients hold the earlier micro-batches'."""

    def transfer_batch_to_device(self, batch: Step, device: torch.device, dataloader_idx: int) -> Step:
        """Leave the batch where it is: training_step moves one micro-batch at a time."""
        return batch


class ShardedOptimizerStrategy(DDPStrategy):
    """Lightning's DDP for the process group, ranks and reductions; the optimizer exchanges the gradients.

    Wrapping the module would all-reduce every gradient as well, twice the communication.
    """

    def configure_ddp(self) -> None:
        """Give every rank rank 0's parameters and buffers, instead of wrapping the module."""
        assert self.model is not None
        for tensor in (*self.model.parameters(), *self.model.buffers()):
            torch.distributed.broadcast(tensor.detach(), 0)


@dataclass(frozen=True, kw_only=True)
class Inputs:
    """Everything that a phase is built from besides its job and its plan."""

    gpt: GPT
    tokenizer: Tokenizer
    compile: bool
    finished_steps: int
    restore: Restore | None
    rank: int


def optimizer_settings(job: Job) -> Node:
    """Return MuonAdamW's arguments but its groups; updates are compiled on a GPU unless compile=false."""
    settings = {name: value for name, value in job["recipe"]["optimizer"].items() if name != "_target_"}
    return {"compile": False if job["compile"] is False else None, **settings}


@dataclass(kw_only=True)
class Training:
    """A phase, the stream of its steps, and its score; `left_out` says what data is never seen, or ""."""

    phase: Phase
    stream: Any  # PretrainStream, ConversationStream, PromptStream, or what a benchmark puts in their place
    evaluator: Evaluator
    left_out: str = ""
