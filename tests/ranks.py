"""Processes for tests of ranks, forked from a server that has imported what they need."""

import multiprocessing
from collections.abc import Callable
from typing import Any

import torch.multiprocessing


def run_ranks(work: Callable[..., None], *arguments: Any, world: int) -> None:
    """Run `work(rank, *arguments)` on every rank; a spawned process would import torch again, for seconds."""
    multiprocessing.set_forkserver_preload(
        ["pytest", "torch.distributed", "nanolit.evaluation.evaluators", "nanolit.optim.muon_adamw"]
    )
    torch.multiprocessing.start_processes(work, arguments, nprocs=world, start_method="forkserver")
