"""Schedules of the learning rate, Muon's momentum and its weight decay: pure functions of the step.

No torch and no state, so a resumed run needs nothing but its step number. The constants of both nanochat
generations are in the recipes; https://github.com/karpathy/nanochat is their source.
"""

import math
from dataclasses import dataclass
from typing import Literal

WeightDecay = Literal["constant", "cosine", "linear", "none"]


@dataclass(frozen=True)
class Multipliers:
    """One step's factors for the initial rate and decay, and its momentum."""

    lr: float
    momentum: float
    weight_decay: float


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """Linear warmup, constant, linear warmdown; the momentum rises, and falls again with the warmdown.

    A trapezoid rather than a cosine, because its constant part doesn't depend on where the run ends. Comments
    give nanochat's values of July 2026 (modern) and October 2025 (classic). What one of them is worth has
    been published only where a comment says so.
    """

    warmup_steps: int  # modern 40, classic none
    warmdown_fraction: float  # modern the last 0.65 of the run, at falling rates; classic 0.2
    # modern 0.05, classic 0. With a warmdown of 0.85 and 0 a run at d22 did well, later found unnecessary
    # (nanochat PR 733)
    final_lr_fraction: float
    # Both 0.85: while gradients change quickly, average fewer of them. It rises over 400 steps to 0.97, and
    # over 300 to 0.95 in classic
    momentum_start: float
    momentum_peak: float
    momentum_warmup_steps: int
    momentum_final: float | None  # modern 0.90 at the end of the warmdown; None, classic: stay at the peak
    # modern: a half cosine to 0, of Muon's decay alone. Going down to 0 beat a constant, at first linearly
    # (nanochat, 2026-01-10); classic has no decay
    weight_decay: WeightDecay

    def __post_init__(self) -> None:
        for name in ("warmup_steps", "momentum_warmup_steps"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name}={getattr(self, name)} is out of range; give 0 or more")
        for name in (
            "warmdown_fraction",
            "final_lr_fraction",
            "momentum_start",
            "momentum_peak",
            "momentum_final",
        ):
            value = getattr(self, name)
            if value is not None and not 0 <= value <= 1:
                raise ValueError(f"{name}={value} is out of range; give a number from 0 to 1")

    def at(self, step: int, num_steps: int) -> Multipliers:
        """Return the multipliers of step `step` (from 0) in a run of `num_steps` optimizer steps."""
        if not 0 <= step < num_steps:
            raise ValueError(
                f"step {step} is outside the run's {num_steps} steps; give a step from 0 to {num_steps - 1}"
            )
        # How far the warmdown is: 0 until it begins; 1 would come one step after the last
        warmdown_steps = round(self.warmdown_fraction * num_steps)
        down = max(0.0, 1 - (num_steps - step) / warmdown_steps) if warmdown_steps else 0.0
        return Multipliers(
            lr=self._lr(step, down),
            momentum=self._momentum(step, down),
            weight_decay=_WEIGHT_DECAYS[self.weight_decay](step / num_steps),
        )

    def _lr(self, step: int, down: float) -> float:
        if step < self.warmup_steps:
            return (step + 1) / self.warmup_steps  # + 1: a first step at rate 0 would teach nothing
        return 1 + (self.final_lr_fraction - 1) * down

    def _momentum(self, step: int, down: float) -> float:
        if step < self.momentum_warmup_steps:
            up = step / self.momentum_warmup_steps
            return (1 - up) * self.momentum_start + up * self.momentum_peak
        if self.momentum_final is None:
            return self.momentum_peak
        return (1 - down) * self.momentum_peak + down * self.momentum_final


_WEIGHT_DECAYS = {
    "constant": lambda progress: 1.0,
    "cosine": lambda progress: 0.5 * (1 + math.cos(math.pi * progress)),
    "linear": lambda progress: 1 - progress,
    "none": lambda progress: 0.0,
}
