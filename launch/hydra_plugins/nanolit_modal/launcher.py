"""The launcher that cluster=modal_* selects: all jobs and its own settings are checked before all else."""

import os
from collections.abc import Sequence
from dataclasses import fields
from typing import Any

from hydra.core.utils import JobReturn
from hydra_plugins.nanolit_local.launcher import LocalLauncher
from hydra_plugins.nanolit_modal.config import ModalLauncherConf
from omegaconf import OmegaConf

from launch.gpus import check_gpu, gpus_of, same_gpu
from nanolit.config.schema import Cluster, Job
from nanolit.jobs.sweep import confirm, refuse_same_run
from nanolit.model.accounting import gpu_memory_gib
from nanolit.planning.plans import plan_jobs

DAY_SECONDS = 86_400


class ModalLauncher(LocalLauncher):
    def __init__(self, **settings: Any) -> None:
        self.settings = {key: plain(value) for key, value in settings.items()}

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        refuse_in_container()
        validate(**self.settings)
        self.refuse_sweeper_without_results()
        return super().launch(job_overrides, initial_job_idx)

    def check(self, jobs: Sequence[Job]) -> None:
        check_jobs(jobs, self.settings)

    def run(self, jobs: Sequence[Job]) -> list[float | None]:
        """Show the plans, submit, and wait if asked to; return validation bits per byte, or None."""
        from launch.sweep import describe_jobs, submit_jobs

        describe_jobs(jobs, self.settings)
        if self.settings["dry_run"]:
            return [None for _ in jobs]
        confirm(plan_jobs(jobs))
        return submit_jobs(jobs, self.settings)

    def refuse_sweeper_without_results(self) -> None:
        """ValueError for a sweeper that needs results to choose the next job if nothing waits for them."""
        sweeper = str(self.config.hydra.sweeper._target_)
        if not self.settings["wait"] and not sweeper.endswith("BasicSweeper"):
            raise ValueError(
                f"{sweeper.rpartition('.')[2]} chooses jobs by the results of earlier ones; give wait=true"
            )


def plain(value: Any) -> Any:
    return OmegaConf.to_container(value, resolve=True) if OmegaConf.is_config(value) else value


def launcher_settings(config: Any) -> dict[str, Any]:
    """Return hydra.launcher's settings of a composed configuration."""
    return {key: plain(value) for key, value in config.hydra.launcher.items() if key != "_target_"}


def refuse_in_container() -> None:
    """ValueError in a container, which would otherwise submit itself again and again."""
    if os.environ.get("MODAL_IS_REMOTE") == "1":
        raise ValueError(
            "this is a Modal container, which runs jobs and cannot submit any; choose cluster=local"
        )


def check_jobs(jobs: Sequence[Job], settings: dict[str, Any]) -> None:
    """ValueError for a job of another cluster, or planned for other GPUs, or twice the same run."""
    for job in jobs:
        cluster = job["cluster"]
        if cluster["kind"] != "modal":
            raise ValueError(
                f"cluster={cluster['name']} cannot be in the same sweep as a Modal cluster; run two commands"
            )
        first, *others = gpus_of(settings)
        if same_gpu(first) != same_gpu(planned := cluster["gpu"] or "cpu"):
            raise ValueError(
                f"hydra.launcher.gpu={first} is what is rented, but cluster.gpu={planned} is planned and "
                "priced; give both the same GPU"
            )
        for gpu in (first, *others):
            check_count(gpu, cluster, nodes=settings["nodes"])
            if (gpu_memory_gib(same_gpu(gpu)) or 0) < (gpu_memory_gib(same_gpu(first)) or 0):
                raise ValueError(
                    f"hydra.launcher.gpu has {gpu} instead of {first}, with less memory than planned; leave "
                    "it out, or give the smallest first and as cluster.gpu"
                )
    refuse_same_run(jobs)
    if not settings["wait"] and len(jobs) > settings["max_parallel"]:
        raise ValueError(
            f"{len(jobs)} jobs exceed hydra.launcher.max_parallel={settings['max_parallel']}, and with "
            "wait=false nothing holds the others back; give wait=true or a larger max_parallel"
        )


def check_count(gpu: str, cluster: Cluster, *, nodes: int) -> None:
    """ValueError unless as many GPUs are rented as are planned."""
    if (cluster["devices"], cluster["nodes"]) != (int(gpu.partition(":")[2] or 1), nodes):
        raise ValueError(
            f"cluster.devices={cluster['devices']} on {cluster['nodes']} node(s), but hydra.launcher.gpu="
            f"{gpu} on {nodes}; give both the same number"
        )


def validate(**settings: Any) -> None:
    """ValueError for what Modal's client lets pass and Modal itself refuses, or bills."""
    known = [field.name for field in fields(ModalLauncherConf)]
    assert set(settings) <= set(known), settings
    for gpu in gpus_of(settings):
        check_gpu(gpu, nodes=settings["nodes"])
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
        if settings[key] is not None and not low <= settings[key] <= high:
            raise ValueError(f"hydra.launcher.{key} is {settings[key]:,}; Modal allows {low:,} to {high:,}")
    for path in [settings["root"], *settings["volumes"]]:
        if not path.startswith("/") or path == "/":
            raise ValueError(
                f"hydra.launcher has a volume at {path!r}; a volume must be mounted at an absolute path such "
                "as /vol"
            )
