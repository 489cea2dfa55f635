"""Check whether a run repeats bit for bit: `python -m benchmarks determinism model=d12`.

Runs the same steps twice from the same weights in one process, for each way to compute: eager, compiled as
in training, and with the embeddings' gradient, attention's backward pass or both in a fixed order
(kernels/residual.py; the flags of the attention kernels). If fixing one of these orders makes the bits
repeat, that order caused the difference. The table shows how far apart the two runs' gradients are for each
part of the model, and their weights after the steps, or "equal", and the time of a micro-batch.

`deterministic=true` measures the job's own setting, which also fixes the choices that Inductor makes by
timing: the checksum of the weights must be the same in every process, even with a fresh
TORCHINDUCTOR_CACHE_DIR. The eager model takes a whole micro-batch at once: from d20 on, set a smaller
micro_batch. Also takes the settings of nanolit train.
"""

import hashlib
import statistics
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice, pairwise
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from benchmarks import results
from benchmarks.parity import SMALLEST, part_of
from benchmarks.parts import forward_backward, parts_of
from benchmarks.profile import fill_zero_matrices
from benchmarks.train import about, back_on_device, bare_step, between, device_name, mark, synchronize
from nanolit.data.stream import Step
from nanolit.jobs.parts import Parts, compiled
from nanolit.jobs.worker import quieten_libraries
from nanolit.kernels import layout
from nanolit.kernels.residual import Embedding
from nanolit.machine.arguments import read_some, setting
from nanolit.model.gpt import GPT
from nanolit.phases.core import Phase
from nanolit.report.tables import markdown_table

HORIZON = 352  # steps of the schedule, of which the first are made
REPEATS = 10  # timed micro-batches; the runs before them have warmed up


@dataclass(frozen=True, kw_only=True)
class Settings(results.Kept):
    """Settings of the determinism benchmark."""

    steps: int = setting("optimizer steps before the weights are compared", 1, least=1)
    tokens: Literal["skewed", "real"] = setting(
        "skewed: random, with the frequencies of words; real: the job's data", "skewed"
    )


class Way(NamedTuple):
    """A way to compute the gradients; None leaves a part to the job's own setting."""

    name: str
    eager: bool = False
    embedding: bool | None = None
    attention: bool | None = None


# Ways with equal embeddings share what was compiled
WAYS = [
    Way("eager", eager=True, embedding=False, attention=False),
    Way("compiled", embedding=False, attention=False),
    Way("attention", embedding=False, attention=True),
    Way("embedding", embedding=True, attention=False),
    Way("both", embedding=True, attention=True),
]


class Run(NamedTuple):
    """The gradients of the first micro-batch and the weights after the steps, by parameter."""

    gradients: dict[str, Tensor]
    weights: dict[str, Tensor]


def main(arguments: list[str]) -> int:
    """Run every way twice, print a table and a line of JSON, keep the JSON."""
    settings, overrides = read_some(Settings, arguments, about=__doc__)
    quieten_libraries()
    job, parts = parts_of(overrides, tokens=settings.tokens, num_steps=HORIZON)
    ways = [Way("deterministic=true")] if job["deterministic"] else WAYS
    if not compiled(job, parts.plan, parts.device):
        ways = [way for way in ways if way.name != "compiled"]
    measured = measure(parts, ways, num_steps=settings.steps)
    entry = {
        "command": results.command_line("determinism", arguments),
        **about(parts),
        "steps": settings.steps,
        "ways": measured,
    }
    path = results.save(entry, settings, device=device_name(parts.device))
    print(table_of(measured))
    results.print_json(entry, path)
    return 0


def measure(parts: Parts, ways: list[Way], *, num_steps: int) -> dict[str, dict[str, Any]]:
    """Return for each way the differences of two runs by part of the model, milliseconds, and a checksum."""
    phase = back_on_device(parts)
    torch.manual_seed(0)  # equal weights in every process
    fill_zero_matrices(phase)
    begin = {name: parameter.detach().clone() for name, parameter in phase.gpt.named_parameters()}
    steps = list(islice(iter(parts.stream), num_steps))
    compiled_gpt, measured = phase.forward_gpt, {}
    for way in ways:
        use(way, phase, compiled_gpt)
        with attention_in_order(way.attention):
            first, second = run(phase, steps, begin), run(phase, steps, begin)
            measured[way.name] = {
                "gradients": by_part(phase.gpt, first.gradients, second.gradients),
                "weights": by_part(phase.gpt, first.weights, second.weights),
                "forward_backward_ms": milliseconds(phase, steps[0]),
                "checksum": checksum(first.weights),
            }
    return measured


def use(way: Way, phase: Phase, compiled_gpt: Callable[..., Tensor]) -> None:
    """Set the phase to one way; the compiler makes another graph when an embedding's setting changes."""
    phase.forward_gpt = phase.gpt if way.eager else compiled_gpt
    for module in phase.gpt.modules():
        if isinstance(module, Embedding) and way.embedding is not None:
            module.deterministic = way.embedding


@contextmanager
def attention_in_order(wish: bool | None) -> Iterator[None]:
    """Answer for the attention kernels, which ask when they run: the compiled graph stays as it is."""
    ask = layout.in_order
    if wish is not None:
        layout.in_order = lambda: wish
    try:
        yield
    finally:
        layout.in_order = ask


def run(phase: Phase, steps: list[Step], begin: dict[str, Tensor]) -> Run:
    """Take the steps from the weights `begin`, with a fresh optimizer."""
    with torch.no_grad():
        for name, parameter in phase.gpt.named_parameters():
            parameter.copy_(begin[name])
    phase.configure_optimizers()
    forward_backward(phase, steps[0])
    gradients = {}
    for name, parameter in phase.gpt.named_parameters():
        assert parameter.grad is not None
        gradients[name], parameter.grad = parameter.grad, None
    for number, step in enumerate(steps):
        bare_step(phase, step, number)
    weights = {name: parameter.detach().clone() for name, parameter in phase.gpt.named_parameters()}
    return Run(gradients, weights)


def by_part(gpt: GPT, first: dict[str, Tensor], second: dict[str, Tensor]) -> dict[str, float]:
    """Return the largest relative difference by part; 0 where all numbers are equal, and there alone."""
    found: dict[str, float] = defaultdict(float)
    for name, role in gpt.parameter_roles().items():
        part, one, other = part_of(name, role), first[name], second[name]
        distance = (one.double() - other.double()).norm().item() / (one.double().norm().item() or SMALLEST)
        found[part] = max(found[part], 0.0 if torch.equal(one, other) else max(distance, SMALLEST))
    return dict(found)


def milliseconds(phase: Phase, step: Step) -> float:
    """Return the median of a micro-batch, forward and backward."""
    marks = []
    for _ in range(REPEATS + 1):
        marks.append(mark(phase.gpt.device))
        forward_backward(phase, step)
        phase.gpt.zero_grad(set_to_none=True)
    synchronize(phase.gpt.device)
    return statistics.median(between(a, b) for a, b in pairwise(marks))


def checksum(weights: dict[str, Tensor]) -> str:
    """Return a short hash of every bit, to compare with another process."""
    digest = hashlib.sha256()
    for tensor in weights.values():
        digest.update(tensor.contiguous().view(torch.uint8).cpu().numpy().tobytes())
    return digest.hexdigest()[:12]


def table_of(measured: dict[str, dict[str, Any]]) -> str:
    """Return a row for each part's gradients and one for all weights, with a column for each way."""
    parts = next(iter(measured.values()))["gradients"]
    rows = [[part, *(cell(way["gradients"][part]) for way in measured.values())] for part in parts]
    rows.append(
        ["weights after the steps", *(cell(max(way["weights"].values())) for way in measured.values())]
    )
    rows.append(["ms per micro-batch", *(f"{way['forward_backward_ms']:.2f}" for way in measured.values())])
    rows.append(["checksum of the weights", *(way["checksum"] for way in measured.values())])
    return markdown_table(["gradients of two runs", *measured], rows)


def cell(difference: float) -> str:
    return f"{difference:.0e}" if difference else "equal"
