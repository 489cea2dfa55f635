"""Read job.yaml; a job of an earlier version is read as this version would have written it.

A run is resumed only with the settings that it began with (`names.difference`), and an absent key counts as
None there: without these tables every key that comes or goes would refuse every run begun before.
"""

from collections.abc import Callable
from pathlib import Path
from types import NoneType
from typing import Any, cast, get_args, get_type_hints

from typing_extensions import is_typeddict

from nanolit.config.build import check_mapping, check_targets, targets
from nanolit.config.schema import SHORTHANDS, Job, Node
from nanolit.machine.paths import DamagedFile, read_yaml

REMEDY = "restore it, or give another run=NAME"
NEEDED = ("run", "seed", "model", "recipe", "data", "stages", "stage")  # without these nothing can be read
ANY_LEVEL = 9
# Keys that no result depended on: dropped whatever their value.
GONE = (*SHORTHANDS, "recipe.mid.epoch_steps", "recipe.sft.epoch_steps", "recipe.rl.epoch_steps")
# Removed options and the default that each had: with any other value a run is refused.
REMOVED = {"stage.tokenizer.encoder": "nanolit"}
REMOVED_ARGUMENTS = {("nanolit.tasks.gsm8k.GSM8K", "comparison"): "number"}
# Keys that came later, and what the program did before it had them.
ADDED: dict[str, Callable[[Job], object]] = {
    "deterministic": lambda _job: False,
    "stage.base.core_every": lambda _job: None,
    "yes": lambda _job: False,
    "recipe.matmul_precision": lambda job: "high" if job["recipe"].get("name") == "classic" else "highest",
}


def read_job(path: Path) -> Job:
    """Return the job of a file; ValueError for one that is damaged, and for a removed option that it set."""
    node = read_mapping(path)
    if missing := [key for key in NEEDED if key not in node]:
        raise DamagedFile(f"{path} lacks {', '.join(missing)}; {REMEDY}")
    if chosen := [f"{key}={parent[name]}" for parent, name, _default, key in removed_options(node)]:
        raise ValueError(
            f"{path} has {', '.join(chosen)}, which this version no longer has; resume with the version that "
            "started the run, or give another run=NAME"
        )
    fill_nulls(node, Job)
    try:
        check_mapping(node, Job, path="", takes_others=True)
        check_targets(node)
    except ValueError as error:
        raise DamagedFile(f"{path} is damaged ({error}); {REMEDY}") from error
    return cast(Job, node)


def read_mapping(path: Path) -> Node:
    """Return as much of a job as a file has, with this version's keys; ValueError names the file."""
    node = read_yaml(path, remedy=REMEDY)
    if not isinstance(node, dict):
        return {}
    try:
        check_mapping(upgraded(node), Job, path="", takes_others=True, may_lack=ANY_LEVEL)
    except ValueError as error:
        raise DamagedFile(f"{path} is damaged ({error}); {REMEDY}") from error
    return node


def fill_nulls(node: Node, kind: Any) -> None:
    """Set what a stored job lacks and may be null: an absent key counts as null."""
    for key, hint in get_type_hints(kind).items():
        if key not in node and NoneType in get_args(hint):
            node[key] = None
        elif is_typeddict(hint) and isinstance(node.get(key), dict):
            fill_nulls(node[key], hint)


def upgraded(job: Node) -> Node:
    """Return a stored job with this version's keys (in place); a removed option that was set stays in it."""
    for key in GONE:
        node, name = place_of(job, key)
        node.pop(name, None)
    for node, name, default, _key in removed_options(job):
        if node[name] == default:
            del node[name]
    for key, before in ADDED.items():
        node, name = place_of(job, key)
        if node and name not in node:
            node[name] = before(cast(Job, job))
    return job


def removed_options(job: Node) -> list[tuple[Node, str, object, str]]:
    """Return (mapping, key in it, default, name for messages) of each removed option in the job."""
    options = [(*place_of(job, key), default, key) for key, default in REMOVED.items()]
    options += [
        (node, key, default, f"{target.rpartition('.')[2]}.{key}")
        for _, node in targets(job)
        for (target, key), default in REMOVED_ARGUMENTS.items()
        if node["_target_"] == target
    ]
    return [option for option in options if option[1] in option[0]]


def place_of(job: Node, key: str) -> tuple[Node, str]:
    """Return the mapping that holds a dotted key, and the last word of the key.

    The mapping is empty, and no part of the job, where there is none (a stage that the recipe lacks).
    """
    *parents, name = key.split(".")
    node: object = job
    for part in parents:
        node = node.get(part) if isinstance(node, dict) else None
    return node if isinstance(node, dict) else {}, name
