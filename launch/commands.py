"""The commands of `python -m launch`: each has its settings, and a function that prints and gives a code."""

import time
import webbrowser
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path, PurePosixPath

import modal

from launch import remote
from launch.calls import UNREACHABLE, lives
from launch.chats import PREFIX, cost_of, deployed, read_chat, standing, stop_chat
from launch.follow import follow, newest_call, running, stream, wait
from launch.image import container_image
from launch.progress import OnVolume, progress, reached
from launch.submit import (
    Submission,
    explain,
    read_submission,
    remember,
    remembered,
    started,
    stored_submission,
    submissions,
)
from launch.uploads import put as send
from nanolit.jobs.execute import score
from nanolit.machine.arguments import Root, setting
from nanolit.machine.paths import run_folder
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
class RunOrChat(Root):
    run: str = setting("a run's name, or chat:NAME", positional=True)


@dataclass(frozen=True, kw_only=True)
class Logs(RunOrChat):
    follow: bool = setting("print everything until the run ends", False, short="-f")


@dataclass(frozen=True, kw_only=True)
class Fetch(OneRun):
    checkpoints: bool = setting("--checkpoints: also download the checkpoints", False)


@dataclass(frozen=True, kw_only=True)
class OnModal:
    volume: str = setting("Modal volume", "nanolit")
    environment: str | None = setting("Modal environment", None)


@dataclass(frozen=True, kw_only=True)
class Put(OnModal):
    path: Path = setting("a file or a folder", value="PATH", positional=True)
    place: str | None = setting("where on the volume (default: uploads/NAME)", None, positional=True)


@dataclass(frozen=True, kw_only=True)
class Doctor(OnModal):
    secret: tuple[str, ...] = setting("secrets that must exist", (), value="NAME")
    gpu: str | None = setting("GPU to run a test on, such as T4 or H100!:8 (costs cents)", None)


def status(settings: OneOrAllRuns) -> int:
    """List submitted runs, or show one run's state: step, loss, time left, dollars so far."""
    if (settings.run or "").startswith(PREFIX):
        print(f"{settings.run}: {standing(read_chat(settings.home, str(settings.run)))}")
        return 0
    if settings.run:
        submission = read_submission(settings.home, settings.run)
        print(f"{submission['run']}: {state(submission, settings.home)}; {submission['dashboard']}")
        for call in OnVolume(submission).calls():
            print(f"  {call['stage']:<10}{call['function']:<10}{call['state']:<12}{call['call']}")
        return 0
    rows = []
    for submission in map(stored_submission, submissions(settings.home)):
        since = datetime.fromisoformat(submission["submitted"]).timestamp()
        said = state(submission, settings.home)
        rows.append([submission["run"], submission["gpu"], age(time.time() - since), said])
    for chat in deployed(settings.home):
        since = datetime.fromisoformat(chat["deployed"]).timestamp()
        rows.append([f"{PREFIX}{chat['name']}", chat["gpu"], age(time.time() - since), standing(chat)])
    print(markdown_table(["Run", "GPU", "Age", "State"], rows, num_left=4) if rows else "nothing submitted")
    return 0


def state(submission: Submission, home: Path) -> str:
    """Return how far a run is, or how it ended."""
    there = OnVolume(submission)
    try:
        result = wait(submission, timeout=0)
    except TimeoutError:
        return progress(there)
    except UNREACHABLE:
        raise
    except Exception as error:  # stopped, ended by Modal, or its answer is too old to be kept there
        stage = submission["stages"][-1]
        result = remembered(home, submission) or there.json(f"{stage}/result.json")
        if result.get("status") == "stopped":
            return f"stopped: {result['error']}"
        if not result:
            return f"ended by Modal ({type(error).__name__})"
    return f"{result['status']}{score(result)}"


def logs(settings: Logs) -> int:
    """Print the last lines of a run's log, or with -f all of it until the run ends."""
    if settings.run.startswith(PREFIX):
        submission = {**read_chat(settings.home, settings.run), "run": settings.run}
    else:
        submission = read_submission(settings.home, settings.run)
    if settings.follow:
        stream(submission)
        return 0
    for entry in modal.App.lookup(submission["app"]).logs.tail(LAST_LINES):
        print(entry.message, end="")
    return 0


def attach(settings: OneRun) -> int:
    """Follow a run's log until it ends; the exit code is 0 if it succeeded, else 1."""
    result = follow(read_submission(settings.home, settings.run), logs=True)
    remember(settings.home, result)
    print(f"── {result['run']}: {result['status']}{score(result)} {result.get('error', '')}".rstrip())
    return 0 if result["status"] == "done" else 1


def stop(settings: RunOrChat) -> int:
    """Stop a run: it writes a checkpoint, and the same training command resumes from it later."""
    # The orchestrator first, so that it begins nothing more; then its calls; then the app. It would have
    # written when its calls ended: with it gone, that is ours to do.
    if settings.run.startswith(PREFIX):
        print(stop_chat(settings.home, settings.run))
        return 0
    submission = read_submission(settings.home, settings.run)
    if not running(submission):
        raise ValueError(f"run {submission['run']} is not running: {state(submission, settings.home)}")
    modal.FunctionCall.from_id(newest_call(submission)).cancel()
    there = OnVolume(submission)
    recorded = there.calls()
    calls = [call for call in recorded if call["state"] == "begun" and lives(call["call"])]
    for call in calls:
        modal.FunctionCall.from_id(call["call"]).cancel()
    deadline = time.monotonic() + STOP_SECONDS
    while time.monotonic() < deadline and any(lives(call["call"]) for call in calls):
        time.sleep(1)
    modal.App.lookup(submission["app"]).stop()
    for call in calls:
        call.update(state="stopped", ended=time.time())
    if calls:
        there.write_calls(recorded)
    stages = ", ".join(f"{call['stage']} at {reached(there, call['stage'])}" for call in calls)
    result = {"run": submission["run"], "status": "stopped", "error": stages or "nothing was running"}
    remember(settings.home, {**result, "app": submission["app"]})
    print(
        f"{submission['run']}: stopped ({result['error']}); the same command resumes from the last checkpoint"
    )
    return 0


def fetch(settings: Fetch) -> int:
    """Download a run's results; --checkpoints includes checkpoints."""
    submission = read_submission(settings.home, settings.run)
    store, num_files, num_bytes = OnVolume(submission).volume, 0, 0
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
    """Yield (path, bytes) of every file below a folder of the volume, without hidden ones, such as locks."""
    for entry in store.iterdir(folder, recursive=True):
        hidden = any(part.startswith(".") for part in PurePosixPath(entry.path).parts)
        if entry.type.name == "FILE" and not hidden:
            yield entry.path, entry.size


def put(settings: Put) -> int:
    """Upload a file or a folder to the volume."""
    path = settings.path
    if not path.exists():
        raise ValueError(f"{path} does not exist; give a file or a folder")
    place = settings.place or f"uploads/{path.resolve().name}"
    store = modal.Volume.from_name(
        settings.volume, create_if_missing=True, version=2, environment_name=settings.environment
    )
    send(store, path, place)
    print(f"{path} is on the volume {settings.volume}; jobs find it at /vol/{place}")
    return 0


def cost(settings: RunOrChat) -> int:
    """Show the hours of a run's calls, and roughly what its GPUs have cost so far.

    The calls' hours include waiting for GPUs, which is not billed; the sum does not. `modal billing
    report --tag-names run` shows the billed amount.
    """
    if settings.run.startswith(PREFIX):
        print(cost_of(read_chat(settings.home, settings.run)))
        return 0
    submission = read_submission(settings.home, settings.run)
    there, rows = OnVolume(submission), []
    for call in there.calls():
        ended = call.get("ended") or (time.time() if lives(call["call"]) else None)
        hours = "-" if ended is None else f"{(ended - call['at']) / 3600:.2f}"
        on = submission["gpu"] if call["function"] == "train" else "CPU"
        rows.append([call["stage"], on, call["state"], hours])
    print(markdown_table(["Stage", "On", "State", "Hours"], rows, num_left=3))
    hours, dollars = there.spent()
    nodes = f" on {submission['nodes']} nodes" if submission["nodes"] > 1 else ""
    rate = submission["dollars_per_hour"]
    price = "" if dollars is None else f", about ${dollars:,.2f} at ${rate:,.2f} per hour"
    print(f"{hours:.2f} hours of {submission['gpu']}{nodes}, not counting waiting time{price}")
    return 0


def open_page(settings: RunOrChat) -> int:
    """Open chat:NAME in the browser, or a run's page on Modal."""
    if settings.run.startswith(PREFIX):
        url = read_chat(settings.home, settings.run)["url"]
    else:
        url = read_submission(settings.home, settings.run)["dashboard"]
    webbrowser.open(url)
    print(url)
    return 0


def doctor(settings: Doctor) -> int:
    """Check the token, the volume and the secrets; --gpu T4 tests a GPU. Exits with 1 if a check fails."""
    checks = [("token", lambda: modal.Client.from_env().hello() or "accepted")]
    volume = modal.Volume.from_name(settings.volume, environment_name=settings.environment)
    checks.append((f"volume {settings.volume}", lambda: there_or_new(volume)))
    for name in settings.secret:
        secret = modal.Secret.from_name(name, environment_name=settings.environment)
        checks.append((f"secret {name}", lambda secret=secret: secret.hydrate() and "there"))
    if settings.gpu:
        checks.append((f"GPU {settings.gpu}", lambda gpu=settings.gpu: smoke_test(gpu, settings.environment)))
    good = True
    for name, check in checks:
        try:
            text = check()
        except modal.exception.NotFoundError as error:
            good, text = False, f"WRONG: {explain(error)}"
        except (modal.exception.Error, ValueError) as error:
            good, text = False, " ".join(f"WRONG: {error}".split())
        print(f"{name}: {text}")
        if not good and name == "token":  # without it all others would be told wrong for the same reason
            break
    return 0 if good else 1


def there_or_new(volume: modal.Volume) -> str:
    """Say if a volume is there. A new account has none, which is fine."""
    try:
        volume.hydrate()
    except modal.exception.NotFoundError:
        return "does not exist yet; the first submission creates it"
    return "there"


def smoke_test(gpu: str, environment: str | None) -> str:
    """Return what a container of a job's image sees of a GPU. ValueError when PyTorch has none there."""
    app = modal.App("nanolit-doctor", include_source=False)
    settings = {"python": "3.12", "apt": [], "uv_extras": ["cudnn"]}
    image = container_image(settings, root="/vol")
    function = app.function(image=image, gpu=gpu, timeout=600, single_use_containers=True)(remote.look_around)
    with started(app, environment):
        call = function.spawn()
    found = call.get()
    text = f"Python {found['python']}, Rust extension {found['extension']}"
    if not found["gpus"]:
        raise ValueError(f"PyTorch sees no GPU there ({text})")
    return f"{', '.join(found['gpus'])}; {text}"
