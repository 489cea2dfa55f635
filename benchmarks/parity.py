"""Compare gradients with float32: `python -m benchmarks parity model=d12 [precision=fp8]`.

Trains the job's own model for a few real optimizer steps, so that no matrix is zero. Then compares each
parameter's gradient on one micro-batch, both compiled as in training and eager in the same precision, with
eager float32 from the same weights. Prints a table by part of the model and exits with 1 if a compiled
gradient exceeds its bound. NANOLIT_KERNELS=plain turns our kernels off.

The tokens are random by default, with the frequencies of words and with repeats: nothing has to be downloaded
or tokenized, frequent ids collide in the embedding's gradient as they do in text, and attention has something
to learn. `tokens=real data=…` uses the job's data. Also takes the settings of nanolit train.
"""

import sys
import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from itertools import islice
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from benchmarks import results
from benchmarks.parts import parts_of
from benchmarks.train import about, back_on_device, bare_step, device_name
from nanolit.jobs.parts import Parts, build_gpt
from nanolit.jobs.worker import quieten_libraries
from nanolit.kernels.attention import Backend, agrees
from nanolit.machine.arguments import read_some, setting
from nanolit.machine.device import plain_kernels
from nanolit.model.block import Block
from nanolit.model.gpt import GPT
from nanolit.report.tables import markdown_table

HORIZON = 352  # steps of the schedule, of which the first are made: a warm-up, as at the start of a real run
PIECE_TOKENS = 8192  # that the eager models take at once: float32 of d20 needs about 30 GiB for them
SHOWN_FAULTS = 10
SMALLEST = 1e-30  # in place of the norm of a gradient of zeros


@dataclass(frozen=True, kw_only=True)
class Settings(results.Kept):
    """Settings of the parity benchmark."""

    steps: int = setting("optimizer steps before the comparison, so that no matrix is zero", 5, least=1)
    tokens: Literal["skewed", "real"] = setting(
        "skewed: random, with the frequencies of words; real: the job's data", "skewed"
    )
    attention: Backend | None = setting("attention backend (default: the fastest)", None)


class Bound(NamedTuple):
    """The largest error of a matrix's gradient, the distance of its norm's ratio from 1, a scalar's error."""

    error: float
    ratio: float
    scalar: float


# fp32: measured 4e-7 (d2) and 2e-5 on a CPU, compiled and eager.
# bf16: measured on an H200 after 5 steps 0.013 and 0.005 (d12, every attention backend, our kernels and
# torch's alike), 0.016 and 0.0035 (d20); fewer tokens average rounding less.
# fp8: e4m3 rounds by 2.6% (RMS) and e5m2 by 5%: measured 0.037 and 0.009 (d12), 0.045 and 0.033 (d20).
# Scalars: so early the loss hardly depends on the residual stream's scale, and r's gradient is what is left
# of sums that cancel. Measured 0.033 (d12) and 0.004 (d20) in bf16, eager 0.12 and 0.044; fp8 0.017, 0.015.
# Ratios lean one way over all blocks of a model (1.001 to 1.0045 in d12, with torch's own kernels too; 1.004
# to 1.024 in fp8's d20): the rounded forward pass is another function, with a loss 0.0035 higher in d12.
# Where the loss is sharp nothing of this holds: at d12's 11th step, where it falls by a nat,
# bf16 queries and keys are 0.08 off, and fp8's gradients have 1.09 to 1.23 times the norm of float32's in its
# direction (cosine 0.99); at d4's 30th step 0.71 to 1.02 times.
BOUNDS = {
    "fp32": Bound(1e-4, 1e-4, 1e-4),
    "bf16": Bound(0.02, 0.015, 0.06),
    "fp8": Bound(0.2, 0.05, 0.06),
}


class Gradients(NamedTuple):
    """Mean loss over one micro-batch in nats, and its gradients by parameter in float32."""

    loss: float
    tensors: dict[str, Tensor]


class Difference(NamedTuple):
    """A gradient compared with the expected one: 0, 0, 1 and 1 if they are equal."""

    error: float  # relative to the yardstick: see compare
    relative: float  # relative to the expected gradient's norm
    ratio: float  # of the norms
    cosine: float


def main(arguments: list[str]) -> int:
    """Train, compare, print a table and a line of JSON, keep the JSON; return 1 if a bound is exceeded."""
    settings, overrides = read_some(Settings, arguments, about=__doc__)
    quieten_libraries()
    begun = time.perf_counter()
    job, parts = parts_of(overrides, tokens=settings.tokens, num_steps=HORIZON)
    if settings.attention:
        use_attention(parts.phase.gpt, settings.attention)
    is_bf16 = parts.phase.gpt.compute_dtype == torch.bfloat16
    precision = "fp8" if job["precision"] == "fp8" else "bf16" if is_bf16 else "fp32"
    losses, differences = measure(parts, steps=settings.steps, seed=job["seed"])
    matrices = {name for name, parameter in parts.phase.gpt.named_parameters() if parameter.ndim == 2}
    faults = faults_of(differences["compiled"], matrices, precision)
    entry = {
        "command": results.command_line("parity", arguments),
        **about(parts),
        "precision": precision,
        "kernels": "plain" if plain_kernels() else "ours",
        "compiled": parts.phase.forward_gpt is not parts.phase.gpt,
        "steps": settings.steps,
        "loss": losses,
        "parts": summary(parts.phase.gpt, differences),
        "faults": faults,
        "seconds": time.perf_counter() - begun,
    }
    report(entry, results.save(entry, settings, device=device_name(parts.device)))
    for fault in faults[:SHOWN_FAULTS]:
        print(fault, file=sys.stderr)
    return 1 if faults else 0


def use_attention(gpt: GPT, backend: Backend) -> None:
    """Use one attention backend; ValueError if it is missing or does not agree with float32."""
    if backend != "sdpa" and not agrees(backend, gpt.device, gpt.compute_dtype, gpt.head_dim):
        raise ValueError(f"attention={backend} is not installed or does not run here; leave it out")
    for block in gpt.blocks:
        assert isinstance(block, Block)
        block.attention.backend = backend


def measure(
    parts: Parts, *, steps: int, seed: int
) -> tuple[dict[str, float], dict[str, dict[str, Difference]]]:
    """Return each model's loss in nats, and every parameter's difference by "compiled" and "eager"."""
    phase = back_on_device(parts)
    *training, last = islice(iter(parts.stream), steps + 1)
    for number, step in enumerate(training):
        bare_step(phase, step, number)
    for name, parameter in phase.gpt.named_parameters():
        if parameter.ndim == 2 and not parameter.any():
            raise ValueError(f"{name} is still zero after steps={steps}; give more steps")
    reference = build_gpt(parts.plan.gpt, parts.device, seed=seed, precision="fp32")
    with torch.no_grad():
        for parameter, trained in zip(reference.parameters(), phase.gpt.parameters(), strict=True):
            parameter.copy_(trained)
    ids_BT, targets_BT = (tensor.to(parts.device) for tensor in last.micro_batches[0])
    rows = max(1, min(PIECE_TOKENS // ids_BT.size(1), len(ids_BT) // 8))
    found = {
        "compiled": gradients(phase.gpt, phase.loss, ids_BT, targets_BT, rows=len(ids_BT)),
        "eager": gradients(phase.gpt, summed(phase.gpt), ids_BT, targets_BT, rows=rows),
    }
    torch.set_float32_matmul_precision("highest")
    expected = gradients(reference, summed(reference), ids_BT, targets_BT, rows=rows)
    losses = {"float32": expected.loss, **{name: gradient.loss for name, gradient in found.items()}}
    return losses, {name: compare(gradient, expected) for name, gradient in found.items()}


def summed(gpt: GPT) -> Callable[[Tensor, Tensor], Tensor]:
    return lambda ids_BT, targets_BT: gpt(ids_BT, targets_BT, reduction="sum")


def gradients(
    gpt: GPT,
    loss: Callable[[Tensor, Tensor], Tensor],
    ids_BT: Tensor,
    targets_BT: Tensor,
    *,
    rows: int,
) -> Gradients:
    """Take `rows` rows at a time and add up their gradients in float32, whatever the parameters' dtype."""
    total, tensors = 0.0, {}
    for ids, targets in zip(ids_BT.split(rows), targets_BT.split(rows), strict=True):
        nats = loss(ids, targets) / ids_BT.numel()
        nats.backward()
        total += nats.item()
        for name, parameter in gpt.named_parameters():
            if parameter.grad is None:
                raise ValueError(f"{name} has no gradient; every parameter of a model must be learned")
            piece, parameter.grad = parameter.grad.float(), None
            tensors[name] = tensors[name].add_(piece) if name in tensors else piece
    return Gradients(total, tensors)


def compare(found: Gradients, expected: Gradients) -> dict[str, Difference]:
    """Measure a matrix's error by its own norm, a scalar's by the largest norm of any scalar parameter.

    All scalars scale a part of the residual stream, so that their gradients are in one unit. Some true ones
    nearly vanish: at first the loss is blind to the stream's scale, and in d2 the backout's is always zero.
    Any rounding is large beside almost nothing, while a lost path's error is as large as the path.
    """
    scalars = [gradient.norm().item() for gradient in expected.tensors.values() if gradient.ndim < 2]
    differences = {}
    for name, wanted in expected.tensors.items():
        a, b = wanted.flatten().double(), found.tensors[name].flatten().double()
        error, norm, other = (b - a).norm().item(), a.norm().item() or SMALLEST, b.norm().item() or SMALLEST
        yardstick = max(scalars) if wanted.ndim < 2 else norm
        cosine = (a @ b).item() / norm / other
        differences[name] = Difference(error / yardstick, error / norm, other / norm, cosine)
    return differences


def faults_of(differences: dict[str, Difference], matrices: set[str], precision: str) -> list[str]:
    """Return a line for each parameter that exceeds a bound, as NaN does. Norms count for matrices only."""
    bound, faults = BOUNDS[precision], []
    for name, difference in differences.items():
        largest = bound.error if name in matrices else bound.scalar
        if not difference.error <= largest:
            got, allowed = f"is off by {difference.error:.2g}", f"at most {largest:g}"
        elif name in matrices and not abs(difference.ratio - 1) <= bound.ratio:
            got = f"has {difference.ratio:.4f} times the norm of float32's"
            allowed = f"{1 - bound.ratio:g} to {1 + bound.ratio:g}"
        else:
            continue
        faults.append(f"{name}: its gradient {got}; {allowed} is allowed in {precision}")
    return faults


def part_of(name: str, role: str) -> str:
    """Return a parameter's row of the table: a matrix without its block's number, else its name or role."""
    if role == "matrix":
        return name.split(".", 2)[2].removesuffix(".weight")
    return name.removesuffix(".weight") if role == "smear" else role


def summary(gpt: GPT, differences: dict[str, dict[str, Difference]]) -> dict[str, dict[str, Any]]:
    """Return by part, and by "compiled" and "eager", the largest errors, extreme ratios, and worst cosine."""
    roles, names = gpt.parameter_roles(), defaultdict(list)
    for name, role in roles.items():
        names[part_of(name, role)].append(name)
    return {
        part: {how: worst([by_name[name] for name in members]) for how, by_name in differences.items()}
        for part, members in names.items()
    }


def worst(differences: list[Difference]) -> dict[str, float]:
    errors, relative, ratios, cosines = zip(*differences, strict=True)
    return {
        "error": max(errors),
        "relative_error": max(relative),
        "lowest_ratio": min(ratios),
        "highest_ratio": max(ratios),
        "cosine": min(cosines),
    }


def report(entry: dict[str, Any], path: Any) -> None:
    """Print the table by part, then the entry as one line of JSON: the last line."""
    header = ["gradient"]
    for how in ("compiled", "eager"):
        header += [f"{how}: error", "norm ratios", "cosine"]
    rows = []
    for part, by_how in entry["parts"].items():
        row = [part]
        for errors in by_how.values():
            ratios = f"{errors['lowest_ratio']:.4f}–{errors['highest_ratio']:.4f}"
            counted = "" if errors["error"] == errors["relative_error"] else f" ({errors['error']:.2g})"
            row += [f"{errors['relative_error']:.2g}{counted}", ratios, f"{errors['cosine']:.6f}"]
        rows.append(row)
    print(markdown_table(header, rows))
    print("  (in brackets: relative to the largest norm of a scalar parameter's gradient, as the bounds are)")
    print("  loss: " + ", ".join(f"{how} {nats:.5f}" for how, nats in entry["loss"].items()))
    print(f"  {entry['precision']}, {entry['attention']} attention, kernels {entry['kernels']}; ", end="")
    print(f"{entry['micro_batch']} rows × {entry['context']} after {entry['steps']} steps")
    results.print_json(entry, path)
