"""Measure bits per byte over a whole run, ours or nanochat's on exactly the same rows.

python -m benchmarks learning model=d12 data=local data.path=FOLDER total_batch=262144 steps=352
… peer=NANOCHAT who=peer        train nanochat's model with nanochat's optimizer on our rows
… peer=NANOCHAT weights=peer    train ours from nanochat's initial weights, to pair runs of the same seed

Runs a bare loop over the stage's own stream and validation rows, without Lightning, checkpoints or samples.
NANOCHAT is a checkout of July 2026; the packages that it imports must be installed. Both use our learning
rates and schedule, which equal nanochat's group by group.
"""

import functools
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from benchmarks import results
from benchmarks.parts import parts_of, peer_model
from benchmarks.train import about, back_on_device, bare_step, device_name, set_rates, synchronize
from nanolit.data.stream import Step
from nanolit.evaluation.bits_per_byte import bits_per_byte
from nanolit.evaluation.evaluators import BitsPerByte
from nanolit.jobs.parts import Parts
from nanolit.jobs.worker import quieten_libraries
from nanolit.machine.arguments import read_some, setting
from nanolit.model.nanochat import canonical_name
from nanolit.phases.core import Phase

# Steps whose loss is kept: early ones tell
LOSSES = (*range(1, 12), 21, 31, 41, 61, 81, 101)
UNTIMED = 10  # steps, in which compiling falls


@dataclass(frozen=True, kw_only=True)
class Settings(results.Kept):
    """Settings of the learning benchmark."""

    steps: int = setting("length of the run in steps, for which the schedule is made", 352, least=1)
    stop: int | None = setting("stop after N steps (default: at the end)", None, least=1)
    evaluations: int = setting("number of evaluations during the run", 7, least=1)
    peer: Path | None = setting("a checkout of nanochat", None)
    who: Literal["ours", "peer"] = setting("whose model and optimizer to train", "ours")
    weights: Literal["ours", "peer"] = setting("whose initial weights to train from", "ours")


class Peer(nn.Module):
    """nanochat's GPT and optimizer behind the interface of ours: what `bits_per_byte` and `train` call."""

    def __init__(self, folder: Path, phase: Phase, *, seed: int) -> None:
        super().__init__()
        model = peer_model(folder, phase.gpt.config, phase.gpt.device, seed=seed)
        from nanochat import optim  # pyright: ignore[reportMissingImports]

        self.gpt, self.phase = model, phase
        self.compiled = torch.compile(model, dynamic=False) if phase.forward_gpt is not phase.gpt else model
        self.weights = {canonical_name(name): parameter for name, parameter in model.named_parameters()}
        self.optimizer = optim.MuonAdamW([self.group(ours) for ours in phase.optimizer.param_groups])

    def group(self, ours: dict[str, Any]) -> dict[str, Any]:
        """Return nanochat's group of the same parameters."""
        group = {key: ours[key] for key in ("kind", "lr", "weight_decay", "betas", "eps") if key in ours}
        group["params"] = [self.weights[name] for name in ours["names"]]
        return group | ({"ns_steps": 5, "beta2": 0.9} if ours["kind"] == "muon" else {})

    @property
    def device(self) -> torch.device:
        return self.phase.gpt.device

    def forward(self, ids_BT: Tensor, targets_BT: Tensor, *, reduction: str) -> Tensor:
        return self.gpt(ids_BT, targets_BT, loss_reduction=reduction).view(targets_BT.shape)

    def step(self, step: Step, number: int) -> Tensor:
        """Take one optimizer step and return its mean loss, as `bare_step` does."""
        total = torch.zeros((), device=self.device)
        for micro_batch in step.micro_batches:
            ids_BT, targets_BT = (
                tensor.to(self.device, torch.int64, non_blocking=True) for tensor in micro_batch
            )
            loss = self.compiled(ids_BT, targets_BT) * (ids_BT.numel() / step.num_tokens)
            loss.backward()
            total = total + loss.detach()
        set_rates(self.phase, number)
        for group, rates in zip(self.optimizer.param_groups, self.phase.optimizer.param_groups, strict=True):
            group.update({key: rates[key] for key in ("lr", "weight_decay", "momentum") if key in rates})
        self.optimizer.step()
        self.gpt.zero_grad(set_to_none=True)
        return total


def main(arguments: list[str]) -> int:
    """Train, evaluate, print a table and a line of JSON, keep the JSON."""
    settings, overrides = read_some(Settings, arguments, about=__doc__)
    if settings.peer is None and "peer" in (settings.who, settings.weights):
        raise ValueError("who=peer and weights=peer need nanochat; give peer=FOLDER, a checkout of it")
    quieten_libraries()
    job, parts = parts_of(overrides, tokens="real", num_steps=settings.steps)
    phase = back_on_device(parts)
    peer = Peer(settings.peer, phase, seed=job["seed"]) if settings.peer else None
    if peer and settings.weights == "peer":
        with torch.no_grad():
            for name, parameter in phase.gpt.named_parameters():
                parameter.copy_(peer.weights[name].view_as(parameter))
    entry = {
        "command": results.command_line("learning", arguments),
        **about(parts),
        "seed": job["seed"],
        "who": settings.who,
        "weights": "peer" if settings.who == "peer" else settings.weights,
        **train(parts, phase, peer if settings.who == "peer" else None, settings),
    }
    results.print_entry(entry, results.save(entry, settings, device=device_name(parts.device)))
    return 0


def train(parts: Parts, phase: Phase, peer: Peer | None, settings: Settings) -> dict[str, Any]:
    """Return the losses, the bits per byte on how many rows, and the minutes of training."""
    assert isinstance(parts.evaluator, BitsPerByte)
    evaluator, last = parts.evaluator, min(settings.stop or settings.steps, settings.steps)
    marks = {settings.steps * number // settings.evaluations for number in range(1, settings.evaluations)}
    marks.add(last)
    take: Callable[[Step, int], Tensor] = peer.step if peer else functools.partial(bare_step, phase)
    losses, scores, seconds = {}, {}, 0.0
    begun = time.perf_counter()
    for number, step in zip(range(last), parts.stream, strict=False):
        if number == UNTIMED:
            synchronize(parts.device)
            begun, seconds = time.perf_counter(), 0.0
        loss = take(step, number)
        if number + 1 in LOSSES:
            losses[number + 1] = loss  # read at the end: reading waits for the device
        if number + 1 in marks:
            synchronize(parts.device)
            seconds += time.perf_counter() - begun
            model: Any = peer or phase.gpt
            scores[number + 1] = bits_per_byte(model, evaluator.batches, evaluator.token_bytes)
            print(f"  step {number + 1}: {scores[number + 1]:.4f} bits per byte", flush=True)
            begun = time.perf_counter()
    return {
        "bits_per_byte": scores,
        "rows": evaluator.rows,
        "losses": {number: loss.item() for number, loss in losses.items()},
        "minutes": seconds / 60,
        "steps": last,
    }
