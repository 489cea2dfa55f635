"""Test what only the real service can show, with one command: about $0.30 and 15 minutes."""

import json
import secrets
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import modal
from hydra_plugins.nanolit_modal.launcher import launcher_settings

from launch import probes
from launch.calls import lives
from launch.chats import record_path, stop_chat
from launch.deploy import deploy
from launch.follow import answers, follow
from launch.image import container_image
from launch.progress import OnVolume
from launch.submit import explain, started
from launch.sweep import begin
from nanolit.chat.__main__ import parse
from nanolit.config.compose import compose, compose_config
from nanolit.machine.arguments import Root, setting
from nanolit.machine.paths import read_json, write_json
from nanolit.report.tables import markdown_table

RUN = "drill"
JOB = ("phase=base", "model=d2", "data=sample", "precision=fp32", "model.context=256", "total_batch=4096")
CHEAPEST = "T4"
RENTED = ("cluster=modal_a10g", f"cluster.gpu={CHEAPEST}", f"hydra.launcher.gpu={CHEAPEST}")
SMALL = ("cluster.cpu=2", "cluster.memory=8192")
IMAGE = {"python": "3.12", "apt": [], "uv_extras": ["cudnn"]}
WAIT_SECONDS = 300


@dataclass(frozen=True, kw_only=True)
class Drill(Root):
    volume: str = setting("Modal volume", "nanolit")
    environment: str | None = setting("Modal environment", None)
    gpu: tuple[str, ...] = setting("GPUs to test for a minute each", ("T4", "H100!"), value="NAME")
    megabytes: int = setting("size of the file for testing the volume", 1_000, least=1, most=10_000)
    steps: int = setting("steps of the training job that is handed over", 4_000, least=1)
    only: tuple[str, ...] = setting("steps of the drill to run (default: all)", (), value="STEP")
    mount: str = setting("mount point of the volume in containers", "/vol", value="PATH")
    dry_run: bool = setting("list the steps without making any call", False)


def drill(settings: Drill) -> int:
    """Test the real service and print a table: volume, claims, a stop, a job, GPUs, a chat (about $0.30)."""
    wanted = {
        "image": "build the job's image, or reuse it",
        "volume": f"write {settings.megabytes:,} MB, commit, read them elsewhere; statfs, flock, rename",
        "claim": "two containers claim a key at once, and one gets it",
        "stop": "stop a container: how long it has to write a checkpoint, and whether its input comes back",
        "cancel": "cancel a waiting call and a running one: the first never starts, the second ends",
        "job": "train a d2, unattended, with a time limit of a minute: handed over until it is done",
        **{f"gpu {name}": "driver, CUDA, attention, compiling, speed of a d12" for name in settings.gpu},
        "chat": "deploy that model, query it cold and warm, stop it",
    }
    steps = {
        name: what for name, what in wanted.items() if not settings.only or name.split()[0] in settings.only
    }
    if settings.dry_run:
        print(
            markdown_table(["Step", "What is tested"], [*map(list, steps.items())], num_left=2, widest=None)
        )
        print("about $0.30 and 15 minutes; dry run: no calls were made")
        return 0
    results: dict[str, dict[str, Any]] = {}
    path = settings.home / "drill.json"
    try:
        run_steps(settings, steps, results)
    except modal.exception.AuthError as error:
        raise ValueError(explain(error)) from error
    finally:
        write_json(path, {"format": 1, "modal": modal.__version__, "steps": results})
    rows = [[name, "failed" if "error" in found else "ok", told(found)] for name, found in results.items()]
    print(markdown_table(["Step", "", "Found"], rows, num_left=3, widest=None))
    print(
        f"{path} has all results; please attach it to an issue, so that others know what the real service "
        "does"
    )
    return 1 if any("error" in found for found in results.values()) else 0


def run_steps(settings: Drill, steps: dict[str, str], results: dict[str, dict[str, Any]]) -> None:
    begun = time.monotonic()
    app = modal.App("nanolit-drill", include_source=False)
    functions = define(app, settings)
    with started(app, settings.environment):
        results["image"] = {"seconds": round(time.monotonic() - begun, 1)}
        tries: dict[str, Callable[[], dict[str, Any]]] = {
            "volume": lambda: try_volume(settings, functions),
            "claim": lambda: try_claim(settings, functions),
            "stop": lambda: try_stop(settings, functions),
            "cancel": lambda: try_cancel(settings, functions),
            "job": lambda: try_job(settings),
            **{f"gpu {name}": functions[f"gpu {name}"].remote for name in settings.gpu},
            "chat": lambda: try_chat(settings),
        }
        for name in [name for name in tries if name in steps]:
            print(f"{name}: {steps[name]} …", flush=True)
            begun = time.monotonic()
            try:
                found = tries[name]()
            except modal.exception.AuthError:
                raise
            except Exception as error:  # whatever it is, it is what was to be found
                found = {"error": f"{type(error).__name__}: {' '.join(str(error).split())}"}
            results[name] = {**found, "seconds": round(time.monotonic() - begun, 1)}


def define(app: modal.App, settings: Drill) -> dict[str, modal.Function]:
    volume = modal.Volume.from_name(
        settings.volume, create_if_missing=True, version=2, environment_name=settings.environment
    )
    image = container_image(IMAGE, root=settings.mount)
    shared = {"image": image, "timeout": 600, "single_use_containers": True}
    on_volume = {**shared, "volumes": {settings.mount: volume}}
    functions = {
        "write": app.function(**on_volume)(probes.write_volume),
        "read": app.function(**on_volume)(probes.read_volume),
        "claim": app.function(**shared)(probes.claim),
        "stop": app.function(**shared)(probes.be_stopped),
        "cancel": app.function(**shared, gpu=CHEAPEST, max_containers=1)(probes.be_cancelled),
    }
    for name in settings.gpu:
        own = app.function(**shared, gpu=name, name=f"try_{''.join(filter(str.isalnum, name))}")
        functions[f"gpu {name}"] = own(probes.try_gpu)
    return functions


def try_volume(settings: Drill, functions: dict[str, modal.Function]) -> dict[str, Any]:
    place = (settings.mount, settings.volume, settings.environment, settings.megabytes)
    written = functions["write"].remote(*place)
    begun = time.monotonic()
    read = functions["read"].remote(settings.mount, settings.megabytes)
    return {**written, **read, "seen_after_seconds": round(time.monotonic() - begun, 1)}


def try_claim(settings: Drill, functions: dict[str, modal.Function]) -> dict[str, Any]:
    key = secrets.token_hex(4)
    calls = [functions["claim"].spawn(key, settings.environment) for _ in range(2)]
    got = sorted(call.get(timeout=WAIT_SECONDS) for call in calls)
    assert got == [False, True], f"the two claims came back as {got}"
    return {"claims": "one of two"}


def try_stop(settings: Drill, functions: dict[str, modal.Function]) -> dict[str, Any]:
    """Stop a container as Modal does when it takes a machine away."""
    key = secrets.token_hex(4)
    call = functions["stop"].spawn(key, settings.environment)
    task = wait_for(f"{key}/task", settings)
    subprocess.run([sys.executable, "-m", "modal", "container", "stop", task, "-y"], check=True)
    return {"grace_seconds": call.get(timeout=WAIT_SECONDS), "input": "came back"}


def try_cancel(settings: Drill, functions: dict[str, modal.Function]) -> dict[str, Any]:
    """Cancel as `launch stop` does: a call that waits, for there is room for one, and the one that runs."""
    running, waiting = secrets.token_hex(4), secrets.token_hex(4)
    call = functions["cancel"].spawn(running, settings.environment)
    wait_for(f"{running}/begun", settings)
    other = functions["cancel"].spawn(waiting, settings.environment)
    other.cancel()
    begun = time.monotonic()
    call.cancel()
    seen = wait_for(f"{running}/ended", settings)
    seconds = round(time.monotonic() - begun, 1)
    assert not lives(other.object_id), "the call that was cancelled while waiting is still waiting"
    there = probes.meeting_place(settings.environment)
    assert not there.get(f"{waiting}/begun"), "the call that was cancelled while waiting started"
    return {"waiting": "never began", "running": f"ended by {seen}", "after_seconds": seconds}


def wait_for(key: str, settings: Drill) -> Any:
    """Return what a container puts under a key."""
    deadline = time.monotonic() + WAIT_SECONDS
    while not (value := probes.meeting_place(settings.environment).get(key)):
        assert time.monotonic() < deadline, f"no container said {key.partition('/')[2]}"
        time.sleep(1)
    return value


def try_job(settings: Drill) -> dict[str, Any]:
    """Submit as `nanolit.train … wait=false` does, and read how often it was handed over."""
    words = [*JOB, *RENTED, *SMALL, f"run={RUN}-{secrets.token_hex(2)}", f"max_steps={settings.steps}"]
    words += [f"root={settings.home}", "stage.tokenizer.vocab_size=512", "stage.tokenizer.max_chars=100_000"]
    job = compose(words)
    launcher = launcher_settings(compose_config(words))
    own = {"timeout": 60 if settings.steps > 100 else 600, "root": settings.mount}
    own |= {"environment": settings.environment, "stream_logs": False}
    submission = begin(job, launcher | own)
    result = follow(submission, logs=False)
    assert result["status"] == "done", f"{result['status']}: {result.get('error')}"
    calls = [call["state"] for call in OnVolume(submission).calls() if call["function"] == "train"]
    hours, dollars = OnVolume(submission).spent()
    found = {"run": job["run"], "train_calls": calls, "orchestrators": len([*answers(submission, timeout=0)])}
    return found | {"gpu_hours": round(hours, 4), "dollars": dollars and round(dollars, 4)}


def try_chat(settings: Drill) -> dict[str, Any]:
    """Deploy the newest run of the drill, without a password for these seconds."""
    runs = sorted(
        (settings.home / "runs").glob(f"{RUN}-*/submission.json"), key=lambda one: one.stat().st_mtime
    )
    assert runs, "there is no run to chat with: the job did not run"
    words = ["web=true", "cluster=modal_a10g", f"name={RUN}", "public=true", f"root={settings.home}"]
    deploy(parse([f"run={runs[-1].parent.name}", *words]), words=words)
    url = read_json(record_path(settings.home, RUN))["url"]
    try:
        times = {name: ask(url) for name in ("cold_seconds", "warm_seconds")}
    finally:
        stop_chat(settings.home, RUN)
    return {"url": url, **times}


def ask(url: str) -> float:
    """Return the seconds of one completion of sixteen tokens."""
    begun = time.monotonic()
    with urllib.request.urlopen(f"{url}/v1/models", timeout=WAIT_SECONDS) as answer:
        model = json.load(answer)["data"][0]["id"]
    content = json.dumps({"model": model, "prompt": "The", "max_tokens": 16}).encode()
    request = urllib.request.Request(f"{url}/v1/completions", content, {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=WAIT_SECONDS) as answer:
        answer.read()
    return round(time.monotonic() - begun, 1)


def told(found: dict[str, Any]) -> str:
    return ", ".join(f"{name.replace('_', ' ')} {value}" for name, value in found.items())
