"""Functions that `python -m launch drill` runs in containers: each looks at one thing of the real service."""

import fcntl
import hashlib
import os
import shutil
import time
from pathlib import Path
from typing import Any

import modal

from launch.remote import look_around
from nanolit.machine.system import output

MEGABYTE = 1_000_000


def meeting_place(environment: str | None) -> modal.Dict:
    """Return the Dict in which containers and the laptop meet."""
    return modal.Dict.from_name("nanolit-drill", create_if_missing=True, environment_name=environment)


def write_volume(root: str, volume: str, environment: str | None, megabytes: int) -> dict[str, Any]:
    """Return what a volume does with statfs, locks, renames and a large file, and how fast it is."""
    folder = Path(root) / "drill"
    shutil.rmtree(folder, ignore_errors=True)
    (folder / "a").mkdir(parents=True)
    (folder / "b").mkdir()
    with (folder / "a" / "lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    (folder / "a" / "lock").rename(folder / "b" / "lock")
    block, begun = os.urandom(MEGABYTE), time.monotonic()
    with (folder / "large").open("wb") as file:
        for _ in range(megabytes):
            file.write(block)
    written = time.monotonic()
    modal.Volume.from_name(volume, environment_name=environment).commit()
    return {
        "statfs_gb": round(shutil.disk_usage(root).free / 1e9, 1),
        "flock_and_rename": "work",
        "write_mb_per_second": round(megabytes / (written - begun)),
        "commit_seconds": round(time.monotonic() - written, 2),
    }


def read_volume(root: str, megabytes: int) -> dict[str, Any]:
    """Return whether another container sees the large file whole, and how fast it reads it."""
    path, begun = Path(root) / "drill" / "large", time.monotonic()
    with path.open("rb") as file:
        hashlib.file_digest(file, "sha256")
    size = path.stat().st_size
    assert size == megabytes * MEGABYTE, f"{size:,} bytes of {megabytes * MEGABYTE:,} are seen"
    return {"read_mb_per_second": round(megabytes / (time.monotonic() - begun))}


def claim(key: str, environment: str | None) -> bool:
    """Return whether this container is the one that gets a key."""
    task = os.environ.get("MODAL_TASK_ID", "?")
    return meeting_place(environment).put(key, task, skip_if_exists=True)


def be_stopped(key: str, environment: str | None) -> float:
    """Tell the laptop which container this is and wait to be stopped; the next attempt says how long it had.

    Returns the seconds from the interrupt to the last sign of life.
    """
    there = meeting_place(environment)
    if there.get(f"{key}/task"):
        return round(there.get(f"{key}/last", 0.0) - there.get(f"{key}/interrupted", 0.0), 1)
    try:
        there.put(f"{key}/task", os.environ["MODAL_TASK_ID"])
        time.sleep(120)
    except KeyboardInterrupt:
        there.put(f"{key}/interrupted", time.time())
        while True:
            there.put(f"{key}/last", time.time())
            time.sleep(0.5)
    raise RuntimeError("nobody stopped this container in 120 seconds")


def be_cancelled(key: str, environment: str | None) -> None:
    """Say that it has begun, wait to be cancelled, and say what that looks like in the container."""
    there = meeting_place(environment)
    there.put(f"{key}/begun", True)
    try:
        time.sleep(120)
    except BaseException as error:
        there.put(f"{key}/ended", type(error).__name__)
        raise


def try_gpu() -> dict[str, Any]:
    """Return what PyTorch has of this GPU: versions, the attention that is chosen, compiling, speed."""
    import torch

    from nanolit.config.compose import compose
    from nanolit.model.gpt import GPT, GPTConfig
    from nanolit.planning.plans import BasePlan, fresh_plan

    plan = fresh_plan(compose(["model=d12"]), "base")
    assert isinstance(plan, BasePlan)
    found = {**look_around(), "torch": torch.__version__, "cuda": torch.version.cuda}
    found["driver"] = output("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader")
    if not found["gpus"]:
        raise ValueError("PyTorch sees no GPU there")
    with torch.device("cuda"):
        gpt = GPT(GPTConfig(**plan.gpt))
    gpt.prepare()
    ids_BT = torch.randint(0, 32_768, (1, 2_048), device="cuda")
    step, begun = torch.compile(gpt, dynamic=False), time.monotonic()
    step(ids_BT, ids_BT, reduction="sum").backward()
    torch.cuda.synchronize()
    compiled = time.monotonic()
    for _ in range(10):
        step(ids_BT, ids_BT, reduction="sum").backward()
    torch.cuda.synchronize()
    found["attention"] = gpt.attention_backend
    found["compile_seconds"] = round(compiled - begun, 1)
    found["d12_tokens_per_second"] = round(10 * 2_048 / (time.monotonic() - compiled))
    return found
