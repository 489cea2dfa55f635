"""The launcher of cluster=local: all jobs are checked first; one runs here, several as a process each."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from hydra.core.config_store import ConfigStore
from hydra.core.utils import JobReturn, JobStatus
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig


@dataclass
class LocalLauncherConf:
    _target_: str = "hydra_plugins.nanolit_local.launcher.LocalLauncher"


ConfigStore.instance().store(
    group="hydra/launcher", name="nanolit_local", node=LocalLauncherConf, provider="nanolit"
)


class LocalLauncher(Launcher):
    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        self.config = config

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        from nanolit.config.compose import compose
        from nanolit.jobs.sweep import run_jobs

        jobs = [compose(overrides) for overrides in job_overrides]
        Path(self.config.hydra.sweep.dir).mkdir(parents=True, exist_ok=True)  # where a sweeper writes
        returns = []
        for overrides, result in zip(job_overrides, run_jobs(jobs), strict=True):
            done = JobReturn(overrides=list(overrides), status=JobStatus.COMPLETED)
            done.return_value = result
            returns.append(done)
        return returns
