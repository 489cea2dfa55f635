"""Every argument of a job exists where it is used and has the right type, before any work starts.

Signatures are read from source with `ast`: neither torch nor lightning is imported: a typo answers at once.
"""

import ast
import difflib
import functools
import importlib.util
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from nanolit.config.build import refuse_foreign_target

# Keyword-only arguments that the program derives and passes itself.
DERIVED = {"nanolit.model.gpt.GPT": {"depth", "width", "heads", "kv_heads", "vocab_size", "context"}}
SEQUENCES = ("list", "tuple", "Sequence", "Iterable")
TYPES: dict[str, tuple[tuple[type, ...], str]] = {
    "int": ((int,), "an integer"),
    "float": ((int, float), "a number"),
    "str": ((str,), "text"),
    "Path": ((str,), "a path"),
    "bool": ((bool,), "true or false"),
    "None": ((type(None),), "null"),
    **dict.fromkeys(("dict", "Mapping"), ((dict,), "a mapping")),
    **dict.fromkeys(SEQUENCES, ((list, tuple), "a list")),
}


@dataclass
class Shape:
    """The keys a node may have: name → annotation. `required` must be there; `free` takes others too."""

    module: str
    keys: dict[str, ast.expr | None] = field(default_factory=dict)
    required: set[str] = field(default_factory=set)
    free: bool = False


def check_job(job: Mapping[str, Any]) -> None:
    """ValueError names the first key that is unknown, missing or of the wrong type, and what is allowed."""
    shape = shape_of("nanolit.config.schema.Job")
    if unknown := job.keys() - shape.keys:
        raise ValueError(unknown_key(min(unknown), set(shape.keys) - {"overrides"}))
    check_node(job, shape, path="")


def check_node(node: Mapping[str, Any], shape: Shape, *, path: str) -> None:
    """Check one mapping against its shape, and everything below it; `path` ends in a dot or is empty."""
    for key in node:
        if key not in shape.keys and not shape.free:
            raise ValueError(unknown_key(f"{path}{key}", shape.keys))
    for key in sorted(shape.required - node.keys()):
        raise ValueError(f"{path}{key} is missing; it must be {allowed(shape.keys[key], shape.module)}")
    for key, value in node.items():
        check_value(value, shape.keys.get(key), shape.module, path=f"{path}{key}")


def unknown_key(key: str, choices: Iterable[str]) -> str:
    """One line: the key, the nearest spelling, what is allowed."""
    parent, _, last = key.rpartition(".")
    choices = sorted(choices)
    near = [one for one in choices if one.startswith(last)] or difflib.get_close_matches(
        last, choices, n=1, cutoff=0.5
    )
    meant = f"did you mean {parent + '.' if parent else ''}{near[0]}? " if near else ""
    return f"there is no key {key}; {meant}allowed{f' in {parent}' if parent else ''}: {', '.join(choices)}"


def check_value(value: Any, annotation: ast.expr | None, module: str, *, path: str) -> None:
    """Check one value against an annotation as `module` writes it; what source alone cannot tell passes."""
    if isinstance(value, dict) and "_target_" in value:
        return check_target(value, path=path)
    for one in alternatives(annotation, module):
        if isinstance(one, Shape) and isinstance(value, dict):
            return check_node(value, one, path=f"{path}.")
        if not isinstance(one, Shape) and fits(value, one):
            return check_items(value, one, module, path=path)
    raise ValueError(
        f"{path} is {value!r} ({type(value).__name__}); it must be {allowed(annotation, module)}"
    )


def check_target(node: dict[str, Any], *, path: str) -> None:
    """Check a `_target_` node against the signature of what it names; `_target_: null` builds nothing."""
    if node["_target_"] is None:
        return
    refuse_foreign_target(node["_target_"], path)
    check_node(
        {key: value for key, value in node.items() if key != "_target_"},
        shape_of(node["_target_"], path=path),
        path=f"{path}.",
    )


def check_items(value: Any, annotation: ast.expr | None, module: str, *, path: str) -> None:
    """Check the items of a list, or the values of a mapping."""
    if not isinstance(annotation, ast.Subscript) or name_of(annotation) == "Literal":
        return
    inner = annotation.slice.elts if isinstance(annotation.slice, ast.Tuple) else [annotation.slice]
    if isinstance(value, dict):
        for key, item in value.items():
            check_value(item, inner[-1], module, path=f"{path}.{key}")
    elif isinstance(value, (list, tuple)):
        for index, item in enumerate(value):
            check_value(item, inner[0], module, path=f"{path}[{index}]")


def fits(value: Any, annotation: ast.expr | None) -> bool:
    """Whether the outermost type is right; a name that we do not know takes anything."""
    if name_of(annotation) == "Literal":
        assert isinstance(annotation, ast.Subscript)
        return any(type(value) is type(choice) and value == choice for choice in choices_of(annotation))
    types, _ = TYPES.get(name_of(annotation), ((object,), ""))
    return isinstance(value, types) and (not isinstance(value, bool) or not {int, float} & set(types))


def allowed(annotation: ast.expr | None, module: str) -> str:
    """An annotation in words, for messages."""
    words = []
    for one in alternatives(annotation, module):
        if isinstance(one, Shape):
            words.append("a mapping")
        elif name_of(one) == "Literal":
            assert isinstance(one, ast.Subscript)
            words.append("one of " + ", ".join(map(str, choices_of(one))))
        else:
            words.append(TYPES.get(name_of(one), ((), ast.unparse(one) if one else "given"))[1])
    return " or ".join(words)


def choices_of(literal: ast.Subscript) -> list[Any]:
    value = ast.literal_eval(literal.slice)
    return list(value) if isinstance(literal.slice, ast.Tuple) else [value]


def name_of(annotation: ast.expr | None) -> str:
    """`list[int]` → list, `None` → None, `typing.Any` → Any."""
    if isinstance(annotation, ast.Subscript):
        annotation = annotation.value
    if isinstance(annotation, ast.Constant):
        return str(annotation.value)
    return annotation.id if isinstance(annotation, ast.Name) else getattr(annotation, "attr", "")


def alternatives(annotation: ast.expr | None, module: str) -> list[ast.expr | Shape | None]:
    """The members of a union; aliases and classes of the same module are looked up."""
    if isinstance(annotation, ast.BinOp):
        return alternatives(annotation.left, module) + alternatives(annotation.right, module)
    if isinstance(annotation, ast.Subscript) and name_of(annotation) in ("NotRequired", "Optional", "Union"):
        inner = annotation.slice.elts if isinstance(annotation.slice, ast.Tuple) else [annotation.slice]
        none = [ast.Constant(None)] if name_of(annotation) == "Optional" else []
        return [found for one in [*inner, *none] for found in alternatives(one, module)]
    if isinstance(annotation, ast.Name) and annotation.id not in TYPES:
        for node in syntax_tree(module).body:
            if isinstance(node, ast.Assign) and name_of(node.targets[0]) == annotation.id:
                return alternatives(node.value, module)
            if isinstance(node, ast.ClassDef) and node.name == annotation.id and is_typed_dict(node):
                return [shape_of(f"{module}.{annotation.id}")]
    return [annotation]


def is_typed_dict(node: ast.ClassDef) -> bool:
    return any(name_of(base) == "TypedDict" for base in node.bases)


@functools.cache
def shape_of(target: str, path: str = "") -> Shape:
    """The keys that a TypedDict, or the constructor of a class takes.

    Required of a constructor are keyword-only arguments without default; positional ones are the program's.
    """
    module, _, name = target.rpartition(".")
    for node in syntax_tree(module, path).body:
        if isinstance(node, ast.ClassDef) and node.name == name:
            return class_shape(node, module, path)
        if isinstance(node, ast.FunctionDef) and node.name == name:
            raise ValueError(f"{path}._target_ is {target}, a function; only classes are built")
        if isinstance(node, ast.ImportFrom) and not node.level:
            for alias in node.names:
                if name == (alias.asname or alias.name):
                    return shape_of(f"{node.module}.{alias.name}", path)
    raise ValueError(f"{path}._target_ is {target}, but {module} has no {name}; check the spelling")


def class_shape(node: ast.ClassDef, module: str, path: str) -> Shape:
    """The shape of a TypedDict, else of `__init__`: its own or the first base's in the same module.

    An `__init__` that takes a config takes that dataclass's fields.
    """
    if is_typed_dict(node):
        fields = [line for line in node.body if isinstance(line, ast.AnnAssign)]
        keys = {name_of(line.target): line.annotation for line in fields}
        optional = {key for key, annotation in keys.items() if name_of(annotation) == "NotRequired"}
        return Shape(module, dict(keys), set(keys) - optional)
    derived = DERIVED.get(f"{module}.{node.name}", set())
    for line in node.body:
        if isinstance(line, ast.FunctionDef) and line.name == "__init__":
            config = config_class(line, module)
            return fields_shape(config, module, derived) if config else function_shape(line, module, derived)
    bases = [base.id for base in node.bases if isinstance(base, ast.Name)]
    return shape_of(f"{module}.{bases[0]}", path) if bases else Shape(module)


def config_class(init: ast.FunctionDef, module: str) -> ast.ClassDef | None:
    """Return the class of the argument in `__init__(self, config: …)`; None for any other signature."""
    argument = init.args.args[-1]
    classes = [node for node in syntax_tree(module).body if isinstance(node, ast.ClassDef)]
    found = [
        node for node in classes if argument.arg == "config" and node.name == name_of(argument.annotation)
    ]
    return found[0] if found else None


def fields_shape(node: ast.ClassDef, module: str, derived: Iterable[str]) -> Shape:
    """Return the fields of a dataclass, those without default required."""
    fields = [line for line in node.body if isinstance(line, ast.AnnAssign)]
    keys = {name_of(line.target): line.annotation for line in fields if name_of(line.target) not in derived}
    required = {name_of(line.target) for line in fields if line.value is None} - set(derived)
    return Shape(module, dict(keys), required)


def function_shape(node: ast.FunctionDef, module: str, derived: Iterable[str] = ()) -> Shape:
    arguments = node.args
    named = [one for one in (*arguments.args, *arguments.kwonlyargs) if one.arg not in {"self", *derived}]
    defaults = zip(arguments.kwonlyargs, arguments.kw_defaults, strict=True)
    required = {one.arg for one, default in defaults if default is None and one.arg not in derived}
    return Shape(module, {one.arg: one.annotation for one in named}, required, arguments.kwarg is not None)


@functools.cache
def syntax_tree(module: str, path: str = "") -> ast.Module:
    """The parsed source of a module, found without importing it or its packages."""
    first, *rest = module.split(".")
    spec = importlib.util.find_spec(first)
    if spec is not None and spec.origin:
        place = Path(spec.origin).parent.joinpath(*rest)
        for file in (place.with_suffix(".py"), place / "__init__.py"):
            if file.exists():
                return ast.parse(file.read_text(encoding="utf-8"))
    raise ValueError(f"{path}._target_ names {module}, which does not exist; check the spelling")
