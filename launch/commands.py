"""The commands of `python -m launch`: each has its settings, and a function that prints and gives a code."""

import io
import json
import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path, PurePosixPath
from typing import Any

import modal

from launch import remote
from launch.follow import follow, newest_call, running, stream, wait
from launch.image import container_image
from launch.submit import Submission, read_submission, started
from launch.uploads import put as send
from nanolit.jobs.execute import score
from nanolit.machine.arguments import Root, setting
from nanolit.machine.paths import read_json, run_folder
from nanolit.report.tables import age, markdown_table

NOT_FETCHED = ("checkpoints", "wandb")
LAST_LINES = 1_000
STOP_SECONDS = 90  # what a stage gets to write its checkpoint before the app is stopped


@dataclass(frozen=True, kw_only=True)
class OneOrAllRuns(Root):
    run: str | None = setting("a run's name (default: all)", None, positional=True)


@dataclass(frozen=True, kw_only=True)
class OneRun(Root):
    run: str = setting("a run's name", positional=True)


@dataclass(frozen=True, kw_only=True)
class Logs(OneRun):
    follow: bool = setting("print everything, until the run ends", False, short="-f")


@dataclass(frozen=True, kw_only=True)
class Fetch(OneRun):
    checkpoints: bool = setting("--checkpoints: the checkpoints too", False)


@dataclass(frozen=True, kw_only=True)
class OnModal:
    volume: str = setting("a volume of Modal's", "nanolit")
    environment: str | None = setting("an environment of Modal's", None)


@dataclass(frozen=True, kw_only=True)
class Put(OnModal):
    path: Path = setting("a file or a folder", value="PATH", positional=True)
    place: str | None = setting("where on the volume (default: uploads/NAME)", None, positional=True)


@dataclass(frozen=True, kw_only=True)
class Doctor(OnModal):
    secret: tuple[str, ...] = setting("secrets that have to be there", (), value="NAME")
    gpu: str | None = setting("run a function on it, such as T4 or H100!:8 (costs cents)", None)


def status(settings: OneOrAllRuns) -> int:
    """List every submitted run, or the stages of one."""
    if settings.run:
        submission = read_submission(settings.home, settings.run)
        print(f"{submission['run']}: {state(submission)}; {submission['dashboard']}")
        for call in calls_of(submission):
            print(f"  {call['stage']:<10}{call['function']:<10}{call['state']:<12}{call['call']}")
        return 0
    paths = sorted(run_folder(settings.home, "").glob("*/submission.json"))
    rows = []
    for submission in map(read_json, paths):
        since = datetime.fromisoformat(submission["submitted"]).timestamp()
        rows.append([submission["run"], state(submission), submission["gpu"], age(time.time() - since)])
    print(markdown_table(["Run", "State", "GPU", "Age"], rows, num_left=3) if rows else "nothing submitted")
    return 0


def state(submission: Submission) -> str:
    """running, or how it ended."""
    try:
        result = wait(submission, timeout=0)
    except TimeoutError:
        return "running"
    except remote.UNREACHABLE:
        raise
    except Exception as error:
        return f"ended by Modal ({type(error).__name__})"
    return f"{result['status']}{score(result)}"


def calls_of(submission: Submission) -> list[dict[str, Any]]:
    """The calls that the run's orchestrators have made, oldest first."""
    try:
        content = b"".join(volume_of(submission).read_file(f"runs/{submission['run']}/calls.json"))
    except FileNotFoundError:
        return []
    return json.loads(content)["calls"]


def write_calls(submission: Submission, calls: list[dict[str, Any]]) -> None:
    content = io.BytesIO(json.dumps({"format": 1, "calls": calls}, indent=2).encode())
    with volume_of(submission).batch_upload(force=True) as batch:
        batch.put_file(content, f"runs/{submission['run']}/calls.json")


def volume_of(submission: Submission) -> modal.Volume:
    return modal.Volume.from_name(submission["volume"], environment_name=submission["environment"])


def logs(settings: Logs) -> int:
    """Print the last lines of a run's log; -f: all of it, until the run ends."""
    submission = read_submission(settings.home, settings.run)
    if settings.follow:
        stream(submission)
        return 0
    for entry in modal.App.lookup(submission["app"]).logs.tail(LAST_LINES):
        print(entry.message, end="")
    return 0


def attach(settings: OneRun) -> int:
    """Wait for a run, with its logs, to its result; the exit code is 0 if it ended well, else 1."""
    result = follow(read_submission(settings.home, settings.run), logs=True)
    print(f"── {result['run']}: {result['status']}{score(result)} {result.get('error', '')}".rstrip())
    return 0 if result["status"] == "done" else 1


def stop(settings: OneRun) -> int:
    """End a run: it writes a checkpoint, and the same training command resumes from it later."""
    # The orchestrator first, so that it begins nothing more; then its calls; then the app. It would have
    # written when its calls ended: with it gone, that is ours to do.
    submission = read_submission(settings.home, settings.run)
    if not running(submission):
        raise ValueError(f"run {submission['run']} is not running: {state(submission)}")
    modal.FunctionCall.from_id(newest_call(submission)).cancel()
    recorded = calls_of(submission)
    calls = [call for call in recorded if call["state"] == "begun" and remote.lives(call["call"])]
    for call in calls:
        modal.FunctionCall.from_id(call["call"]).cancel()
    deadline = time.monotonic() + STOP_SECONDS
    while time.monotonic() < deadline and any(remote.lives(call["call"]) for call in calls):
        time.sleep(1)
    modal.App.lookup(submission["app"]).stop()
    for call in calls:
        call.update(state="stopped", ended=time.time())
    if calls:
        write_calls(submission, recorded)
    stages = ", ".join(call["stage"] for call in calls) or "nothing was running"
    print(f"{submission['run']}: stopped ({stages}); the same command goes on from the last checkpoint")
    return 0


def fetch(settings: Fetch) -> int:
    """Bring a run's artefacts here; without --checkpoints the checkpoints stay there."""
    submission = read_submission(settings.home, settings.run)
    store, num_files, num_bytes = volume_of(submission), 0, 0
    for path, size in files_of(store, f"runs/{submission['run']}"):
        if not settings.checkpoints and any(part in NOT_FETCHED for part in PurePosixPath(path).parts):
            continue
        target = settings.home / path
        target.parent.mkdir(parents=True, exist_ok=True)
        part = target.with_name(f".{target.name}.part")
        with part.open("wb") as file:
            for block in store.read_file(path):
                file.write(block)
        part.replace(target)
        num_files, num_bytes = num_files + 1, num_bytes + size
    place = run_folder(settings.home, submission["run"])
    print(f"{num_files:,} files, {num_bytes / 1e6:,.1f} MB, in {place}")
    return 0


def files_of(store: modal.Volume, folder: str) -> Iterator[tuple[str, int]]:
    """(path, bytes) of every file below a folder of the volume; hidden ones are locks and the like."""
    for entry in store.iterdir(folder, recursive=True):
        hidden = any(part.startswith(".") for part in PurePosixPath(entry.path).parts)
        if entry.type.name == "FILE" and not hidden:
            yield entry.path, entry.size


def put(settings: Put) -> int:
    """Send a file or a folder to the volume."""
    path = settings.path
    if not path.exists():
        raise ValueError(f"{path} is not here; give a file or a folder")
    place = settings.place or f"uploads/{path.resolve().name}"
    store = modal.Volume.from_name(
        settings.volume, create_if_missing=True, version=2, environment_name=settings.environment
    )
    send(store, path, place)
    print(f"{path} is on the volume {settings.volume}; jobs find it at /vol/{place}")
    return 0


def cost(settings: OneRun) -> int:
    """Show the hours of a run's calls so far, and about what those on GPUs cost.

    A call whose end nobody wrote down has no hours, and is not counted. `modal billing report` says what was
    billed.
    """
    submission = read_submission(settings.home, settings.run)
    rows, gpu_hours, num_unknown = [], 0.0, 0
    for call in calls_of(submission):
        ended = call.get("ended") or (time.time() if remote.lives(call["call"]) else None)
        on_gpus = call["function"] == "train"
        hours = "-" if ended is None else f"{(ended - call['at']) / 3600:.2f}"
        gpu_hours += (ended - call["at"]) / 3600 if on_gpus and ended else 0
        num_unknown += on_gpus and ended is None
        rows.append([call["stage"], submission["gpu"] if on_gpus else "CPU", call["state"], hours])
    print(markdown_table(["Stage", "On", "State", "Hours"], rows, num_left=3))
    nodes = f" on {submission['nodes']} nodes" if submission["nodes"] > 1 else ""
    rate = submission["dollars_per_hour"]
    dollars = f", about ${gpu_hours * rate:,.2f} at ${rate:,.2f} an hour" if rate else ""
    unknown = f"; not counted: {num_unknown} call(s) whose end is not known (-)" if num_unknown else ""
    print(f"{gpu_hours:.2f} hours of {submission['gpu']}{nodes}, waiting for it included{dollars}{unknown}")
    return 0


def doctor(settings: Doctor) -> int:
    """Check the token, the volume and the secrets; --gpu T4 tries a GPU. The exit code is 1 if one fails."""
    checks = [("token", lambda: modal.Client.from_env().hello() or "accepted")]
    volume = modal.Volume.from_name(settings.volume, environment_name=settings.environment)
    checks.append((f"volume {settings.volume}", lambda: volume.hydrate() and "there"))
    for name in settings.secret:
        secret = modal.Secret.from_name(name, environment_name=settings.environment)
        checks.append((f"secret {name}", lambda secret=secret: secret.hydrate() and "there"))
    if settings.gpu:
        checks.append((f"GPU {settings.gpu}", lambda gpu=settings.gpu: smoke_test(gpu, settings.environment)))
    good = True
    for name, check in checks:
        try:
            text = check()
        except (modal.exception.Error, ValueError) as error:
            good, text = False, " ".join(f"WRONG: {error}".split())
        print(f"{name}: {text}")
        if not good and name == "token":  # without it all others would be told wrong for the same reason
            break
    return 0 if good else 1


def smoke_test(gpu: str, environment: str | None) -> str:
    """What a container of a job's image sees of a GPU. ValueError when PyTorch has none there."""
    app = modal.App("nanolit-doctor", include_source=False)
    settings = {"python": "3.12", "apt": [], "uv_extras": []}
    image = container_image(settings, root="/vol")
    function = app.function(image=image, gpu=gpu, timeout=600, single_use_containers=True)(remote.look_around)
    with started(app, environment):
        call = function.spawn()
    found = call.get()
    text = f"Python {found['python']}, Rust extension {found['extension']}"
    if not found["gpus"]:
        raise ValueError(f"PyTorch sees no GPU there ({text})")
    return f"{', '.join(found['gpus'])}; {text}"
