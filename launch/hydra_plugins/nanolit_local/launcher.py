"""The launcher of cluster=local: all jobs are checked first; one runs here, several as a process each."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from hydra.core.config_store import ConfigStore
from hydra.core.utils import JobReturn, JobStatus
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig

from nanolit.config.schema import Job


@dataclass
class LocalLauncherConf:
    _target_: str = "hydra_plugins.nanolit_local.launcher.LocalLauncher"


ConfigStore.instance().store(
    group="hydra/launcher", name="nanolit_local", node=LocalLauncherConf, provider="nanolit"
)


def composed(job_overrides: Sequence[Sequence[str]]) -> list[Job]:
    """Return the jobs of a sweep; ValueError for one that has none."""
    from nanolit.config.compose import compose

    if not job_overrides:
        raise ValueError("the sweep has no values: range(A,B) ends before B; give a larger B")
    return [compose(overrides) for overrides in job_overrides]


class LocalLauncher(Launcher):
    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        self.config = config

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        from nanolit.jobs.sweep import JobFailed
        from nanolit.machine.exit import INTERRUPTED

        jobs = composed(job_overrides)
        self.check(jobs)
        Path(self.config.hydra.sweep.dir).mkdir(parents=True, exist_ok=True)  # where a sweeper writes
        try:
            values = self.run(jobs)
        except JobFailed as error:
            # A search (optuna) may allow some failures; it raises what it is given here once there are more
            if error.code == INTERRUPTED or not self.config.hydra.sweeper.get("max_failure_rate"):
                raise
            print(error, file=sys.stderr)
            values = [one.get("val_bpb") if one["status"] == "done" else error for one in error.results]
        returns = []
        for overrides, value in zip(job_overrides, values, strict=True):
            status = JobStatus.FAILED if isinstance(value, JobFailed) else JobStatus.COMPLETED
            done = JobReturn(overrides=list(overrides), status=status)
            done.return_value = value
            returns.append(done)
        return returns

    def check(self, jobs: Sequence[Job]) -> None:
        """ValueError for jobs that cannot run; `run_jobs` has checks of its own."""

    def run(self, jobs: Sequence[Job]) -> Sequence[float | None]:
        """Run the jobs to their ends; return what a sweeper minimises of each."""
        from nanolit.jobs.sweep import run_jobs

        return run_jobs(jobs)
