"""Check that every key of a mapping exists and has the right type, and say in one line what is wrong.

pydantic checks; it is imported when there is something to check: `--help` and `--cfg job` don't wait for it.
"""

import difflib
from collections.abc import Iterable, Mapping
from types import NoneType, UnionType
from typing import TYPE_CHECKING, Any, Literal, Union, get_args, get_origin, get_type_hints

from typing_extensions import is_typeddict

from nanolit.machine.paths import faults

if TYPE_CHECKING:
    from pydantic_core import ErrorDetails

Annotation = Any  # int, list[str], float | None: typing has no name for what stands in a signature
WORDS = {
    int: "an integer",
    float: "a number",
    str: "text",
    bool: "true or false",
    NoneType: "null",
    dict: "a mapping",
    list: "a list",
}
# Report a misspelt key before the key that it leaves missing, and the top of a job before what is below.
FIRST = {"extra_forbidden": 0, "missing": 1}


def check_mapping(
    node: Mapping[str, object], kind: Annotation, *, path: str, takes_others: bool = False, may_lack: int = 0
) -> None:
    """Check a mapping against a TypedDict; `path` is its own key, "" for the whole job.

    With `takes_others` it may have more keys; down to level `may_lack` it may lack some.
    """
    if errors := faults(node, kind, may_lack=may_lack, extra="allow" if takes_others else "forbid"):
        first = min(errors, key=lambda detail: (FIRST.get(detail["type"], 2), len(detail["loc"])))
        raise ValueError(one_line(first, kind, path))


def one_line(error: "ErrorDetails", kind: Annotation, path: str) -> str:
    """pydantic's error as one line: the key, what was got, what is allowed."""
    parent = kind
    for part in error["loc"]:
        below = member(kind, part)
        if below is None and error["type"] != "extra_forbidden":
            break  # `part` names a choice of the union that was reached
        parent, kind, path = kind, below, joined(path, part)
    if error["type"] == "extra_forbidden":
        return unknown_key(path, get_type_hints(without_null(parent)).keys() - {"overrides"})
    if error["type"] == "missing":
        return f"{path} is missing; it must be {words(kind)}"
    value = error["input"]
    return f"{path} is {value!r} ({type(value).__name__}); it must be {words(kind)}"


def member(kind: Annotation, part: str | int) -> Annotation:
    """The type of a key or an item below `kind`; None where it has none of that name."""
    kind = without_null(kind)
    if is_typeddict(kind):
        return get_type_hints(kind).get(str(part))
    arguments = get_args(kind)
    if isinstance(part, int) or get_origin(kind) is dict:
        return arguments[-1] if arguments else Any
    return None


def without_null(kind: Annotation) -> Annotation:
    """`X | None` → X; other types as they are."""
    others = [choice for choice in get_args(kind) if choice is not NoneType]
    return others[0] if get_origin(kind) in (Union, UnionType) and len(others) == 1 else kind


def joined(path: str, part: str | int) -> str:
    if isinstance(part, int):
        return f"{path}[{part}]"
    return f"{path}.{part}" if path else part


def words(kind: Annotation) -> str:
    """A type in words, for messages: `int | None` is "an integer or null"."""
    origin = get_origin(kind)
    if origin in (Union, UnionType):
        return " or ".join(map(words, get_args(kind)))
    if origin is Literal:
        return "one of " + ", ".join(map(str, get_args(kind)))
    if is_typeddict(kind):
        return "a mapping"
    if isinstance(origin, type) and issubclass(origin, Iterable) and origin is not dict:
        return "a list"
    return WORDS.get(origin or kind, str(kind))


def unknown_key(key: str, choices: Iterable[str]) -> str:
    """One line: the key, the nearest spelling, what is allowed."""
    parent, _, last = key.rpartition(".")
    choices = sorted(choices)
    near = [choice for choice in choices if choice.startswith(last)] or difflib.get_close_matches(
        last.lower(), choices, n=1, cutoff=0.5
    )
    meant = f"did you mean {parent + '.' if parent else ''}{near[0]}? " if near else ""
    return f"there is no key {key}; {meant}allowed{f' in {parent}' if parent else ''}: {', '.join(choices)}"
