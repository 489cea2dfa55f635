"""The peak memory of a GPU, and which micro-batches leave it room."""

from collections.abc import Sequence
from typing import Any, TypedDict

from nanolit.config.schema import Job
from nanolit.model.accounting import activation_bytes, gpu_memory_gib, peak_memory_gib
from nanolit.planning.ranks import num_ranks

HEADROOM = 0.95  # of a GPU's memory that a micro-batch may fill: CUDA itself and fragments take some
GPUS = ("A10G", "A100-40GB", "L40S", "H100", "H200")  # for which a plan says what fits: 22 to 140 GiB


class Memory(TypedDict):
    """Peak GiB by part, the GiB of the GPU (None: unknown, as `fits` is then), rows that fit each of GPUS."""

    gib: dict[str, float]
    gpu_gib: float | None
    fits: bool | None
    largest_micro_batch: dict[str, int]


def memory(job: Job, gpt: dict[str, Any], micro_batch: int, *, choices: Sequence[int]) -> Memory | None:
    """Return what a micro-batch takes of the job's GPU, and the largest of `choices` for each of GPUS.

    None on a CPU.
    """
    gpu = job["cluster"]["gpu"] or "cpu"
    if gpu == "cpu":
        return None
    fitting = {name: [rows for rows in choices if fits(job, gpt, rows, gpu=name)] for name in GPUS}
    return {
        "gib": peak_memory(job, gpt, micro_batch, gpu=gpu),
        "gpu_gib": gpu_memory_gib(gpu),
        "fits": fits(job, gpt, micro_batch, gpu=gpu),
        "largest_micro_batch": {name: max(rows, default=0) for name, rows in fitting.items()},
    }


def peak_memory(job: Job, gpt: dict[str, Any], micro_batch: int, *, gpu: str) -> dict[str, float]:
    """Return accounting.peak_memory_gib for the job's ranks and precision on a GPU."""
    return peak_memory_gib(
        gpt,
        micro_batch=micro_batch,
        ranks=num_ranks(job),
        compute_bytes=4 if job["precision"] == "fp32" else 2,
        activation_bytes=activation_bytes(gpu, job["precision"]),
    )


def fits(job: Job, gpt: dict[str, Any], micro_batch: int, *, gpu: str) -> bool | None:
    """Return True if a micro-batch leaves a GPU its headroom; None if the GPU's memory is unknown."""
    available = gpu_memory_gib(gpu)
    if available is None:
        return None
    return peak_memory(job, gpt, micro_batch, gpu=gpu)["peak"] <= HEADROOM * available
