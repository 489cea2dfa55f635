"""Files that a job names and that are here: to the volume, under their content's hash."""

import functools
import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import modal

from launch.submit import volume, volumes_of
from nanolit.config.compose import CONVERSATIONS
from nanolit.config.schema import Job
from nanolit.jobs.execute import say
from nanolit.machine.paths import expanded
from nanolit.tasks.rows import ENDINGS, SHIPPED

PATH_KEYS = {"path", "source", "mirror", "start_from"}  # whose value may be a name or a path
NAMES = {*SHIPPED, "hub"}


def upload_paths(job: Job, settings: dict[str, Any]) -> Job:
    """Return the job with local paths replaced by the volume's; uploads what is not there yet.

    ValueError for an absolute path that is neither here nor on a volume.
    """
    return cast(Job, moved(dict(job), functools.cache(functools.partial(place_of, settings=settings))))


def moved(node: Any, place: Callable[[str, str], str], key: str = "") -> Any:
    """Return nested mappings and lists with `place(key, text)` for every text that may be a path."""
    if isinstance(node, dict):
        is_below = node.get("_target_") == CONVERSATIONS and node.get("source", ".") != "."
        if is_below and not expanded(node["path"]).is_absolute():
            return {**node, "source": place("source", node["source"])}
        node = {name: value for name, value in node.items() if (name, value) != ("source", ".")}
        return {name: moved(value, place, name) for name, value in node.items()}
    if isinstance(node, list):
        return [moved(value, place, key) for value in node]
    return place(key, node) if isinstance(node, str) and key in PATH_KEYS else node


def place_of(key: str, text: str, *, settings: dict[str, Any]) -> str:
    """Return where a path leads in the container, uploaded if it is here; a name stays as it is."""
    if text in NAMES or any(text.startswith(f"{path}/") for path in volumes_of(settings)):
        return text
    path = expanded(text)
    for place in [path, *(path.with_name(path.name + ending) for ending in ENDINGS if path.name)]:
        if (place / "gpt.json").is_file() if key == "start_from" else place.exists():
            return upload(place, settings)
    if path.is_absolute():
        raise ValueError(
            f"{key}={text} is neither on this machine nor on the volume at {settings['root']}; give a "
            "local path (it is uploaded), or upload it with python -m launch put"
        )
    return text


def upload(path: Path, settings: dict[str, Any]) -> str:
    """Send what a job names and return where it is in the container."""
    return f"{settings['root']}/{upload_once(path, artefacts(settings), folder='uploads')}"


def artefacts(settings: dict[str, Any]) -> modal.Volume:
    """Return the volume of all artefacts."""
    return volume(volumes_of(settings)[settings["root"]], settings["environment"])


def upload_once(path: Path, store: modal.Volume, *, folder: str) -> str:
    """Return a file's or a folder's place on the volume, below `folder`; sent unless it is there already."""
    place = f"{folder}/{fingerprint(path)}/{path.resolve().name}"
    try:
        there = bool(store.listdir(place))
    except modal.exception.NotFoundError:
        there = False
    if not there:
        say(f"uploading {path} to the volume: {place}")
        put(store, path, place)
    return place


def put(store: modal.Volume, path: Path, place: str) -> None:
    """Send a file or a folder to `place` on the volume."""
    with store.batch_upload(force=True) as batch:
        if path.is_dir():
            batch.put_directory(path, place)
        else:
            batch.put_file(path, place)


def fingerprint(path: Path) -> str:
    """Return twelve hex digits that identify what a file or a folder holds."""
    digest = hashlib.sha256()
    for file in sorted(filter(Path.is_file, path.rglob("*"))) if path.is_dir() else [path]:
        with file.open("rb") as content:
            inside = hashlib.file_digest(content, "sha256").hexdigest()
        digest.update(f"{file.relative_to(path)} {inside}\n".encode())
    return digest.hexdigest()[:12]
