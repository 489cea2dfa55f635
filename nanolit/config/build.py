"""Check a job's keys and types before any work starts, and build what its `_target_` nodes name.

pydantic checks mappings; it is imported when there is something to check: `--help` and `--cfg job` don't wait
for it. Importing the class of a target would import torch, and a typo on the command line would take seconds
to answer. So `ast` reads from the source which arguments it takes. Only classes of nanolit and Lightning are
ever built.
"""

import ast
import difflib
import functools
import importlib
import importlib.util
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from types import NoneType, UnionType
from typing import (
    TYPE_CHECKING,
    Any,
    Literal,
    NamedTuple,
    NotRequired,
    Optional,
    Union,
    get_args,
    get_origin,
    get_type_hints,
)

from typing_extensions import TypedDict, is_typeddict

from nanolit.config.schema import Node, Target
from nanolit.machine.paths import faults

if TYPE_CHECKING:
    from pydantic_core import ErrorDetails

Annotation = Any  # int, list[str], float | None: typing has no name for what stands in a signature

# What configurations choose: other classes of ours write files where they are told to
ALLOWED = (
    "nanolit.data.",
    "nanolit.model.",
    "nanolit.optim.",
    "nanolit.tasks.",
    "lightning.pytorch.loggers.",
)
# The dataclass that holds a class's arguments, and those of them that the program derives and passes itself.
CONFIGS = {"nanolit.model.gpt.GPT": "nanolit.model.gpt.GPTConfig"}
DERIVED = {"nanolit.model.gpt.GPTConfig": {"depth", "width", "heads", "kv_heads", "vocab_size", "context"}}
NAMES: dict[str, Annotation] = {
    **{kind.__name__: kind for kind in (int, float, str, bool, list, dict)},
    **{"Path": str, "Mapping": dict, "Sequence": Sequence, "Iterable": Iterable},
    **{"Literal": Literal, "Optional": Optional, "Union": Union},
}
typed_dict: Any = TypedDict  # called with fields that only the source knows


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


class Signature(NamedTuple):
    arguments: Annotation  # a TypedDict
    takes_others: bool  # it has **kwargs


def check_mapping(
    node: Mapping[str, object], kind: Annotation, *, path: str, takes_others: bool = False, may_lack: int = 0
) -> None:
    """Check a mapping against a TypedDict; `path` is its own key, "" for the whole job.

    With `takes_others` it may have more keys; down to level `may_lack` it may lack some.
    """
    if errors := faults(node, kind, may_lack=may_lack, extra="allow" if takes_others else "forbid"):
        first = min(errors, key=lambda detail: (FIRST.get(detail["type"], 2), len(detail["loc"])))
        raise ValueError(one_line(first, kind, path))


def targets(node: object, path: str = "") -> Iterator[tuple[str, Node]]:
    """Yield every mapping with a `_target_` in a job, however deep, and its dotted key."""
    if isinstance(node, dict) and "_target_" in node:
        yield path, node
    parts = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ()
    for part, value in parts:
        yield from targets(value, joined(path, part))


def check_targets(job: Mapping[str, object]) -> None:
    """Check every `_target_` in a job against the signature of what it names."""
    for path, node in targets(job):
        check_target(node, path=path)


def check_target(node: Mapping[str, object], *, path: str) -> None:
    """Check one `_target_` and its arguments; `_target_: null` builds nothing."""
    if node.get("_target_", "") is None:
        return
    if "_target_" not in node:
        raise ValueError(f"{path}._target_ is missing; it names the class to build")
    refuse_foreign_target(node["_target_"], path)
    signature = signature_of(node["_target_"], path)
    settings = {key: value for key, value in node.items() if key != "_target_"}
    check_mapping(settings, signature.arguments, path=path, takes_others=signature.takes_others)


def refuse_foreign_target(target: object, path: str) -> None:
    """ValueError unless `target` is below an allowed package: a configuration must not run arbitrary code.

    Each part must be an identifier: a slash would let the annotations of any file be evaluated as ours.
    """
    if (
        not isinstance(target, str)
        or not target.startswith(ALLOWED)
        or not all(map(str.isidentifier, target.split(".")))
    ):
        raise ValueError(f"{path}._target_ is {target!r}; it must start with {' or '.join(ALLOWED)}")


@functools.cache
def signature_of(target: str, path: str) -> Signature:
    """Return the arguments of the class with this dotted name; `path` is its key, for messages."""
    module, _, name = CONFIGS.get(target, target).rpartition(".")
    for node in syntax_tree(module, path).body:
        if isinstance(node, ast.ClassDef) and node.name == name:
            return signature_of_class(node, module, path)
        if isinstance(node, ast.FunctionDef) and node.name == name:
            raise ValueError(f"{path}._target_ is {target}, a function; it must be a class")
        if isinstance(node, ast.ImportFrom) and not node.level:
            for alias in node.names:
                if name == (alias.asname or alias.name):
                    refuse_foreign_target(f"{node.module}.{alias.name}", path)
                    return signature_of(f"{node.module}.{alias.name}", path)
    raise ValueError(f"{path}._target_ is {target}, but {module} has no {name}; check the spelling")


@functools.cache
def syntax_tree(module: str, path: str = "") -> ast.Module:
    """Return the parsed source of a module, found without importing it or its packages."""
    first, *rest = module.split(".")
    assert all(map(str.isidentifier, rest)), module  # refuse_foreign_target came before
    spec = importlib.util.find_spec(first)
    if spec is not None and spec.origin:
        place = Path(spec.origin).parent.joinpath(*rest)
        for file in (place.with_suffix(".py"), place / "__init__.py"):
            if os.path.isfile(file):  # False too where the name is too long
                return ast.parse(file.read_text(encoding="utf-8"))
    raise ValueError(f"{path}._target_ names {module}, which does not exist; check the spelling")


def signature_of_class(node: ast.ClassDef, module: str, path: str) -> Signature:
    """Return the fields of a dataclass, else the arguments of the class's or its first base's `__init__`.

    Fields and keyword-only arguments without a default are required; the program gives positional ones.
    """
    functions = {line.name: line for line in node.body if isinstance(line, ast.FunctionDef)}
    init = functions.get("__init__")
    if any(ast.unparse(decorator).startswith("dataclass") for decorator in node.decorator_list):
        lines = [line for line in node.body if isinstance(line, ast.AnnAssign)]
        declared = [(ast.unparse(line.target), line.annotation, line.value is None) for line in lines]
    elif init:
        declared = [(argument.arg, argument.annotation, False) for argument in init.args.args[1:]]
        keywords = zip(init.args.kwonlyargs, init.args.kw_defaults, strict=True)
        declared += [(argument.arg, argument.annotation, default is None) for argument, default in keywords]
    elif bases := [base.id for base in node.bases if isinstance(base, ast.Name)]:
        return signature_of(f"{module}.{bases[0]}", path)
    else:
        declared = []
    fields = {
        name: type_of(annotation, module) if required else NotRequired[type_of(annotation, module)]
        for name, annotation, required in declared
        if name not in DERIVED.get(f"{module}.{node.name}", ())
    }
    return Signature(typed_dict(node.name, fields), bool(init and init.args.kwarg))


def type_of(annotation: ast.expr | None, module: str) -> Annotation:
    """Return the type that an annotation means in `module`; Any if the source alone cannot tell."""
    if annotation is None:
        return Any
    names = [node.id for node in ast.walk(annotation) if isinstance(node, ast.Name)]
    known = {name: NAMES[name] if name in NAMES else alias(name, module) for name in names}
    try:  # source of nanolit and Lightning alone (ALLOWED), with no name but those of NAMES
        kind = eval(ast.unparse(annotation), {"__builtins__": {}}, known)
    except (TypeError, AttributeError):  # Tensor["B T"], torch.dtype: names that we do not follow
        return Any
    return Any if isinstance(kind, str) or "ForwardRef" in repr(kind) else kind


def alias(name: str, module: str) -> Annotation:
    """Return the type that a module gives a name by `name = …`, or imports from another of ours; else Any."""
    for line in syntax_tree(module).body:
        if isinstance(line, ast.Assign) and ast.unparse(line.targets[0]) == name:
            return type_of(line.value, module)
        if isinstance(line, ast.ImportFrom) and (line.module or "").startswith("nanolit."):
            for imported in line.names:
                if name == (imported.asname or imported.name):
                    return alias(imported.name, str(line.module))
    return Any


def build(node: Target, *args: Any, **kwargs: Any) -> Any:
    """Call the target with the node's other keys; `args` and `kwargs` are what the program adds."""
    if "_target_" not in node:
        raise ValueError(
            f"a mapping of {', '.join(map(str, node))} has no _target_; it names the class to build"
        )
    refuse_foreign_target(node["_target_"], "the job")
    module, _, name = node["_target_"].rpartition(".")
    settings = {key: value for key, value in node.items() if key != "_target_"}
    target = getattr(importlib.import_module(module), name)
    if not isinstance(target, type):
        raise ValueError(f"_target_ is {node['_target_']}, which is not a class; give a class")
    refuse_foreign_target(f"{target.__module__}.{name}", "the job")  # which our module may have imported
    return target(*args, **settings, **kwargs)


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
    """Return the type of a key or an item of `kind`; None if it has none of that name."""
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
    """Return a type in words, for messages: `int | None` is "an integer or null"."""
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
