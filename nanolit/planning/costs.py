"""The cost of a stage on the job's cluster: hours, memory of a GPU, dollars."""

from collections.abc import Sequence
from typing import NotRequired, cast

import numpy as np
import yaml
from typing_extensions import TypedDict

from nanolit.config.schema import Cluster, Job, Target
from nanolit.machine.numbers import divisors
from nanolit.machine.paths import CONF
from nanolit.model.accounting import (
    Hyperparameters,
    activation_bytes,
    flops_per_token,
    gpu_memory_gib,
    peak_bf16_flops,
    peak_memory_gib,
)

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
# Two CPU cores in float32: FLOP/s of matrix products, then the seconds that the rest of a training token
# takes: per channel of a layer (norms, activations; the second figure is for models with residual scalars),
# per logit, and per element of the head and logit, since the loss reads the head's weight again for every
# 2 MiB of logits (kernels/loss.py). Fitted to ten models of d2 to d8, widths 128 to 512, vocabularies 1,024
# to 32,768, all within 7% (tests/planning/test_costs.py has the times)
CPU_FLOPS = 157e9
CHANNEL_SECONDS = (0.05e-6, 0.11e-6)
LOGIT_SECONDS, HEAD_SECONDS = 4.3e-9, 1.9e-15
# Time of one token of an answer on a CPU, in training tokens: 0.6 with 2,000 answers at once, 0.9 with 128
ANSWER_TOKENS = 0.9
# From the start of a process to the end of its first step, compilation included: d12 and d20 on one H200.
START_HOURS = 75 / 3600
CPU_START_HOURS = 4 / 3600  # of each stage of the demo, with its release and report
# Cores and MiB of the machine on Modal that downloads data and trains the tokenizer (launch/submit.py)
PREPARING = {"cpu": 16.0, "memory": 65_536}
HEADROOM = 0.95  # of a GPU's memory that a micro-batch may fill: CUDA itself and fragments take some
GPUS = ("A10G", "A100-40GB", "L40S", "H100", "H200")  # for which a plan says what fits: 22 to 140 GiB


def num_ranks(job: Job) -> int:
    """Return how many processes train, one a device."""
    return job["cluster"]["devices"] * job["cluster"]["nodes"]


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


def hours(
    job: Job, gpt: Hyperparameters, flops: float | None, *, evaluation: float = 0, answers: int = 0
) -> Hours:
    """Return the hours of `flops` of training and `evaluation`, in FLOPs too, and of `answers` in tokens.

    Answers are counted on a CPU alone (on 8 H100 the chat tasks took nanochat's classic d20 half an hour).
    """
    gpu, devices = job["cluster"]["gpu"] or "cpu", num_ranks(job)
    if gpu == "cpu":
        mfu, speed, start = None, cpu_speed(gpt), CPU_START_HOURS
        evaluation += answers * ANSWER_TOKENS * flops_per_token(gpt)
    else:
        mfu, peak, start = utilisation(gpu, job), peak_bf16_flops(gpu), START_HOURS
        speed = mfu * devices * peak if peak else None
    training = flops / speed / 3600 if flops and speed else None
    evaluating = evaluation / speed / 3600 if flops and speed else None
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


def cpu_speed(gpt: Hyperparameters) -> float:
    """Return the FLOP/s of training on two CPU cores: FLOPs over their own time and that of all else."""
    flops, vocabulary = flops_per_token(gpt), gpt["vocab_size"]
    between = gpt["depth"] * gpt["width"] * CHANNEL_SECONDS[gpt["residual_scalars"]]
    head = vocabulary * LOGIT_SECONDS + vocabulary**2 * gpt["width"] * HEAD_SECONDS
    return flops / (flops / CPU_FLOPS + between + head)


def answer_tokens(
    tasks: Sequence[Target], *, max_tokens: int, samples: int = 1, most: int | None = None
) -> int:
    """Return the tokens of answers to those tasks whose number of questions is known, or has a bound."""
    bounds = [most] if most else []
    counts = [[task[key] for key in ("size", "max_rows") if task.get(key)] + bounds for task in tasks]
    return sum(min(count) for count in counts if count) * samples * max_tokens


def asked_at_the_end(job: Job) -> int:
    """Return the tokens of answers to the chat tasks."""
    asked = job["chat_tasks"]
    return answer_tokens(asked["tasks"], max_tokens=asked["max_tokens"], most=asked.get("max_per_task"))


def utilisation(gpu: str, job: Job) -> float:
    """Return the MFU of the job's depth and precision on a GPU, against its bf16 peak."""
    known = next((table for name, table in MFU.items() if name in gpu.upper()), {0: ASSUMED_MFU})
    mfu = interpolated(known, job["model"]["depth"])
    if job["precision"] != "fp8":
        return mfu
    return round(mfu * interpolated(FP8_SPEED, job["model"]["depth"]), 3)


def interpolated(known: dict[int, float], depth: int) -> float:
    """Interpolate between the known depths, in rising order; constant beyond them."""
    return round(float(np.interp(depth, [*known], [*known.values()])), 3)


class Memory(TypedDict):
    """Peak GiB by part, the GiB of the GPU (None: unknown, as `fits` is then), rows that fit each of GPUS."""

    gib: dict[str, float]
    gpu_gib: float | None
    fits: bool | None
    largest_micro_batch: dict[str, int]


def memory(job: Job, gpt: Hyperparameters, micro_batch: int, *, rows: int, gpu: str) -> Memory:
    """Return what a micro-batch takes of the GPU, and the largest part of `rows` for each of GPUS."""
    fitting = {name: [n for n in divisors(rows) if fits(job, gpt, n, gpu=name)] for name in GPUS}
    return {
        "gib": peak_memory(job, gpt, micro_batch, gpu=gpu),
        "gpu_gib": gpu_memory_gib(gpu),
        "fits": fits(job, gpt, micro_batch, gpu=gpu),
        "largest_micro_batch": {name: max(fit, default=0) for name, fit in fitting.items()},
    }


def peak_memory(job: Job, gpt: Hyperparameters, micro_batch: int, *, gpu: str) -> dict[str, float]:
    """Return accounting.peak_memory_gib for the job's ranks and precision on a GPU."""
    return peak_memory_gib(
        gpt,
        micro_batch=micro_batch,
        ranks=num_ranks(job),
        compute_bytes=4 if job["precision"] == "fp32" else 2,
        activation_bytes=activation_bytes(gpu, job["precision"]),
    )


def fits(job: Job, gpt: Hyperparameters, micro_batch: int, *, gpu: str) -> bool | None:
    """Return True if a micro-batch leaves a GPU its headroom; None if the GPU's memory is unknown."""
    available = gpu_memory_gib(gpu)
    if available is None:
        return None
    return peak_memory(job, gpt, micro_batch, gpu=gpu)["peak"] <= HEADROOM * available


class Cost(TypedDict):
    """Dollars of a stage and an hour of it, None where unknown, and the date of the prices."""

    dollars: float | None
    dollars_per_hour: float | None
    prices: str


def cost(stage: str, hours: Hours, cluster: Cluster) -> Cost | None:
    """Return what that many hours of the cluster cost; None where nobody bills.

    The tokenizer is trained on a machine of its own, without GPUs.
    """
    if stage == "tokenizer":
        cluster = cast(Cluster, {**cluster, **PREPARING, "devices": 0, "nodes": 1})
    prices = yaml.safe_load((CONF / "prices.yaml").read_text(encoding="utf-8"))
    known = prices.get(cluster["kind"])
    return known and billed(hours["total_hours"], cluster, known, date=prices["date"])


def billed(hours: float | None, cluster: Cluster, known: dict[str | None, float], *, date: str) -> Cost:
    """Return what the hours cost by the `known` prices of GPUs, cores and GiB."""
    gpus, per_hour = cluster["devices"], None
    if gpus == 0 or cluster["gpu"] in known:
        gpu = known[cluster["gpu"]] if gpus else 0
        host = known["core"] * cluster.get("cpu", 0) + known["gib"] * cluster.get("memory", 0) / 1024
        per_hour = cluster["nodes"] * (gpus * gpu + host)
    dollars = None if per_hour is None or hours is None else per_hour * hours
    return {"dollars": dollars, "dollars_per_hour": per_hour, "prices": date}
