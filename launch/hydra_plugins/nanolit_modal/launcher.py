"""The launcher that cluster=modal_* selects: all jobs and its own settings are checked before all else."""

import re
from collections.abc import Sequence
from dataclasses import fields
from typing import Any

from hydra.core.utils import JobReturn
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from hydra_plugins.nanolit_modal.config import ModalLauncherConf
from omegaconf import DictConfig

# https://modal.com/docs/guide/gpu (November 2026). "!" keeps an H100 an H100, "+" lets a B200 be a newer one.
GPUS = (
    "T4",
    "L4",
    "A10",
    "L40S",
    "A100",
    "A100-40GB",
    "A100-80GB",
    "RTX-PRO-6000",
    "H100",
    "H100!",
    "H200",
    "B200",
    "B200+",
)
MOST_GPUS = {"A10": 4}
DAY_SECONDS = 86_400


class ModalLauncher(Launcher):
    def __init__(self, **settings: Any) -> None:
        self.settings = settings

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        self.config = config

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        from nanolit.jobs.compose import compose

        validate(**self.settings)
        jobs = [compose(overrides) for overrides in job_overrides]
        for job in jobs:
            if job["cluster"]["kind"] != "modal":
                raise ValueError(
                    f"cluster={job['cluster']['name']} cannot be swept with a Modal one; give them apart"
                )
        names = ", ".join(job["run"] for job in jobs)
        raise ValueError(
            f"submitting to Modal is not available yet in this version: {names} was not started; "
            "python -m nanolit.plan shows its plan, cluster=local runs it here"
        )


def validate(**settings: Any) -> None:
    """ValueError for what Modal's client lets pass and Modal itself refuses, or bills."""
    known = [one.name for one in fields(ModalLauncherConf)]
    assert set(settings) <= set(known), settings
    check_gpu(settings["gpu"], nodes=settings["nodes"])
    for key, low, high in (
        ("timeout", 1, DAY_SECONDS),
        ("startup_timeout", 1, DAY_SECONDS),
        ("retries", 0, 10),
        ("cpu", 0.125, 64),
        ("memory", 128, 344_064),
        ("ephemeral_disk", 1, 3_145_728),
        ("nodes", 1, 32),
        ("max_parallel", 1, 100),
    ):
        if not low <= settings[key] <= high:
            raise ValueError(f"hydra.launcher.{key} is {settings[key]:,}; give Modal {low:,} to {high:,}")
    for path in settings["volumes"]:
        if not path.startswith("/") or path == "/":
            raise ValueError(
                f"hydra.launcher.volumes has {path!r}; a volume is mounted at an absolute path like /vol"
            )


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
        raise ValueError(f"hydra.launcher.gpu is {gpu!r} on {nodes} nodes; give all 8 of each: {match[1]}:8")
