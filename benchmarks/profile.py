"""Break down the GPU's time by kernel: `python -m benchmarks profile model=d12 micro_batch=32`.

Writes a trace for chrome://tracing or Perfetto, and prints the ten most expensive kernels with their share
of the time and their floor. The floor of a product or of attention is its time at the speed of one large
product. For every other operator it is the time to move its inputs (for some of our own operators, also its
outputs) at the speed of a large copy. Also takes the settings of nanolit train.
"""

import collections
import json
import math
import re
import statistics
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from torch.profiler import ProfilerActivity

from benchmarks.parts import fill_gradients, forward_backward, parts_of, trace_of
from benchmarks.train import between, mark, synchronize
from nanolit.data.stream import Step
from nanolit.jobs.worker import quieten_libraries
from nanolit.kernels.fp8 import VALUES, product
from nanolit.kernels.layout import NO_WINDOW
from nanolit.machine.arguments import read_some, setting
from nanolit.machine.device import ADA
from nanolit.phases.core import Phase

PRODUCTS = ("aten::mm", "aten::bmm", "aten::_scaled_mm", "aten::addmm", "aten::baddbmm")
SUMMED = ("aten::addmm", "aten::baddbmm")  # what is added to comes first
# Products of an MLP's width with four times that, of a kernel of ours (mlp_kernel.py)
MLP_PRODUCTS = (
    "nanolit::mlp",
    "nanolit::mlp_backward",
    "nanolit::fp8_hidden",
    "nanolit::fp8_before_activation",
)
# How many of its first operands an operator of ours writes again in another form
WRITTEN = {"nanolit::heads": 1, "nanolit::heads_backward": 3, "nanolit::fp8_transposed": 1}
ON_THE_GPU = ("kernel", "gpu_memcpy", "gpu_memset")  # categories of a trace's events
BYTES = {"double": 8, "long int": 8, "float": 4, "int": 4, "c10::BFloat16": 2, "c10::Half": 2, "bool": 1}


@dataclass(frozen=True)
class Settings:
    """Settings of the profile."""

    what: Literal["model", "optimizer"] = setting(
        "a micro-batch, forward and backward, or an optimizer step", "model"
    )
    repeats: int = setting("profiled repeats", 3, least=1)
    rows: int = setting("kernels in the table", 10, least=1)
    trace: Path = setting("file for the trace", Path("trace.json"), value="FILE")


class Speeds(NamedTuple):
    """The best speeds of a GPU, in FLOP/s and bytes/s."""

    bf16: float
    fp8: float
    memory: float


class Kernel(NamedTuple):
    """A kernel in one repeat: its time, its launches, and the least time for its work if that is known."""

    milliseconds: float
    launches: float
    floor: float | None


def main(arguments: list[str]) -> int:
    """Profile, print the tables and a line of JSON."""
    settings, overrides = read_some(Settings, arguments, about=__doc__)
    what, repeats = settings.what, settings.repeats
    if not torch.cuda.is_available():
        raise ValueError(
            "benchmarks profile needs a GPU, and this machine has none; use benchmarks train on a CPU"
        )
    quieten_libraries()
    _, parts = parts_of(overrides, tokens="random", num_steps=1)
    phase, step = parts.phase, next(iter(parts.stream))
    fill_zero_matrices(phase)
    phase.configure_optimizers()
    for _ in range(3):  # compiles, then settles
        prepared_run(phase, step, what=what)
    trace = trace_of(
        lambda: prepared_run(phase, step, what=what),
        repeats=repeats,
        activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA],
        path=settings.trace,
    )
    print(f"  trace written to {settings.trace.absolute()}")
    report(kernels_of(trace, repeats=repeats, speeds=speeds()), rows=settings.rows)
    return 0


@torch.no_grad()
def fill_zero_matrices(phase: Phase) -> None:
    """Fill zero matrices as training does: products with zeros take less power, and so less time."""
    for parameter in phase.gpt.parameters():
        if parameter.ndim == 2 and not parameter.any():
            parameter.normal_(0, parameter.size(1) ** -0.5)


def prepared_run(phase: Phase, step: Step, *, what: str) -> None:
    """Run a micro-batch forward and backward, or an optimizer step on made-up gradients."""
    if what == "model":
        forward_backward(phase, step)
    else:
        fill_gradients(phase)
        phase.optimizer.step()
    phase.optimizer.zero_grad(set_to_none=True)


def report(kernels: dict[str, Kernel], *, rows: int) -> None:
    """Print the most expensive kernels and their floors, then the same as a line of JSON."""
    total = sum(kernel.milliseconds for kernel in kernels.values())
    known = sum(kernel.milliseconds for kernel in kernels.values() if kernel.floor is not None)
    floor = sum(kernel.floor or 0.0 for kernel in kernels.values())
    print(f"  {total:.2f} ms of kernels; {known:.2f} ms of that has a floor, of {floor:.2f} ms in all")
    print("        time  share     floor  launches  kernel")
    ranked = sorted(kernels.items(), key=lambda item: -item[1].milliseconds)[:rows]
    for name, kernel in ranked:
        least = "–" if kernel.floor is None else f"{kernel.floor:.3f} ms"
        share = kernel.milliseconds / total
        print(f"  {kernel.milliseconds:7.3f} ms {share:6.1%} {least:>9} {kernel.launches:9.0f}  {name[:100]}")
    entry = {
        "kernels_ms": total,
        "floor_ms": floor,
        "of_kernels_ms": known,
        "kernels": [[name[:100], *kernel] for name, kernel in ranked],
    }
    print(json.dumps(entry))


def kernels_of(trace: dict[str, Any], *, repeats: int, speeds: Speeds) -> dict[str, Kernel]:
    """Return every kernel of a trace by name. An operator's floor goes to its longest kernel."""
    events = [event for event in trace["traceEvents"] if "args" in event]
    operators = {event["args"].get("External id"): event for event in events if event.get("cat") == "cpu_op"}
    launched: dict[Any, list[dict[str, Any]]] = collections.defaultdict(list)
    for event in events:
        if event.get("cat") in ON_THE_GPU:
            launched[event["args"].get("External id")].append(event)
    found: dict[str, list[tuple[float, float | None]]] = collections.defaultdict(list)
    for number, kernels in launched.items():
        least = floor(operators[number], speeds) if number in operators else None
        longest = max(kernels, key=lambda kernel: kernel["dur"])["name"]
        parts = sum(kernel["name"] == longest for kernel in kernels)  # of what the operator was given
        for kernel in kernels:
            share = least / parts if least is not None and kernel["name"] == longest else None
            found[kernel["name"]].append((kernel["dur"] / 1000, share))
    return {name: _sum(times, repeats) for name, times in found.items()}


def _sum(times: list[tuple[float, float | None]], repeats: int) -> Kernel:
    milliseconds = sum(time for time, _ in times) / repeats
    floors = [least for _, least in times if least is not None]
    floor_ms = 1000 * sum(floors) / repeats if len(floors) == len(times) else None
    return Kernel(milliseconds, len(times) / repeats, floor_ms)


def floor(operator: dict[str, Any], speeds: Speeds) -> float | None:
    """Return the least seconds an operator could take; None if the trace doesn't tell."""
    shapes, types = operator["args"].get("Input Dims", []), operator["args"].get("Input type", [])
    matrices = [shape for shape in shapes if len(shape) >= 2 and isinstance(shape[0], int)]
    rate = speeds.fp8 if any("Float8" in name for name in types) else speeds.bf16
    if operator["name"] in PRODUCTS and len(matrices) >= 2:
        a, b = matrices[1:3] if operator["name"] in SUMMED else matrices[:2]
        return 2 * math.prod(a) * b[-1] / rate
    if operator["name"] in MLP_PRODUCTS and matrices:
        tokens, width = matrices[0]
        return 8 * tokens * width**2 / rate
    if re.fullmatch(r"nanolit::\w+_attention(_backward)?", operator["name"]):
        return attention_flops(operator["name"], matrices, operator["args"]["Concrete Inputs"]) / speeds.bf16
    if "_attention" in operator["name"]:  # torch's own, which say otherwise what they were given
        return None
    if operator["name"] == "nanolit::loss_and_gradients":  # beside its products: logits to gradients
        return 2 * matrices[0][0] * matrices[1][0] * BYTES[types[0]] / speeds.memory
    sizes = [
        math.prod(shape) * (1 if "Float8" in name else BYTES[name])
        for shape, name in zip(shapes, types, strict=False)
        if shape and isinstance(shape[0], int) and (name in BYTES or "Float8" in name)
    ]
    sizes += sizes[: WRITTEN.get(operator["name"], 0)]
    return sum(sizes) / speeds.memory if sizes else None


def attention_flops(name: str, shapes: list[list[int]], values: list[str]) -> int:
    """Return the FLOPs of our attention: two products forward and five backward over what queries see."""
    (B, T, H, D), window = shapes[0], int(next(value for value in values if value))
    seen = T if window == NO_WINDOW else min(window + 1, T)
    pairs = seen * T - seen * (seen - 1) // 2
    return (10 if name.endswith("backward") else 4) * B * H * D * pairs


def speeds(size: int = 8192) -> Speeds:
    """Measure large products of random numbers and a copy of 2 GiB, read and written; medians of ten."""
    a, b = torch.randn(2, size, size, device="cuda", dtype=torch.bfloat16)
    bf16 = fp8 = 2 * size**3 / seconds(lambda: torch.mm(a, b))
    if torch.cuda.get_device_capability() >= ADA:
        a8, b8, one = a.to(VALUES), b.to(VALUES), torch.ones((), device="cuda")
        fp8 = 2 * size**3 / seconds(lambda: product(a8, one, b8, one, torch.bfloat16))
    source = torch.empty(2**30, device="cuda", dtype=torch.bfloat16)
    target = torch.empty_like(source)
    return Speeds(bf16, fp8, 2 * source.nbytes / seconds(lambda: target.copy_(source)))


def seconds(function: Callable[[], Any]) -> float:
    """Return the median of ten calls, after three."""
    device, found = torch.device("cuda"), []
    for _ in range(13):
        first = mark(device)
        function()
        last = mark(device)
        synchronize(device)
        found.append(between(first, last) / 1000)
    return statistics.median(found[3:])
