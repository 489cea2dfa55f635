"""Try micro-batches on the GPU of this machine, and say what to do where memory ran out.

`python -m nanolit.jobs.trial FOLDER` tries for the job.yaml and plan.json there. A process of its own, so
that what it leaves in the GPU's memory is gone before training begins.
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
from nanolit.planning.costs import HEADROOM, fits, peak_memory
from nanolit.planning.micro_batch import Tried, remember, tried
from nanolit.planning.plans import BasePlan, FinetunePlan, TrainingPlan, read_plan
from nanolit.planning.sizes import is_auto


def search(choices: Sequence[int], probe: Callable[[int], None], *, start: int, known: Tried) -> Tried:
    """Find the largest of `choices` for which `probe` doesn't raise torch.OutOfMemoryError.

    Go from the choice nearest to `start` to its neighbours: a probe compiles the model, and the plan's
    estimate is good, so that two probes usually suffice.
    """
    untried = known.open(list(choices))
    guess = min(untried, key=lambda rows: abs(rows - start), default=0)
    while untried:
        enough = has_memory(probe, guess)
        known = Tried(guess, known.fails) if enough else Tried(known.fits, guess)
        untried = known.open(untried)
        guess = (untried[0] if enough else untried[-1]) if untried else 0
    return known


def has_memory(probe: Callable[[int], None], rows: int) -> bool:
    """Return True if the probe gets through; give back its memory either way."""
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
    """Run two micro-batches forward and backward, beside as much memory as the optimizer takes.

    The second one adds to the gradients of the first. The optimizer is only allocated memory here: to step,
    it would need all ranks.
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


def out_of_memory(job: Job, plan: TrainingPlan) -> str:
    """Return the line for a stage that ran out of memory: what fits; with auto, that is what comes next."""
    rows, gpu = plan.micro_batch, job["cluster"]["gpu"] or "the device"
    message = f"{plan.stage} ran out of memory on {gpu} with micro_batch={rows}"
    smaller = [choice for choice in plan.micro_batches if choice < rows]
    if not smaller:
        return f"{message}; use a GPU with more memory, more devices, or a smaller model or model.context"
    likely = [choice for choice in smaller if fits(job, plan.gpt, choice, gpu=gpu)]
    if is_auto(job, plan.stage):
        remember(job, plan.gpt, Tried(fails=rows), equal_rows=plan.equal_rows)
        return f"{message}; this is recorded: the same command tries fewer rows"
    by = "fits by the plan's estimate" if likely else "is the next smaller one"
    next_rows = max(likely or smaller)
    return f"{message}; give micro_batch={next_rows}, which {by}, or micro_batch=auto; the result is the same"


def main() -> None:
    """Try the plan's untried micro-batches and remember what fits; only on CUDA is there anything to try."""
    folder, device = Path(sys.argv[1]), pick_device()
    if device.type != "cuda":
        return
    torch.cuda.set_per_process_memory_fraction(HEADROOM, device)
    job, plan = read_job(folder / "job.yaml"), read_plan(folder)
    assert isinstance(plan, BasePlan | FinetunePlan)

    def probe(rows: int) -> None:
        print(f"{plan.stage}: trying micro_batch={rows}", flush=True)
        train_twice(job, plan, rows)

    known = tried(job, plan.gpt, equal_rows=plan.equal_rows)
    found = search(plan.micro_batches, probe, start=plan.micro_batch, known=known)
    remember(job, plan.gpt, found, equal_rows=plan.equal_rows)
    print(f"{plan.stage}: micro_batch={found.fits} is the largest that fits", flush=True)


if __name__ == "__main__":
    main()
