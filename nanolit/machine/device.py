"""The device, number format, rank and random numbers of this process."""

import functools
import hashlib
import importlib.util
import os
from typing import Any

import torch

HOPPER = 9  # the major compute capability that kernels with tensor descriptors are written for
TURING, ADA = (7, 5), (8, 9)
IGNORED = -1  # the target of a position that nothing is learned from: the data writes it, the loss skips it


def pick_device() -> torch.device:
    """CUDA with this process's local rank, else Apple's MPS, else the CPU; NANOLIT_DEVICE=KIND chooses."""
    there = [
        *([torch.device("cuda", local_rank())] if torch.cuda.is_available() else []),
        *([torch.device("mps")] if torch.backends.mps.is_available() else []),
        torch.device("cpu"),
    ]
    kinds = [device.type for device in there]
    wish = os.environ.get("NANOLIT_DEVICE") or kinds[0]
    if wish not in kinds:
        raise ValueError(f"NANOLIT_DEVICE is {wish!r}; this machine has {', '.join(kinds)}")
    return there[kinds.index(wish)]


def pick_devices(count: int) -> list[torch.device]:
    """Return that many devices like `pick_device`'s, GPUs from the first on; ValueError if there are fewer.

    Of a device that NANOLIT_DEVICE names, there are as many as are asked for: tests share the CPU.
    """
    first, there = pick_device(), torch.cuda.device_count()
    if first.type != "cuda" and (count == 1 or "NANOLIT_DEVICE" in os.environ):
        return [first] * count
    if count > there:
        remedy = f"give devices={there} or fewer" if there else "leave devices= out"
        raise ValueError(f"devices={count}, but this machine has {there or 'no'} GPUs; {remedy}")
    return [torch.device("cuda", index) for index in range(count)]


def use_device(device: torch.device) -> None:
    """Let this thread's streams, graphs and Triton kernels be this GPU's; nothing for other devices."""
    if device.type == "cuda":
        torch.cuda.set_device(device)


def make_deterministic() -> None:
    """Ask torch, its compiler and our operators for the same bits in every run of one command on one GPU.

    Call it before a model is built. Sampling and torch's own attention (flash and sdpa), which have no such
    form, warn and run as ever: neither decides what is learned where another kernel attends.
    """
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # what cuBLAS takes on Hopper anyway
    torch.utils.deterministic.fill_uninitialized_memory = False  # pyright: ignore[reportAttributeAccessIssue]
    torch.use_deterministic_algorithms(True, warn_only=True)


def compute_dtype(device: torch.device) -> torch.dtype:
    """Return bfloat16 if the matrix units take it (compute capability 8.0 and up), else float32."""
    if device.type == "cuda" and torch.cuda.get_device_capability(device) >= (8, 0):
        return torch.bfloat16
    return torch.float32


def plain_kernels() -> bool:
    """Tell whether NANOLIT_KERNELS=plain asks for torch's kernels in place of ours, to compare them."""
    wish = os.environ.get("NANOLIT_KERNELS", "")
    if wish not in ("", "plain"):
        raise ValueError(f"NANOLIT_KERNELS is {wish!r}; give plain, or leave it out")
    return wish == "plain"


@functools.cache
def triton_capability(device: torch.device) -> tuple[int, int]:
    """Return an NVIDIA GPU's compute capability; (0, 0) where Triton runs nothing."""
    if plain_kernels():
        return 0, 0
    if device.type != "cuda" or torch.version.hip is not None or importlib.util.find_spec("triton") is None:
        return 0, 0
    return torch.cuda.get_device_capability(device)


def local_rank() -> int:
    return int(os.environ.get("LOCAL_RANK", "0"))


def rank() -> int:
    return torch.distributed.get_rank() if torch.distributed.is_initialized() else 0


def world_size() -> int:
    return torch.distributed.get_world_size() if torch.distributed.is_initialized() else 1


def gathered(value: Any) -> list[Any]:
    """Return `value` of every rank, in rank order. Collective."""
    values: list[Any] = [value] * world_size()
    if len(values) > 1:
        torch.distributed.all_gather_object(values, value)
    return values


def derived_seed(seed: int, purpose: str, *keys: int) -> int:
    """Return a 63-bit seed that depends on every argument and on nothing else: no use shares a stream."""
    text = ":".join([str(seed), purpose, *map(str, keys)])
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "little") >> 1


def tried_gpus() -> list[str]:
    """Multiply matrices on each CUDA device and return the names; RuntimeError where one fails."""
    names = []
    for index in range(torch.cuda.device_count()):
        ones = torch.ones(1024, 1024, device=f"cuda:{index}", dtype=torch.bfloat16)
        if (ones @ ones)[0, 0].item() != 1024:
            raise RuntimeError(f"CUDA device {index} gives wrong products")
        names.append(torch.cuda.get_device_name(index))
    return names
