"""Try micro-batches on the GPU of this machine: `python -m nanolit.jobs.trial job.yaml STAGE`.

A process of its own, so that what it leaves in the GPU's memory is gone before training begins.
"""

import gc
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from nanolit.config.schema import Job
from nanolit.config.stored import read_job
from nanolit.jobs.parts import build_gpt, compiled
from nanolit.machine.device import pick_device
from nanolit.phases.core import compile_gpt
from nanolit.planning.derivation import TokenizerPlan, TrainingPlan
from nanolit.planning.memory import HEADROOM, peak_memory
from nanolit.planning.micro_batch import Tried, remember, tried
from nanolit.planning.plans import fresh_plan


def search(choices: Sequence[int], probe: Callable[[int], None], *, start: int, known: Tried) -> Tried:
    """The largest of `choices` for which `probe` doesn't raise torch.OutOfMemoryError.

    From the one nearest to `start`, a choice at a time: a probe compiles the model, and the plan's estimate
    is good, so that two are the rule.
    """
    untried = known.open(list(choices))
    guess = min(untried, key=lambda one: abs(one - start), default=0)
    while untried:
        enough = has_memory(probe, guess)
        known = Tried(guess, known.fails) if enough else Tried(known.fits, guess)
        untried = known.open(untried)
        guess = (untried[0] if enough else untried[-1]) if untried else 0
    return known


def has_memory(probe: Callable[[int], None], rows: int) -> bool:
    """Whether the probe gets through; what it held is given back either way."""
    try:
        probe(rows)
        return True
    except torch.OutOfMemoryError:
        return False
    finally:
        gc.collect()
        torch.compiler.reset()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


def train_twice(job: Job, plan: TrainingPlan, rows: int) -> None:
    """Two micro-batches of so many rows, forward and backward, beside as much as the optimizer takes.

    The second finds gradients to add to. The optimizer's share and its work are only memory here: it needs
    all ranks to step.
    """
    device, gib = pick_device(), peak_memory(job, plan.gpt, rows, gpu=job["cluster"]["gpu"] or "cpu")
    gpt = build_gpt(plan.gpt, device, seed=job["seed"], precision=job["precision"])
    forward = compile_gpt(gpt) if compiled(job, plan, device) else gpt
    kept = [take(gib["optimizer"], device)]
    ids_BT = torch.randint(plan.gpt["vocab_size"], (rows, plan.gpt["context"]), device=device)
    for _ in range(2):
        loss = forward(ids_BT, ids_BT, reduction="sum")
        loss.backward()
    del loss
    kept.append(take(gib["optimizer_work"], device))
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def take(gib: float, device: torch.device) -> torch.Tensor:
    return torch.empty(int(gib * 2**30), dtype=torch.uint8, device=device)


def main() -> None:
    """Try what is open for the job's stage and remember it; on anything but CUDA there is nothing to try."""
    path, stage = sys.argv[1:]
    job = read_job(Path(path))
    device = pick_device()
    if device.type != "cuda":
        return
    torch.cuda.set_per_process_memory_fraction(HEADROOM, device)
    plan = fresh_plan(job, stage)
    assert not isinstance(plan, TokenizerPlan)

    def probe(rows: int) -> None:
        print(f"{stage}: trying micro_batch={rows}", flush=True)
        train_twice(job, plan, rows)

    found = search(plan.micro_batches, probe, start=plan.micro_batch, known=tried(job, plan))
    remember(job, plan, found)
    print(f"{stage}: micro_batch={found.fits} is the largest that fits", flush=True)


if __name__ == "__main__":
    main()
