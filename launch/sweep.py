"""One or several jobs to Modal: at most `max_parallel` at a time, each with its own app, logs and result."""

import json
import queue
import threading
from collections.abc import Sequence
from typing import Any

from launch.follow import follow, running
from launch.submit import CPU_FUNCTIONS, Submission, secrets_of, submission_path, submit, volumes_of
from launch.uploads import upload_paths
from nanolit.config.schema import Job
from nanolit.jobs.execute import say, score
from nanolit.jobs.sweep import JobFailed, conclude
from nanolit.machine.paths import read_json, write_json
from nanolit.planning.plans import plan_jobs
from nanolit.planning.show import show_plans


def describe_jobs(jobs: Sequence[Job], settings: dict[str, Any]) -> None:
    """Print every job's plans, and with dry_run=true the job that would be submitted."""
    show_plans(plan_jobs(jobs))
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
    """Submit all; with wait=true their validation bits per byte, else None for each.

    Ctrl-C ends the waiting, not the jobs: then JobFailed says how to come back to them.
    """
    if not settings["wait"]:
        for job in jobs:
            begin(job, settings)
        return [None for _ in jobs]
    waiting, running, results = list(jobs), dict[str, Job](), dict[str, dict[str, Any]]()
    ended: queue.SimpleQueue[dict[str, Any]] = queue.SimpleQueue()
    try:
        while waiting or running:
            while waiting and len(running) < settings["max_parallel"]:
                job = waiting.pop(0)
                running[job["run"]] = job
                watch(begin(job, settings), settings, ended)
            result = ended.get()
            results[result["run"]] = conclude_one(running.pop(result["run"]), result)
    except KeyboardInterrupt:
        lines = [f"{job['run']} goes on; {how_to_follow(job)}" for job in running.values()]
        lines += [f"{job['run']} was not submitted; the same command submits it" for job in waiting]
        raise JobFailed("\n".join(lines), 130) from None
    return conclude(jobs, [results[job["run"]] for job in jobs])


def watch(
    submission: Submission, settings: dict[str, Any], ended: "queue.SimpleQueue[dict[str, Any]]"
) -> None:
    """Follow a run in a thread that nobody waits for; its result goes to `ended`."""

    def wait() -> None:
        try:
            ended.put(follow(submission, logs=settings["stream_logs"], say=say))
        except Exception as error:
            text = f"lost sight of it ({type(error).__name__}: {error}); it goes on without us"
            ended.put({"run": submission["run"], "status": "failed", "error": text})

    threading.Thread(target=wait, daemon=True).start()


def begin(job: Job, settings: dict[str, Any]) -> Submission:
    refuse_running(job)
    submission = submit(upload_paths(job, settings), settings)
    say(f"── {job['run']} submitted as {submission['app']}: {submission['dashboard']}")
    say(f"   {how_to_follow(job)}")
    return submission


def refuse_running(job: Job) -> None:
    """ValueError when the run has been submitted from here and has not ended."""
    path = submission_path(job["root"], job["run"])
    if path.exists() and running(read_json(path)):
        raise ValueError(f"run {job['run']} is running on Modal already; {how_to_follow(job)}")


def how_to_follow(job: Job) -> str:
    return f"python -m launch attach {job['run']} follows it, python -m launch stop {job['run']} ends it"


def conclude_one(job: Job, result: dict[str, Any]) -> dict[str, Any]:
    """Keep the result beside the submission, and say it."""
    write_json(submission_path(job["root"], job["run"]).with_name("submission_result.json"), result)
    say(f"── {job['run']}: {result['status']}{score(result)} {result.get('error', '')}".rstrip())
    return result
