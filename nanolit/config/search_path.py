"""What the YAML files that Hydra reads must not hold: aliases that unfold without end, the environment."""

import re
from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path

from nanolit.machine.paths import conf_folder, read_yaml

DEEPEST = ("*.yaml", "*/*.yaml", "*/*/*.yaml")  # groups and their options


def check_search_path(words: Sequence[str]) -> None:
    """ValueError for a file of conf/, or of a folder that the words add, whose aliases unfold without end."""
    for folder in (conf_folder(), *added(words)):
        for path in (path for pattern in DEEPEST for path in folder.glob(pattern)):
            content = path.read_bytes()
            if b"*" in content and b"&" in content:
                read_yaml(path, remedy="mend it")


def added(words: Sequence[str]) -> Iterator[Path]:
    """Yield the folders of hydra.searchpath=[…] and --config-dir."""
    for word in words:
        if word.lstrip("+").startswith("hydra.searchpath="):
            yield from map(Path, re.findall(r"(?:file://|[\[,=])(/[^,\]]+)", word))
    for flag, folder in pairwise([*words, ""]):
        name, _, value = flag.partition("=")
        if name in ("--config-dir", "-cd"):
            yield Path(value or folder)


def refuse_environment(name: str, *_default: object) -> str:
    """A resolved value is written into job.yaml, and from there to W&B and Modal: no place for a secret."""
    raise ValueError(
        f"${{oc.env:{name}}} is not read: its value would be stored with the run; write the value itself, or "
        f'on the command line "${name}"'
    )
