"""Words of the command line to Hydra's composition: short forms are spelled out, odd choices refused."""

import re
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import nullcontext, suppress
from itertools import pairwise
from pathlib import Path

from hydra import compose as hydra_compose
from hydra import initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.types import Quote, QuotedString
from omegaconf import DictConfig, OmegaConf

from nanolit.machine.paths import CONF, PACKAGE, expanded, read_yaml

LAUNCHERS = PACKAGE.parent / "launch"
if (LAUNCHERS / "hydra_plugins").is_dir() and str(LAUNCHERS) not in sys.path:
    sys.path.append(str(LAUNCHERS))  # a bare checkout; Hydra looks for plugins when it composes
HUB = "hf:"
DEEPEST = ("*.yaml", "*/*.yaml", "*/*/*.yaml")  # groups and their options
PLAIN_PATH = r"""[A-Za-z./][A-Za-z0-9_./:-]*|'.*'|".*\""""  # Hydra reads it as it is


def as_typed(words: Sequence[str]) -> list[str]:
    """Return the words of a command line as Hydra reads them; ValueError for what it would fail at itself."""
    for folder in added(words):
        check_yaml(folder)
    spelled = spelled_out(words)
    refuse_odd_choices(spelled)
    return spelled


def compose_config(words: Sequence[str]) -> DictConfig:
    """Return Hydra's composition, with its own node; a running Hydra application keeps its search path."""
    running = GlobalHydra().is_initialized()
    folder = str(CONF)
    with nullcontext() if running else initialize_config_dir(folder, job_name="nanolit", version_base="1.3"):
        return hydra_compose("config", list(words), return_hydra_config=True)


def options(group: str) -> list[str]:
    """Return the choices of a group."""
    return in_order(path.stem for path in (CONF / group).glob("*.yaml"))


def in_order(names: Iterable[str]) -> list[str]:
    """Sort names, d2 before d12."""
    return sorted(names, key=lambda name: (name.rstrip("0123456789"), len(name), name))


def groups() -> list[str]:
    """Return the groups that a job chooses from: those in the defaults of conf/config.yaml."""
    defaults = OmegaConf.load(CONF / "config.yaml").defaults
    names = [str(key) for entry in defaults if isinstance(entry, DictConfig) for key in entry]
    return [name for name in names if not name.startswith("override")]


def refuse_odd_choices(words: Sequence[str]) -> None:
    """ValueError for `model=4` and `model=[1,2]`, at which Hydra stumbles: a group's options are names."""
    known = groups()
    for word in words:
        key, _, value = word.lstrip("+").partition("=")
        inner = value[1:-1] if value[:1] == "[" else "" if value == "null" else value
        parts = inner.split(",") if key in known else []
        if any(re.fullmatch(r"[-+.]?\d[-+\d._eE]*|true|false|null|[\[{].*", part.strip()) for part in parts):
            raise ValueError(f"{word}: {key} is chosen by name: {', '.join(options(key))}")


def spelled_out(words: Sequence[str]) -> list[str]:
    """Return the words with `data=PATH` as `data=local data.path='PATH'`, lists and sweeps of paths likewise,
    and `mixture=…` as `stage.sft.mixture=…`, which Hydra would take for a choice of conf/mixture.

    A path holds a slash or a dot, begins with ~, or is there; hf:OWNER/NAME stands for one. Other values are
    quoted where Hydra would stumble at an "ü", or at a bracket in a file's name.
    """
    spelled: list[str] = []
    for word in words:
        key, equals, value = word.partition("=")
        paths = paths_of(value) if key == "data" and equals and value not in options("data") else []
        if not paths:
            foreign = not value.isascii() and re.fullmatch(r"[\w ./:~-]+", value)
            if foreign or key == "root" or (key == "mixture" and _is_there(value)):
                word = f"{key}={_read_whole(value)}"
            spelled.append(f"stage.sft.{word}" if key == "mixture" else word)
            continue
        parts = ",".join(map(_read_whole, paths))
        spelled += ["data=local", f"data.path=[{parts}]" if value[0] == "[" else f"data.path={parts}"]
    return spelled


def _read_whole(text: str) -> str:
    return text if re.fullmatch(PLAIN_PATH, text) else hydra_quoted(text)


def paths_of(value: str) -> list[str]:
    """Return the paths that a value names, one or several; [] where a part of it is none."""
    whole = _is_there(value) or value[:1] in "'\"" or "," not in value
    inner = value[1:-1] if value[:1] == "[" and value[-1:] == "]" else value
    parts = [value] if whole and inner == value else [part.strip() for part in inner.split(",")]
    are = ("/" in part or "." in part or part.startswith(("~", HUB)) or _is_there(part) for part in parts)
    return parts if all(are) else []


def _is_there(path: str) -> bool:
    with suppress(ValueError, OSError):  # not a path at all
        return bool(path) and expanded(path).exists()
    return False


def hydra_quoted(text: str) -> str:
    """Put text in quotes for Hydra, where a backslash counts only before a quote."""
    return QuotedString(text, Quote.single).with_quotes()


def check_yaml(folder: Path) -> None:
    """ValueError for a file of a folder beside conf/ with tags, or aliases without end."""
    for path in (path for pattern in DEEPEST for path in folder.glob(pattern)):
        content = path.read_bytes()
        if b"!" in content or (b"*" in content and b"&" in content):
            read_yaml(path, remedy="fix it")


def added(words: Sequence[str]) -> Iterator[Path]:
    """Yield the folders of hydra.searchpath=[…] and --config-dir."""
    for word in words:
        if word.lstrip("+").startswith("hydra.searchpath="):
            yield from map(Path, re.findall(r"(?:file://|[\[,=])(/[^,\]]+)", word))
    for flag, folder in pairwise([*words, ""]):
        name, _, value = flag.partition("=")
        if name in ("--config-dir", "-cd"):
            yield Path(value or folder)
