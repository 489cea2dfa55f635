"""A `_target_` node to the object it names; only nanolit's and Lightning's own classes are ever built."""

import importlib
from typing import Any

from nanolit.config.schema import Target

ALLOWED = ("nanolit.", "lightning.pytorch.")


def build(node: Target, *args: Any, **kwargs: Any) -> Any:
    """Call the target with the node's other keys; `args` and `kwargs` are what the program adds."""
    refuse_foreign_target(node["_target_"], "the job")
    module, _, name = node["_target_"].rpartition(".")
    settings = {key: value for key, value in node.items() if key != "_target_"}
    target = getattr(importlib.import_module(module), name)
    if not isinstance(target, type):
        raise ValueError(f"_target_ is {node['_target_']}, which is no class; only classes are built")
    return target(*args, **settings, **kwargs)


def refuse_foreign_target(target: object, path: str) -> None:
    """ValueError unless `target` is below an allowed package: a configuration must not run arbitrary code."""
    if not isinstance(target, str) or not target.startswith(ALLOWED) or ".." in target:
        raise ValueError(f"{path}._target_ is {target!r}; it must begin with {' or '.join(ALLOWED)}")
