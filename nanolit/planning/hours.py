"""Hours on the job's cluster, from FLOPs and how well each GPU is known to use them."""

import math
from typing import Any, NotRequired, TypedDict

from nanolit.config.schema import Job
from nanolit.model.accounting import flops_per_token, peak_bf16_flops
from nanolit.planning.ranks import num_ranks
from nanolit.planning.watching import Watching

# Model FLOPs utilisation by depth, in bf16. H100: d20 (47.4–49 %), d24 (46.9–50.5 %), d32 (50.9 %) published
# with nanochat; the rest measured with nanochat of July 2026 on one GPU. H200: measured here (LOG.md), but
# d24 with nanochat. A100: from the 6.6 hours published for the classic d20 on eight.
MFU: dict[str, dict[int, float]] = {
    "H100": {8: 0.30, 12: 0.43, 20: 0.47, 24: 0.485, 32: 0.51},
    "H200": {8: 0.46, 12: 0.50, 20: 0.52, 24: 0.53},
    "A100": {20: 0.66},
}
FP8_SPEED = {8: 1.15, 12: 1.25, 20: 1.39}  # times bf16's, by depth, measured on one H200 (LOG.md)
ASSUMED_MFU = 0.40  # for any other GPU: not measured
CPU_FLOPS = 0.11e12  # FLOP/s of two cores, measured with nanochat's d2 and d4 in float32
# From the start of a process to the end of its first step, compilation included: d12 and d20 on one H200.
START_HOURS = 75 / 3600


class Hours(TypedDict):
    """Hours by part and what they assume; None where the work or the GPU's peak is unknown.

    `hours` is training itself. The tokenizer has neither devices nor the parts that it has no use for.
    """

    gpu: str
    devices: NotRequired[int]
    mfu: NotRequired[float | None]
    hours: float | None
    evaluation_hours: NotRequired[float | None]
    start_hours: NotRequired[float]
    total_hours: float | None


def hours(job: Job, flops: float | None, *, evaluation: float = 0) -> Hours:
    """Return the hours of `flops` of training and `evaluation`, in FLOPs too.

    Chat tasks are not counted (half an hour of nanochat's classic d20 on 8 H100).
    """
    gpu, devices = job["cluster"]["gpu"] or "cpu", num_ranks(job)
    depth = job["model"]["depth"]
    mfu = None if gpu == "cpu" else utilisation(gpu, depth)
    if mfu and job["precision"] == "fp8":
        mfu = round(mfu * interpolated(FP8_SPEED, depth), 3)
    peak = peak_bf16_flops(gpu)
    speed = CPU_FLOPS if mfu is None else mfu * devices * peak if peak else None
    training = flops / speed / 3600 if flops and speed else None
    evaluating = evaluation / speed / 3600 if flops and speed else None
    start = 0.0 if gpu == "cpu" else START_HOURS
    total = None if training is None else training + (evaluating or 0.0) + start
    return {
        "gpu": gpu,
        "devices": devices,
        "mfu": mfu,
        "hours": training,
        "evaluation_hours": evaluating,
        "start_hours": start,
        "total_hours": total,
    }


def evaluation_flops(gpt: dict[str, Any], watched: Watching, num_steps: int) -> float:
    """Return the FLOPs of bits per byte, every so often and after the last step.

    A forward pass is a third of training's forward and backward.
    """
    times = math.ceil(num_steps / watched["eval_every"])
    return times * watched["eval_rows"] * gpt["context"] * flops_per_token(gpt) / 3


def utilisation(gpu: str, depth: int) -> float:
    """Return the MFU of a depth on a GPU, against its bf16 peak."""
    known = next((table for name, table in MFU.items() if name in gpu.upper()), {0: ASSUMED_MFU})
    return interpolated(known, depth)


def interpolated(known: dict[int, float], depth: int) -> float:
    """Interpolate between the known depths; constant beyond them."""
    below = max((key for key in known if key <= depth), default=min(known))
    above = min((key for key in known if key >= depth), default=max(known))
    if below == above:
        return known[below]
    if depth < below or depth > above:
        return known[below] if depth < below else known[above]
    share = (depth - below) / (above - below)
    return round(known[below] + share * (known[above] - known[below]), 3)
