"""Build the worker's own parts for a training benchmark, on random tokens or on the job's data."""

import atexit
import json
import math
import os
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

from nanolit.config.build import build
from nanolit.config.compose import compose
from nanolit.config.schema import Job
from nanolit.data.stream import Step
from nanolit.jobs.execute import fetch_data, make_tokenizer, training_plans, write_plan
from nanolit.jobs.parts import Parts, build_gpt, build_parts, compiled
from nanolit.machine.device import make_deterministic, pick_device
from nanolit.model.gpt import GPTConfig
from nanolit.phases.base import Base
from nanolit.phases.core import Phase, optimizer_settings
from nanolit.planning.costs import num_ranks
from nanolit.planning.plans import BasePlan, fresh_plan, fresh_plans

Draw = Callable[[tuple[int, int], int, torch.Generator], torch.Tensor]  # shape, vocabulary → tokens
DISTINCT_STEPS = 4  # random steps that are dealt out in turn: different enough, made before the clock runs
REPEATED_AFTER = 7  # positions, in skewed tokens: within every window, beyond what the smear sees


class RandomStream:
    """Steps of random tokens, as `draw` gives them, in the form of `PretrainStream`'s."""

    def __init__(self, plan: BasePlan, draw: Draw, *, seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        shape = (plan.micro_batch, plan.gpt["context"] + 1)
        self.steps = []
        for _ in range(DISTINCT_STEPS):
            micro_batches = []
            for _ in range(plan.accumulation):
                row_BT = draw(shape, plan.gpt["vocab_size"], generator)
                pair = (row_BT[:, :-1].contiguous(), row_BT[:, 1:].contiguous())
                is_pinned = torch.cuda.is_available()
                micro_batches.append(tuple(x.pin_memory() for x in pair) if is_pinned else pair)
            progress: Any = {"position": {}, "epoch": 0.0, "cropped_fraction": 0.0}
            self.steps.append(Step(micro_batches=micro_batches, num_tokens=plan.total_batch, **progress))

    def __len__(self) -> int:
        return 10**9

    def __iter__(self) -> Iterator[Step]:
        while True:
            yield from self.steps


def uniform(shape: tuple[int, int], vocab_size: int, generator: torch.Generator) -> torch.Tensor:
    return torch.randint(vocab_size, shape, generator=generator)


def skewed(shape: tuple[int, int], vocab_size: int, generator: torch.Generator) -> torch.Tensor:
    """Draw tokens that there is something to learn from: frequencies like those of words, and repeats."""
    weights_V = 1 / torch.arange(1, vocab_size + 1)  # Zipf's law
    drawn_BT = torch.multinomial(weights_V, math.prod(shape), replacement=True, generator=generator)
    drawn_BT = drawn_BT.view(shape)
    repeats_BT = torch.rand(shape, generator=generator) < 0.5
    return torch.where(repeats_BT, drawn_BT.roll(REPEATED_AFTER, 1), drawn_BT)


DRAWS: dict[str, Draw] = {"random": uniform, "skewed": skewed}


def parts_of(overrides: list[str], *, tokens: str, num_steps: int) -> tuple[Job, Parts]:
    """Return the job of these overrides and its parts for the base stage; nothing is resumed.

    tokens "real": the job's tokenizer and data, under its root; "random" and "skewed": nothing is read, and
    what is written goes to a folder that vanishes with this process.
    """
    job = compose([*overrides, f"max_steps={num_steps}", "phase=base"])
    ranks, started = num_ranks(job), int(os.environ.get("WORLD_SIZE", "1"))
    if ranks != started:
        raise ValueError(
            f"the job needs {ranks} ranks but {started} started; give cluster.devices={started}, or "
            f"start it with torchrun --standalone --nproc-per-node={ranks} -m benchmarks"
        )
    if job["deterministic"]:
        make_deterministic()
    if tokens in DRAWS:
        return job, random_parts(job, DRAWS[tokens])
    job["run"] = f"bench-{job['run']}"
    plans = training_plans(job, fresh_plans(job))
    plan = plans["base"]
    assert isinstance(plan, BasePlan)
    fetch_data(job, plans)
    if "tokenizer" in plans and make_tokenizer(job, plans["tokenizer"])["status"] != "done":
        raise ValueError("the tokenizer could not be made; see the lines above")
    write_plan(job, plan)
    return job, build_parts(job, plan)


def base_plan(job: Job) -> BasePlan:
    plan = fresh_plan(job, "base")
    assert isinstance(plan, BasePlan)
    return plan


def random_parts(job: Job, draw: Draw) -> Parts:
    """Return the parts of a job on random tokens: no tokenizer, no validation."""
    plan, device = base_plan(job), pick_device()
    phase = Base(
        build_gpt(plan.gpt, device, seed=job["seed"], precision=job["precision"]),
        groups=plan.groups,
        optimizer=optimizer_settings(job),
        schedule=build(job["recipe"]["schedule"]),
        num_steps=plan.num_steps,
        compile=compiled(job, plan, device),
    )
    temporary = tempfile.TemporaryDirectory(prefix="nanolit-bench-", ignore_cleanup_errors=True)
    atexit.register(temporary.cleanup)
    folder = Path(temporary.name)
    absent: Any = None
    return Parts(
        job=job,
        plan=plan,
        folder=folder,
        tokenizer=absent,
        tokenizer_folder=folder,
        device=device,
        phase=phase,
        stream=RandomStream(plan, draw, seed=job["seed"]),
        evaluator=absent,
        chat_tasks=[],
        left_out="",
        resumed=None,
        origin=None,
    )


def peer_model(folder: Path, config: GPTConfig, device: torch.device, *, seed: int) -> Any:
    """Build nanochat's GPT of the same sizes with its own initial weights, from a checkout of it."""
    sys.path.insert(0, str(folder))
    from nanochat import gpt  # pyright: ignore[reportMissingImports]

    with torch.device("meta"):
        model = gpt.GPT(
            gpt.GPTConfig(
                sequence_len=config.context,
                vocab_size=config.vocab_size,
                n_layer=config.depth,
                n_head=config.heads,
                n_kv_head=config.kv_heads,
                n_embd=config.width,
                window_pattern=config.window_pattern,
            )
        )
    model.to_empty(device=device)
    torch.manual_seed(seed)
    model.init_weights()
    return model


def forward_backward(phase: Phase, step: Step) -> None:
    """Take the step's first micro-batch alone."""
    ids_BT, targets_BT = (tensor.to(phase.gpt.device) for tensor in step.micro_batches[0])
    (phase.loss(ids_BT, targets_BT) / step.num_tokens).backward()


def fill_gradients(phase: Phase) -> None:
    """Make up gradients, for a step of the optimizer alone."""
    for parameter in phase.gpt.parameters():
        parameter.grad = torch.full_like(parameter, 1e-3)


def trace_of(
    run: Callable[[], Any], *, repeats: int, activities: Sequence[ProfilerActivity], path: Path | None = None
) -> dict[str, Any]:
    """Return what torch's profiler writes of some runs on a GPU, shapes included; a path keeps it."""
    torch.cuda.synchronize()
    with profile(activities=activities, record_shapes=True) as profiler:
        for _ in range(repeats):
            run()
        torch.cuda.synchronize()
    with tempfile.TemporaryDirectory() as folder:
        written = Path(path or Path(folder) / "trace.json")
        profiler.export_chrome_trace(str(written))
        return json.loads(written.read_text())
