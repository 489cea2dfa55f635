"""Where the GPU's time goes: `python -m nanolit.bench profile model=d12 micro_batch=32`.

A trace for chrome://tracing or Perfetto, the ten most expensive kernels with their share, and beside the
matrix products the time that they would take at the speed of one large product. Own settings: see OWN.
"""

import collections
import json
import shutil
import statistics
from pathlib import Path

import torch
from torch._C._autograd import DeviceType  # pyright: ignore[reportMissingImports]
from torch.profiler import ProfilerActivity, profile

from nanolit.bench import results
from nanolit.bench.parts import parts_of
from nanolit.bench.train import between, mark, synchronize
from nanolit.data.stream import Step
from nanolit.jobs.worker import quieten_libraries
from nanolit.phases.core import Phase

OWN = {
    "what": "model",  # forward and backward of a micro-batch; or optimizer: its step
    "repeats": "3",  # of what is profiled
    "rows": "10",  # of the table
    "trace": "trace.json",  # where the trace is written; empty: nowhere
}
PRODUCTS = ("aten::mm", "aten::addmm", "aten::bmm", "aten::baddbmm", "aten::_scaled_mm")


def main(arguments: list[str]) -> int:
    """Profile, print the tables and a line of JSON."""
    settings, overrides = results.split_settings(arguments, OWN)
    what = results.choice(settings, "what", ("model", "optimizer"))
    repeats = results.number(settings, "repeats", least=1)
    if not torch.cuda.is_available():
        raise ValueError("profile tells what a GPU does, and there is none here; use bench train for a CPU")
    quieten_libraries()
    _, parts = parts_of(overrides, tokens="random", num_steps=1)
    shutil.rmtree(parts.folder, ignore_errors=True)
    phase, step = parts.phase, next(iter(parts.stream))
    fill_zero_matrices(phase)
    phase.configure_optimizers()
    for _ in range(3):  # compiles, then settles
        prepared_run(phase, step, what=what)
    synchronize(parts.device)
    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA], record_shapes=True) as profiler:
        for _ in range(repeats):
            prepared_run(phase, step, what=what)
        synchronize(parts.device)
    if settings["trace"]:
        profiler.export_chrome_trace(settings["trace"])
        print(f"  trace in {Path(settings['trace']).absolute()}")
    report(profiler, repeats=repeats, rows=results.number(settings, "rows", least=1))
    return 0


@torch.no_grad()
def fill_zero_matrices(phase: Phase) -> None:
    """As after some training: products with the zeros of a fresh model take a GPU less power, and so time."""
    for parameter in phase.gpt.parameters():
        if parameter.ndim == 2 and not parameter.any():
            parameter.normal_(0, parameter.size(1) ** -0.5)


def prepared_run(phase: Phase, step: Step, *, what: str) -> None:
    """A micro-batch forward and backward, or a step of the optimizer on made-up gradients."""
    if what == "model":
        ids_BT, targets_BT = (tensor.to(phase.gpt.device) for tensor in step.micro_batches[0])
        (phase.loss(ids_BT, targets_BT) / step.num_tokens).backward()
    else:
        fill_gradients(phase)
        phase.optimizer.step()
    phase.optimizer.zero_grad(set_to_none=True)


def fill_gradients(phase: Phase) -> None:
    for parameter in phase.gpt.parameters():
        parameter.grad = torch.full_like(parameter, 1e-3)


def report(profiler: profile, *, repeats: int, rows: int) -> None:
    """The most expensive kernels, what the products cost and would cost at best, and all of it as JSON."""
    kernels = kernel_times(profiler, repeats)
    total = sum(milliseconds for milliseconds, _ in kernels.values())
    floor, flops = product_floor(profiler, repeats)
    print(f"  {total:.2f} ms of kernels; products at best {floor:.2f} ms ({flops / 1e12:.1f} TFLOP)")
    ranked = sorted(kernels.items(), key=lambda one: -one[1][0])[:rows]
    for name, (milliseconds, count) in ranked:
        print(f"  {milliseconds:8.3f} ms {milliseconds / total:6.1%} {count:6.0f} ×  {name[:110]}")
    entry = {
        "kernels_ms": total,
        "products_floor_ms": floor,
        "kernels": [[name[:110], milliseconds, count] for name, (milliseconds, count) in ranked],
    }
    print(json.dumps(entry))


def kernel_times(profiler: profile, repeats: int) -> dict[str, tuple[float, float]]:
    """Kernel → milliseconds and launches of one repeat."""
    found: dict[str, tuple[float, float]] = collections.defaultdict(lambda: (0.0, 0.0))
    for event in profiler.events() or []:
        if event.device_type == DeviceType.CUDA and not event.is_user_annotation:
            milliseconds, count = found[event.name]
            duration = event.time_range.elapsed_us() / 1000 / repeats
            found[event.name] = (milliseconds + duration, count + 1 / repeats)
    return found


def product_floor(profiler: profile, repeats: int) -> tuple[float, float]:
    """Milliseconds of one repeat's matrix products at the speed of a large one, and their FLOPs."""
    flops = 0.0
    for event in profiler.events() or []:
        if event.name in PRODUCTS:
            shapes: list[list[int]] = [shape for shape in event.input_shapes if len(shape) >= 2][-2:]
            if event.name in ("aten::mm", "aten::bmm", "aten::_scaled_mm"):
                shapes = [shape for shape in event.input_shapes if len(shape) >= 2][:2]
            (*batch, rows, inner), (*_, columns) = shapes
            flops += 2 * (batch[0] if batch else 1) * rows * inner * columns / repeats
    return flops / product_rate() * 1000, flops


def product_rate(size: int = 8192) -> float:
    """FLOP/s of one large bfloat16 product on random data: the median of ten."""
    a, b = torch.randn(2, size, size, device="cuda", dtype=torch.bfloat16)
    device, seconds = a.device, []
    for _ in range(13):
        first = mark(device)
        torch.mm(a, b)
        last = mark(device)
        synchronize(device)
        seconds.append(between(first, last) / 1000)
    return 2 * size**3 / statistics.median(seconds[3:])
