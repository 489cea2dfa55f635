"""The one command-line reader: `read(Settings, words)` fills a dataclass of settings from what was typed.

Every setting is typed as `key=value`, `--key value` or `--key=value`; a boolean also as `--key` alone, a
positional one by its place. Text is converted to the field's type and checked, so a command starts with
values that are right. `--help` is generated from the fields. Nothing typed is ever evaluated.
"""

import ast
import difflib
import math
import sys
from collections.abc import Collection, Mapping, Sequence
from dataclasses import MISSING, dataclass, field, fields
from pathlib import Path
from types import NoneType
from typing import Any, Literal, TypeVar, get_args, get_origin, get_type_hints

from nanolit.machine.paths import expanded, home

T = TypeVar("T")


@dataclass(frozen=True)
class Setting:
    """One field of a command's settings: its name, its type without None, and what `setting` said of it."""

    name: str
    kind: Any
    default: Any
    help: str
    value: str = ""  # what --help calls the value
    least: float | None = None  # bounds of a number
    most: float | None = None
    short: str = ""  # a flag such as -p
    positional: bool = False

    @property
    def is_list(self) -> bool:
        return get_origin(self.kind) is tuple

    @property
    def choices(self) -> tuple[str, ...]:
        return get_args(self.kind) if get_origin(self.kind) is Literal else ()

    @property
    def placeholder(self) -> str:
        """Return what stands for the value in --help and in messages."""
        if self.value or self.choices:
            return self.value or "|".join(self.choices)
        return {int: "N", float: "X", bool: "true", Path: "FOLDER"}.get(self.kind, self.name.upper())

    @property
    def typed(self) -> str:
        """Return how the setting is typed: `steps=N`, or `RUN` for a positional one."""
        return self.placeholder if self.positional else f"{self.name}={self.placeholder}"

    @property
    def line(self) -> str:
        """Return its line of --help: the flag, the help and the default."""
        value = "" if self.kind is bool else f" {self.placeholder}"
        flag = f"{self.short}{value}: " if self.short else ""
        shown = ",".join(self.default) if isinstance(self.default, tuple) else self.default
        default = "" if shown in (None, "") or shown is False else f" (default: {shown})"
        return f"{flag}{self.help}{' (required)' if self.default is MISSING else default}"

    @property
    def allowed(self) -> str:
        """The values that are accepted, in words."""
        if self.kind is bool or self.choices:
            return "true or false" if self.kind is bool else f"one of {', '.join(self.choices)}"
        number = "a whole number" if self.kind is int else "a number"
        if self.most is not None:
            return f"{number} from {self.least} to {self.most}"
        return number if self.least is None else f"{number}, {self.least} or more"

    def converted(self, text: str) -> Any:
        """Return `text` as the setting's type; ValueError says what is allowed."""
        if not (names(text) if self.is_list else text.strip()) and self.default != "":
            raise ValueError(f"{self.name}= is empty; write {self.name}=VALUE or leave it out")
        if self.is_list:
            return tuple(names(text))
        if self.kind is str or text in self.choices:
            return text
        if self.kind is Path:
            return expanded(text)
        if self.kind is bool and text.lower() in ("true", "false"):
            return text.lower() == "true"
        if self.kind in (int, float):
            try:
                number = self.kind(text)
            except ValueError:
                number = math.nan
            least = -sys.float_info.max if self.least is None else self.least
            if least <= number <= (self.most or sys.float_info.max):
                return number
        raise ValueError(f"{self.name}={text} must be {self.allowed}")


def setting(help: str, default: Any = MISSING, **rules: Any) -> Any:
    """Return a dataclass field with its line of --help and `Setting`'s rules; no default: it is required."""
    return field(default=default, metadata={"help": help, **rules})


@dataclass(frozen=True, kw_only=True)
class Root:
    """The setting of every command that looks at runs."""

    root: str | None = setting(
        "folder that holds the runs (default: NANOLIT_HOME, else ./runs)", None, value="FOLDER"
    )

    @property
    def home(self) -> Path:
        return home(self.root)


def read(settings: type[T], words: Sequence[str], *, about: str | None) -> T:
    """Return the settings that `words` say; ValueError for one that is unknown, wrong, missing or repeated.

    `--help` prints `about` and a line for each setting, and exits.
    """
    known = settings_of(settings)
    texts, rest = _split(known, words, about)
    if rest:
        raise ValueError(f"unknown setting {rest[0]!r}; {_hint(rest[0], known)}")
    for name, given in texts.items():
        if len(given) > 1 and not known[name].is_list:
            raise ValueError(f"{name}= is given twice ({given[0]!r} and {given[1]!r}); give it once")
    return settings(**_values(known, texts))


def read_some(settings: type[T], words: Sequence[str], *, about: str | None) -> tuple[T, list[str]]:
    """Return the settings, and the words that are none of them: Hydra's.

    As with Hydra's own, the last of several values for one key counts.
    """
    known = settings_of(settings)
    texts, rest = _split(known, words, about)
    return settings(**_values(known, texts)), rest


def choose(name: str, allowed: Collection[str], *, kind: str) -> str:
    """Return `name` if it is allowed; ValueError lists what is, and the nearest spelling."""
    if name in allowed:
        return name
    near = difflib.get_close_matches(name, allowed, n=1)
    hint = f"did you mean {near[0]}? " if near else ""
    raise ValueError(f"there is no {kind} {name!r}; {hint}allowed: {', '.join(allowed)}")


def names(text: str) -> list[str]:
    """Split 'a, b' into ['a', 'b'], without repeats."""
    return list(dict.fromkeys(name for part in text.split(",") if (name := part.strip())))


def listing(files: Mapping[str, Path]) -> str:
    """Return a line for each command: its name, and the first line of its file's docstring. Imports none."""
    lines = []
    for name, path in files.items():
        docstring = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
        lines.append(f"  {name:<12}{docstring.partition(chr(10))[0]}")
    return "\n".join(lines)


def settings_of(settings: type) -> dict[str, Setting]:
    """Return the settings of a dataclass by name."""
    kinds, found = get_type_hints(settings), {}
    for entry in fields(settings):
        parts = [kind for kind in get_args(kinds[entry.name]) if kind is not NoneType]
        kind = parts[0] if NoneType in get_args(kinds[entry.name]) else kinds[entry.name]
        found[entry.name] = Setting(name=entry.name, kind=kind, default=entry.default, **entry.metadata)
    return found


def _split(
    known: dict[str, Setting], words: Sequence[str], about: str | None
) -> tuple[dict[str, list[str]], list[str]]:
    """Return the texts given for each setting, and the words that belong to none."""
    shorts = {entry.short: name for name, entry in known.items() if entry.short}
    places = [name for name, entry in known.items() if entry.positional]
    texts: dict[str, list[str]] = {}
    rest, left = [], list(words)
    while left:
        word = left.pop(0)
        if word in ("-h", "--help") or (word == "help" and len(words) == 1):
            print(help_of(known, about))
            sys.exit(0)
        key, equals, text = word.partition("=")
        flag = key.startswith("-")
        name = shorts.get(key) or (key[2:].replace("-", "_") if key.startswith("--") else key)
        if name in known and (equals or flag):
            if not equals and known[name].kind is bool:
                text = "true"
            elif not equals:
                if not left:
                    raise ValueError(f"{word} needs a value: {word} {known[name].placeholder}")
                text = left.pop(0)
            texts.setdefault(name, []).append(text)
        elif places and not flag and word not in known and not (equals and key.isidentifier()):
            texts.setdefault(places[0], []).append(word)
            if not known[places[0]].is_list:
                del places[0]
        else:
            rest.append(word)
    return texts, rest


def _values(known: dict[str, Setting], texts: dict[str, list[str]]) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for name, entry in known.items():
        if name in texts:
            values[name] = entry.converted(",".join(texts[name]) if entry.is_list else texts[name][-1])
        elif entry.default is MISSING:
            raise ValueError(f"{name} is missing; give {entry.typed}: {entry.help}")
    return values


def _hint(word: str, known: Collection[str]) -> str:
    near = difflib.get_close_matches(word.lstrip("-").partition("=")[0].replace("-", "_"), known, n=1)
    return f"did you mean {near[0]}=…?" if near else f"allowed: {', '.join(f'{key}=…' for key in known)}"


def help_of(known: dict[str, Setting], about: str | None) -> str:
    """Return the text of --help: `about`, then a line for each setting, with its default."""
    lines = [(entry.typed, entry.line) for entry in known.values()]
    width = max((len(shown) for shown, _ in lines), default=0)
    table = "\n".join(f"  {shown:<{width}}  {text}" for shown, text in lines)
    return f"{(about or '').strip()}\n\nsettings:\n{table}"
