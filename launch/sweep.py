"""One or several jobs to Modal: at most `max_parallel` at a time, each with its own app, logs and result."""

import json
from collections.abc import Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from typing import Any

from launch.follow import follow
from launch.submit import CPU_FUNCTIONS, Submission, secrets_of, submission_path, submit, volumes_of
from launch.uploads import upload_paths
from nanolit.jobs.execute import say, score
from nanolit.jobs.plans import show_plans
from nanolit.jobs.sweep import conclude
from nanolit.machine.paths import write_json
from nanolit.phases.job import Job


def describe_jobs(jobs: Sequence[Job], settings: dict[str, Any]) -> None:
    """Print every job's plans, and with dry_run=true the job that would be submitted."""
    show_plans(jobs)
    for job in jobs:
        if settings["dry_run"]:
            say(json.dumps(request_of(job, settings), indent=2, ensure_ascii=False))
            say(f"dry run: {job['run']} was not submitted")


def request_of(job: Job, settings: dict[str, Any]) -> dict[str, Any]:
    """What submitting would ask of Modal, and the job that would go there."""
    asked = (
        "gpu",
        "cpu",
        "memory",
        "ephemeral_disk",
        "timeout",
        "startup_timeout",
        "retries",
        "nodes",
        "region",
    )
    return {
        "app": f"{settings['app_name']}-{job['run']}",
        "functions": {**CPU_FUNCTIONS, "train": {key: settings[key] for key in asked}},
        "volumes": volumes_of(settings),
        "secrets": secrets_of(job, settings),
        "job": {**job, "root": settings["root"]},
    }


def submit_jobs(jobs: Sequence[Job], settings: dict[str, Any]) -> list[float | None]:
    """Submit all; with wait=true their validation bits per byte, else None for each."""
    waiting, running, results = list(jobs), dict[Future, Job](), dict[str, dict[str, Any]]()
    with ThreadPoolExecutor(settings["max_parallel"]) as pool:
        try:
            while waiting or running:
                while waiting and len(running) < settings["max_parallel"]:
                    job = waiting.pop(0)
                    submission = begin(job, settings)
                    if not settings["wait"]:
                        results[job["run"]] = {}
                        continue
                    future = pool.submit(follow, submission, logs=settings["stream_logs"], say=say)
                    running[future] = job
                for future in wait(running, timeout=0.5, return_when=FIRST_COMPLETED).done:
                    job = running.pop(future)
                    results[job["run"]] = conclude_one(job, future.result())
        except KeyboardInterrupt:
            for job in running.values():
                say(f"{job['run']} goes on; {how_to_follow(job)}")
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    if not settings["wait"]:
        return [None for _ in jobs]
    return conclude(jobs, [results[job["run"]] for job in jobs])


def begin(job: Job, settings: dict[str, Any]) -> Submission:
    submission = submit(upload_paths(job, settings), settings)
    say(f"── {job['run']} submitted as {submission['app']}: {submission['dashboard']}")
    if not settings["wait"]:
        say(f"   {how_to_follow(job)}")
    return submission


def how_to_follow(job: Job) -> str:
    return f"python -m launch attach {job['run']} follows it, python -m launch stop {job['run']} ends it"


def conclude_one(job: Job, result: dict[str, Any]) -> dict[str, Any]:
    """Keep the result beside the submission, and say it."""
    write_json(submission_path(job["root"], job["run"]).with_name("submission_result.json"), result)
    say(f"── {job['run']}: {result['status']}{score(result)} {result.get('error', '')}".rstrip())
    return result
