"""A resolved job to Modal: one detached app, one spawned call, and submission.json beside the run."""

import contextlib
import logging
import re
import secrets as tokens
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, cast

import modal
from typing_extensions import TypedDict

from launch import remote
from launch.calls import Payload
from launch.gpus import gpus_of, same_gpu
from launch.image import container_image
from nanolit.config.schema import Cluster, Job
from nanolit.machine.paths import as_null, read_json, run_folder, write_json
from nanolit.machine.system import code_version
from nanolit.planning.costs import PREPARING, cost
from nanolit.planning.plans import fresh_plan

Submission = dict[str, Any]  # submission.json: a `Stored`, and more
CPU_FUNCTIONS = {"orchestrate": {"cpu": 0.25, "memory": 1_024}, "prepare": dict(PREPARING)}
WANDB_SECRET = "wandb"
SECRET_KEYS = {WANDB_SECRET: "WANDB_API_KEY", "huggingface": "HF_TOKEN"}  # what is in them
RESULT = "submission_result.json"


class Stored(TypedDict):
    """The fields that are read of a submission.json."""

    run: str
    app: str
    call: str
    dashboard: str
    submitted: str
    gpu: str
    nodes: int
    dollars_per_hour: float | None
    volume: str
    environment: str | None
    stages: list[str]


def submit(job: Job, settings: dict[str, Any], *, told: Sequence[str] = ()) -> Submission:
    """Submit one job and return at once; ValueError for what the account lacks (a secret, a token).

    The log leaves out the plans of the stages in `told`.
    """
    app = modal.App(f"{settings['app_name']}-{job['run']}", include_source=False, tags=tags(job, settings))
    try:
        for name in secrets_of(job, settings):  # before the image begins to build, which takes minutes
            modal.Secret.from_name(name, environment_name=settings["environment"]).hydrate()
        functions = define(app, job, settings)
        with started(app, settings["environment"]):
            ids = {name: function.object_id for name, function in functions.items()}
            payload = payload_of(job, settings, ids, told=told)
            call = functions["orchestrate"].spawn(payload)
            submission = describe(app, call.object_id, job, settings, payload)
            write_json(submission_path(job["root"], job["run"]), submission)
    except modal.exception.Error as error:
        raise ValueError(explain(error)) from error
    return submission


@contextlib.contextmanager
def started(app: modal.App, environment: str | None) -> Iterator[None]:
    """Start a detached app; show how its image is built, but not Modal's own stream of its logs."""
    logging.getLogger("modal-client").setLevel(logging.ERROR)
    modal.config.config.override_locally("logs_timeout", "0")
    with contextlib.ExitStack() as shown:
        shown.enter_context(modal.enable_output())
        with app.run(detach=True, environment_name=environment):
            shown.close()
            yield


def payload_of(
    job: Job, settings: dict[str, Any], functions: dict[str, str], *, told: Sequence[str]
) -> Payload:
    """Return what the containers get: plain data, with the volume's path for root."""
    return {
        "told": [*told],
        "job": {**job, "root": settings["root"]},
        "functions": functions,
        "volume": volumes_of(settings)[settings["root"]]["name"],
        "environment": settings["environment"],
        "dollars_per_hour": dollars_per_hour(job, settings),
        "timeout": settings["timeout"],
        "submission": tokens.token_hex(4),
    }


def describe(app: modal.App, call: str, job: Job, settings: dict[str, Any], payload: Payload) -> Submission:
    return {
        "format": 1,
        "run": job["run"],
        "app": app.app_id,
        "call": call,
        "dashboard": f"https://modal.com/id/{app.app_id}",
        "submitted": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "gpu": " or ".join(gpus_of(settings)),
        "nodes": settings["nodes"],
        "dollars_per_hour": payload["dollars_per_hour"],
        "volume": payload["volume"],
        "environment": settings["environment"],
        "functions": payload["functions"],
        "stages": job["stages"],
        "overrides": job["overrides"],
    }


def dollars_per_hour(job: Job, settings: dict[str, Any]) -> float | None:
    """Return the price of the job's GPUs and their host, the dearest if several would do; None if unknown."""
    hours = fresh_plan(job, job["stages"][-1]).hours
    clusters = [cast(Cluster, {**job["cluster"], "gpu": same_gpu(gpu)}) for gpu in gpus_of(settings)]
    costs = [cost("base", hours, cluster) for cluster in clusters]
    rates = [known["dollars_per_hour"] for known in costs if known and known["dollars_per_hour"]]
    return max(rates) if len(rates) == len(costs) else None


def define(app: modal.App, job: Job, settings: dict[str, Any]) -> dict[str, modal.Function]:
    """Return the app's three functions. Those without a GPU retry as often as the one with GPUs."""
    shared = {
        "image": container_image(settings["image"], root=settings["root"]),
        "volumes": {path: volume(one, settings["environment"]) for path, one in volumes_of(settings).items()},
        "secrets": [
            modal.Secret.from_name(name, environment_name=settings["environment"])
            for name in secrets_of(job, settings)
        ],
        "env": {"NANOLIT_CODE": code_version(), **settings["env"]},
        "retries": settings["retries"],
        "timeout": settings["timeout"],
        "startup_timeout": settings["startup_timeout"],
        "region": settings["region"],
        "single_use_containers": True,
    }
    gpus = {key: settings[key] for key in ("gpu", "cpu", "memory", "ephemeral_disk")}
    train = remote.train
    if settings["nodes"] > 1:
        train = modal.clustered(size=settings["nodes"], rdma=settings["rdma"])(train)
    return {
        "orchestrate": app.function(**shared, **CPU_FUNCTIONS["orchestrate"])(remote.orchestrate),
        "prepare": app.function(**shared, **CPU_FUNCTIONS["prepare"])(remote.prepare),
        "train": app.function(**shared, **gpus)(train),
    }


def volumes_of(settings: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Return volumes by path: that of all artefacts at `root`, unless the settings name it, and others."""
    return {settings["root"]: {"name": "nanolit", "version": 2, "read_only": False}, **settings["volumes"]}


def volume(settings: dict[str, Any], environment: str | None) -> modal.Volume:
    found = modal.Volume.from_name(
        settings["name"], create_if_missing=True, version=settings["version"], environment_name=environment
    )
    return found.with_mount_options(read_only=True) if settings["read_only"] else found


def secrets_of(job: Job, settings: dict[str, Any]) -> list[str]:
    """Return the secrets asked for, and W&B's if the job logs there."""
    names = list(settings["secrets"])
    if (
        str(job["logger"]["_target_"]).endswith("WandbLogger")
        and not job["offline"]
        and WANDB_SECRET not in names
    ):
        names.append(WANDB_SECRET)
    return names


def tags(job: Job, settings: dict[str, Any]) -> dict[str, str]:
    return {"run": job["run"], "phase": job["phase"], **settings["tags"]}


def explain(error: modal.exception.Error) -> str:
    """Return one line for what Modal refused, with what to do."""
    text = " ".join(str(error).split())
    if isinstance(error, modal.exception.NotFoundError) and (match := re.search(r"ecret '([^']+)'", text)):
        return (
            f"{text}; create it with: modal secret create {match[1]} {SECRET_KEYS.get(match[1], 'KEY')}=VALUE"
        )
    if isinstance(error, modal.exception.AuthError):
        return f"Modal rejects the token ({text}); create one with: modal token new"
    return f"Modal rejected the job: {text}"


def submission_path(root: str | Path, run: str) -> Path:
    return run_folder(root, run) / "submission.json"


def remember(root: str | Path, result: dict[str, Any]) -> None:
    """Keep how a submission ended: Modal forgets it after some days."""
    write_json(submission_path(root, result["run"]).with_name(RESULT), result)


def remembered(root: str | Path, submission: Submission) -> dict[str, Any] | None:
    """Return how a submission ended, if that was seen from here."""
    path = submission_path(root, submission["run"]).with_name(RESULT)
    result = read_json(path, constant=as_null) if path.exists() else {}
    return result if result.get("app") == submission["app"] else None


def submissions(root: str | Path) -> list[Path]:
    """Return the submission.json of every run that was submitted from here."""
    return sorted(run_folder(root, "").glob("*/submission.json"))


def read_submission(root: str | Path, run: str) -> Submission:
    """Return what was submitted; ValueError when nothing was."""
    path = submission_path(root, run)
    if not path.exists():
        there = [path.parent.name for path in submissions(root)]
        raise ValueError(
            f"run {run} was not submitted from {root}; submitted from there: {', '.join(there) or 'none'}"
        )
    return stored_submission(path)


def stored_submission(path: Path) -> Submission:
    return read_json(path, Stored, remedy="delete it; `modal app list` shows what is running")
