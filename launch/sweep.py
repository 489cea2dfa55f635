"""One or several jobs to Modal: at most `max_parallel` at a time, each with its own app, logs and result."""

import json
import math
import queue
import threading
from collections.abc import Sequence
from typing import Any, cast

from launch.follow import follow, running
from launch.gpus import gpus_of
from launch.image import check_project
from launch.submit import (
    CPU_FUNCTIONS,
    Submission,
    dollars_per_hour,
    remember,
    secrets_of,
    stored_submission,
    submission_path,
    submissions,
    submit,
    volumes_of,
)
from launch.uploads import upload_paths
from nanolit.config.schema import Job
from nanolit.jobs.execute import say, score
from nanolit.jobs.sweep import JobFailed, conclude, show_jobs
from nanolit.planning.plans import Plans, fresh_plans, plan_jobs, total

MOST_CORES = 8  # for a GPU: more are a node's whose other GPUs are not rented
STARTER_GPUS, TEAM_GPUS = 10, 50  # at once, by Modal's plan (modal.com/pricing, September 2026)


def describe_jobs(jobs: Sequence[Job], settings: dict[str, Any]) -> None:
    """Print what the jobs would be and cost, and with dry_run=true that nothing was submitted.

    ValueError where what their image is built from isn't here.
    """
    check_project()
    planned = plan_jobs(jobs)
    show_jobs(planned, at_a_time=settings["max_parallel"])
    for remark in remarks(planned, settings):
        say(remark)
    if settings["dry_run"]:
        for job in jobs if settings["show_request"] else []:
            say(json.dumps(request_of(job, settings), indent=2, ensure_ascii=False))
        what = jobs[0]["run"] if len(jobs) == 1 else f"{len(jobs)} jobs"
        say(
            f"dry run: {what} not submitted; hydra.launcher.show_request=true prints everything that would "
            "be sent"
        )


def remarks(planned: Sequence[tuple[Job, Plans]], settings: dict[str, Any]) -> list[str]:
    """Return what the plans do not say: the GPUs, Modal's limits, what a dry run leaves out."""
    job, gpus = planned[0][0], gpus_of(settings)
    host = f"{settings['cpu']:g} cores, {settings['memory'] / 1024:g} GiB"
    nodes = f"{settings['nodes']} nodes of " if settings["nodes"] > 1 else ""
    lines = [
        f"Modal: {nodes}{' or '.join(gpus)}, {host}; volume {volumes_of(settings)[settings['root']]['name']}"
    ]
    if settings["cpu"] > MOST_CORES * (devices := job["cluster"]["devices"]):
        share = f"cluster.cpu={4 * devices} cluster.memory={32_768 * devices}"
        lines.append(f"{host} are rented for {devices} GPU(s); {share} would be enough and cost less")
    together = (
        min(len(planned), settings["max_parallel"]) * job["cluster"]["devices"] * job["cluster"]["nodes"]
    )
    if len(gpus) > 1 and (rate := dollars_per_hour(job, settings)):
        lines.append(f"planned and priced as {gpus[0]}; at most ${rate:,.2f} per hour, whichever it gets")
    if together > STARTER_GPUS:
        lines.append(
            f"{together} GPUs at once: Modal's Starter plan has {STARTER_GPUS}, Team {TEAM_GPUS}; others wait"
        )
    if settings["nodes"] > 1:
        lines.append("several nodes: Modal must enable this for your workspace; ask its support")
    longest = max((total([*plans.values()])[0] or 0) * 3600 for _, plans in planned)
    if longest > settings["timeout"]:
        limits = math.ceil(longest / settings["timeout"])
        lines.append(
            f"{limits} time limits of {settings['timeout'] / 3600:g} hours, each resumed by the next; "
            "python -m nanolit.plan cluster=all … compares clusters"
        )
    return lines


def request_of(job: Job, settings: dict[str, Any]) -> dict[str, Any]:
    """Return what submitting would ask of Modal, and the job that would go there."""
    machine = ("gpu", "cpu", "memory", "ephemeral_disk")
    asked = (*machine, "timeout", "startup_timeout", "retries", "nodes", "region")
    return {
        "app": f"{settings['app_name']}-{job['run']}",
        "functions": {**CPU_FUNCTIONS, "train": {key: settings[key] for key in asked}},
        "volumes": volumes_of(settings),
        "secrets": secrets_of(job, settings),
        "job": {**job, "root": settings["root"]},
    }


def submit_jobs(jobs: Sequence[Job], settings: dict[str, Any]) -> list[float | None]:
    """Submit all jobs; return their validation bits per byte with wait=true, else None for each.

    Ctrl-C ends the waiting, not the jobs: then JobFailed says how to come back to them.
    """
    jobs = shares(jobs)
    told = jobs[0]["stages"] if len(jobs) == len(jobs[0]["stages"]) == 1 and settings["stream_logs"] else []
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
                watch(begin(job, settings, told=told), settings, ended)
            result = ended.get()
            results[result["run"]] = conclude_one(running.pop(result["run"]), result)
    except KeyboardInterrupt:
        lines = [f"{job['run']} continues; {how_to_follow(job)}" for job in running.values()]
        lines += [f"{job['run']} was not submitted; the same command submits it" for job in waiting]
        raise JobFailed("\n".join(lines), 130) from None
    return conclude(jobs, [results[job["run"]] for job in jobs])


def shares(jobs: Sequence[Job]) -> list[Job]:
    """Return the jobs, each with its share of max_cost by its planned cost; the machines keep to it."""
    limit, dollars = jobs[0]["max_cost"], [total([*fresh_plans(job).values()])[1] for job in jobs]
    if limit is None or None in dollars or not sum(cast(list[float], dollars)):
        return [*jobs]
    whole = sum(cast(list[float], dollars))
    return [
        cast(Job, {**job, "max_cost": limit * cast(float, part) / whole})
        for job, part in zip(jobs, dollars, strict=True)
    ]


def watch(
    submission: Submission, settings: dict[str, Any], ended: "queue.SimpleQueue[dict[str, Any]]"
) -> None:
    """Follow a run in a thread that nobody waits for; its result goes to `ended`."""

    def wait() -> None:
        try:
            ended.put(follow(submission, logs=settings["stream_logs"], say=say))
        except Exception as error:
            text = f"lost contact ({type(error).__name__}: {error}); the run continues"
            ended.put({"run": submission["run"], "status": "failed", "error": text})

    threading.Thread(target=wait, daemon=True).start()


def begin(job: Job, settings: dict[str, Any], *, told: Sequence[str] = ()) -> Submission:
    """Submit a job; ValueError while it runs. Its log follows the full plan of the stages in `told`."""
    path = submission_path(job["root"], job["run"])
    if path.exists() and running(stored_submission(path)):
        raise ValueError(f"run {job['run']} is already running on Modal; {how_to_follow(job)}")
    if not submissions(job["root"]):
        say("the first submission builds the image, which takes a few minutes; later ones reuse it")
    submission = submit(upload_paths(job, settings), settings, told=told)
    say(f"── {job['run']} submitted as {submission['app']}: {submission['dashboard']}")
    say(f"   {how_to_follow(job)}")
    return submission


def how_to_follow(job: Job) -> str:
    return f"python -m launch attach {job['run']} follows it, python -m launch stop {job['run']} stops it"


def conclude_one(job: Job, result: dict[str, Any]) -> dict[str, Any]:
    """Keep the result beside the submission, and say it, with what to type next."""
    remember(job["root"], result)
    say(f"── {job['run']}: {result['status']}{score(result)} {result.get('error', '')}".rstrip())
    if result["status"] == "done":
        chat = f"python -m nanolit.chat run={job['run']}"
        say(f"   python -m launch fetch {job['run']} downloads it; then {chat}")
    return result
