"""Words of the command line to Hydra's composition: short forms are spelled out, and for a word that Hydra
refuses, `malformed` says what to write.
"""

import contextlib
import difflib
import re
import shlex
import sys
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from itertools import pairwise
from pathlib import Path

from hydra import compose as hydra_compose
from hydra import initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf

from nanolit.machine.paths import CONF, PACKAGE, expanded, read_yaml

LAUNCHERS = PACKAGE.parent / "launch"
if (LAUNCHERS / "hydra_plugins").is_dir() and str(LAUNCHERS) not in sys.path:
    sys.path.append(str(LAUNCHERS))  # a bare checkout; Hydra looks for plugins when it composes
# What other programs call a setting; nanochat's flags first.
OTHER_NAMES = {
    "depth": "model.depth",
    "device_batch_size": "micro_batch",
    "total_batch_size": "total_batch",
    "num_iterations": "max_steps",
    "target_param_data_ratio": "target_ratio",
    "max_seq_len": "model.context",
    "sequence_length": "model.context",
    "window_pattern": "recipe.gpt.window_pattern",
    "vocab_size": "recipe.vocab_size",
    "dataset": "data",
    "data_path": "data",
    "batch_size": "total_batch",
    "steps": "max_steps",
    "max_iters": "max_steps",
    "lr": "stage.base.lr_scale",
    "learning_rate": "stage.base.lr_scale",
    "layers": "model.depth",
    "n_layer": "model.depth",
    "n_embd": "model.width",
    "hidden_size": "model.width",
    "n_head": "model.heads",
    "block_size": "model.context",
    "context": "model.context",
    "gpus": "cluster.devices",
    "devices": "cluster.devices",
    "name": "run",
    "output_dir": "root",
    "out_dir": "root",
}
TYPESET = r"[\u2013\u2014\u2018\u2019\u201c\u201d]"  # dashes and quotes of text programs
FLAGS = ("--help", "--cfg", "--json")
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
    """Return the choices of a group, d2 before d12."""
    names = (path.stem for path in (CONF / group).glob("*.yaml"))
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
        paths = _paths(value) if key == "data" and equals and value not in options("data") else []
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


def _paths(value: str) -> list[str]:
    """Return the paths that a value names, one or several; [] where a part of it is none."""
    whole = _is_there(value) or value[:1] in "'\"" or "," not in value
    inner = value[1:-1] if value[:1] == "[" and value[-1:] == "]" else value
    parts = [value] if whole and inner == value else [part.strip() for part in inner.split(",")]
    are = ("/" in part or "." in part or part.startswith(("~", HUB)) or _is_there(part) for part in parts)
    return parts if all(are) else []


def _is_there(path: str) -> bool:
    with contextlib.suppress(ValueError, OSError):  # not a path at all
        return bool(path) and expanded(path).exists()
    return False


def grammar_error(words: Sequence[str]) -> str | None:
    """Return what is wrong with the first word that Hydra cannot read; None if it reads them all."""
    parser = OverridesParser.create()
    for index, word in enumerate(words):
        try:
            parser.parse_override(word)
        except HydraException:
            following = words[index + 1] if index + 1 < len(words) else ""
            return malformed(word, following)
    return None


def malformed(word: str, following: str) -> str:
    """Return one line: what is wrong with a word that Hydra cannot read, and what to write."""
    if re.match(rf"{TYPESET}|\w+={TYPESET}", word):
        return f"{word} has a dash or quotes that a text program put there; write {re.sub(TYPESET, '', word)}"
    key, equals, value = word.partition("=")
    if word.startswith("-"):
        if near := difflib.get_close_matches(key, FLAGS, n=1, cutoff=0.75):
            return f"there is no {key} here; did you mean {near[0]}?"
        bare = following and not following.startswith("-") and "=" not in following
        name, value = key.lstrip("-").replace("-", "_"), value or (following if bare else "…")
        return f"there is no {key} here; settings are written KEY=VALUE: {renamed(name)}={value}"
    if not equals:
        return f"{word!r} is not a setting: settings are written KEY=VALUE, {meant(word, following)}"
    if value.endswith(","):
        return f"{word} ends with a comma; leave it out: {word.rstrip(',')}"
    unclosed = any(value.count(left) != value.count(right) for left, right in ("[]", "{}", "()"))
    what = "has a bracket that is not closed" if unclosed else "has characters with a meaning to Hydra"
    return f"{word} {what}; {'close it, or ' * unclosed}quote the value: {quoted(key, value)}"


def meant(word: str, following: str) -> str:
    """Return the setting that a bare word may stand for, as a question."""
    choices = {group: options(group) for group in groups()}
    if word in choices or word in OTHER_NAMES:  # the group and its choice, as two words
        choice = following if following and "=" not in following else (*choices.get(word, ()), "…")[0]
        return f"did you mean {renamed(word)}={choice}?"
    every = {name: group for group in reversed(choices) for name in choices[group]}
    if word not in every and _paths(word):
        return f"did you mean data={shlex.quote(word)}?"
    near = [word] if word in every else difflib.get_close_matches(word, every, n=1, cutoff=0.7)
    return f"did you mean {every[near[0]]}={near[0]}?" if near else "as in model=d12"


def renamed(name: str) -> str:
    """Return our name of a setting that another program calls `name`."""
    return OTHER_NAMES.get(name, name)


def quoted(key: str, value: str) -> str:
    """Quote a value for Hydra, and the whole for the shell: "data.path='/srv/step=3'"."""
    word = f"{key}={hydra_quoted(value)}"
    return shlex.quote(word) if set(word) & set('"$`!\\') else f'"{word}"'


def hydra_quoted(text: str) -> str:
    """Put text in quotes for Hydra, where a backslash counts only before a quote."""
    escaped = re.sub(r"(\\*)('|$)", lambda match: match[1] * 2 + match[2].replace("'", "\\'"), text)
    return f"'{escaped}'"


def check_yaml(folder: Path) -> None:
    """ValueError for a file of a folder beside conf/ with tags, or aliases without end."""
    for path in (path for pattern in DEEPEST for path in folder.glob(pattern)):
        content = path.read_bytes()
        if b"!" in content or (b"*" in content and b"&" in content):
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
