"""GPUs by Modal's names for them."""

import re
from collections.abc import Sequence
from typing import Any

# https://modal.com/docs/guide/gpu (November 2026). "H100" may be an H200 at the price of an H100, "H100!" is
# not; "+" lets a B200 be a B300.
GPUS = (
    *("T4", "L4", "A10", "L40S", "A100", "A100-40GB", "A100-80GB", "RTX-PRO-6000"),
    *("H100", "H100!", "H200", "B200", "B200+", "B300"),
)
MOST_GPUS = {"A10": 4}
OTHER_NAMES = {"A10": "A10G", "A100": "A100-40GB"}  # of the same GPU


def same_gpu(gpu: str) -> str:
    """Return the name that prices use for a GPU, without a mark and a count."""
    name = gpu.partition(":")[0].rstrip("!+")
    return OTHER_NAMES.get(name, name)


def gpus_of(settings: dict[str, Any]) -> list[str]:
    """Return the GPUs that will do, the most wanted first; ValueError for neither a name nor a list."""
    gpu = settings["gpu"]
    gpus = [gpu] if isinstance(gpu, str) or not isinstance(gpu, Sequence) else list(gpu)
    if not gpus or not all(isinstance(name, str) for name in gpus):
        raise ValueError(
            f"hydra.launcher.gpu is {gpu!r}; give a name like H100:8, or a list: [H100:8,H200:8]"
        )
    return gpus


def check_gpu(gpu: str, *, nodes: int) -> None:
    """ValueError unless `gpu` is NAME or NAME:COUNT as Modal has them; several nodes need eight GPUs each."""
    match = re.fullmatch(r"([A-Z0-9-]+[!+]?)(?::(\d+))?", gpu)
    if not match or match[1] not in GPUS:
        raise ValueError(
            f"hydra.launcher.gpu is {gpu!r}; give one of {', '.join(GPUS)}, with :COUNT for several"
        )
    count, most = int(match[2] or 1), MOST_GPUS.get(match[1], 8)
    if not 1 <= count <= most:
        raise ValueError(f"hydra.launcher.gpu is {gpu!r}; a container has 1 to {most} of them")
    if nodes > 1 and count != 8:
        raise ValueError(
            f"hydra.launcher.gpu is {gpu!r} on {nodes} nodes; use all 8 of each node: {match[1]}:8"
        )
