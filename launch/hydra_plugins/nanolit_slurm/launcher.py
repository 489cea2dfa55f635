"""The launcher that cluster=slurm_* selects: jobs are checked and shown before sbatch has any of them."""

from collections.abc import Sequence
from typing import Any

from hydra.core.utils import JobReturn
from hydra.types import HydraContext, TaskFunction
from hydra_plugins.nanolit_local.launcher import LocalLauncher, composed
from omegaconf import DictConfig

from nanolit.config.schema import Job


class SlurmLauncher(LocalLauncher):
    def __init__(self, **settings: Any) -> None:
        self.settings = settings  # hydra-submitit-launcher's

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        self.config, self.hydra_context, self.task_function = config, hydra_context, task_function

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        from nanolit.jobs.sweep import JobFailed, refuse_same_run, show_jobs
        from nanolit.machine.exit import INTERRUPTED
        from nanolit.planning.plans import plan_jobs

        jobs = composed(job_overrides)
        for job in jobs:
            refuse_unsupported(job)
        if jobs[0]["dry_run"]:
            return super().launch(job_overrides, initial_job_idx)
        refuse_same_run(jobs)
        show_jobs(plan_jobs(jobs))
        try:
            return self.submitit().launch(job_overrides, initial_job_idx)
        except KeyboardInterrupt as error:
            runs = ", ".join(job["run"] for job in jobs)
            raise JobFailed(
                f"no longer waiting for {runs}: submitted jobs continue without this command; squeue --me "
                "lists them, scancel ID stops one",
                INTERRUPTED,
            ) from error

    def submitit(self) -> Any:
        from hydra_plugins.hydra_submitit_launcher.submitit_launcher import SlurmLauncher

        launcher = SlurmLauncher(**self.settings)
        launcher.setup(hydra_context=self.hydra_context, task_function=self.task_function, config=self.config)
        return launcher


def refuse_unsupported(job: Job) -> None:
    """ValueError for what cluster=slurm_* cannot do."""
    name, nodes = job["cluster"]["name"], job["cluster"]["nodes"]
    if nodes != 1:
        raise ValueError(
            f"cluster.nodes={nodes}, but cluster={name} gives each job one node; give cluster.nodes=1"
        )
    if not job["wait"]:
        raise ValueError(
            f"wait=false is for cluster=modal_*; with cluster={name} interrupt the command instead: its jobs "
            "stay in SLURM's queue"
        )
