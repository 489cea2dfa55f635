"""Check a `_target_` node against the class that it names, and build it.

Importing the class would import torch, and a typo on the command line would take seconds to answer. So `ast`
reads from the source which arguments it takes. Only nanolit's and Lightning's own classes are ever built.
"""

import ast
import functools
import importlib
import importlib.util
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple, NotRequired, Optional, Union

from typing_extensions import TypedDict

from nanolit.config.check import Annotation, check_mapping, joined
from nanolit.config.schema import Target

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


class Signature(NamedTuple):
    arguments: Annotation  # a TypedDict
    takes_others: bool  # it has **kwargs


def check_targets(node: object, *, path: str) -> None:
    """Check every `_target_` in a job, however deep, against the signature of what it names."""
    if isinstance(node, Mapping):
        if "_target_" in node:
            check_target(node, path=path)
        for key, value in node.items():
            check_targets(value, path=joined(path, key))
    elif isinstance(node, list):
        for index, value in enumerate(node):
            check_targets(value, path=joined(path, index))


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

    Its parts are identifiers: with a slash in one, annotations of any file would be evaluated as our own.
    """
    if (
        not isinstance(target, str)
        or not target.startswith(ALLOWED)
        or not all(map(str.isidentifier, target.split(".")))
    ):
        raise ValueError(f"{path}._target_ is {target!r}; it must begin with {' or '.join(ALLOWED)}")


@functools.cache
def signature_of(target: str, path: str) -> Signature:
    """Return the arguments of the class with this dotted name; `path` is its key, for messages."""
    module, _, name = CONFIGS.get(target, target).rpartition(".")
    for node in syntax_tree(module, path).body:
        if isinstance(node, ast.ClassDef) and node.name == name:
            return signature_of_class(node, module, path)
        if isinstance(node, ast.FunctionDef) and node.name == name:
            raise ValueError(f"{path}._target_ is {target}, a function; only classes are built")
        if isinstance(node, ast.ImportFrom) and not node.level:
            for alias in node.names:
                if name == (alias.asname or alias.name):
                    refuse_foreign_target(f"{node.module}.{alias.name}", path)
                    return signature_of(f"{node.module}.{alias.name}", path)
    raise ValueError(f"{path}._target_ is {target}, but {module} has no {name}; check the spelling")


@functools.cache
def syntax_tree(module: str, path: str = "") -> ast.Module:
    """The parsed source of a module, found without importing it or its packages."""
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
    try:  # source of nanolit and Lightning alone (build.ALLOWED), with no name but those of NAMES
        kind = eval(ast.unparse(annotation), {"__builtins__": {}}, Names(module))
    except (TypeError, AttributeError):  # Tensor["B T"], torch.dtype: names that we do not follow
        return Any
    return Any if isinstance(kind, str) or "ForwardRef" in repr(kind) else kind


class Names(dict[str, Annotation]):
    """The meaning of a name in a module's annotations: a plain type, an alias of the module, else Any."""

    def __init__(self, module: str) -> None:
        super().__init__(NAMES)
        self.module = module

    def __missing__(self, name: str) -> Annotation:
        for node in syntax_tree(self.module).body:
            if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == name:
                return type_of(node.value, self.module)
        return Any


def build(node: Target, *args: Any, **kwargs: Any) -> Any:
    """Call the target with the node's other keys; `args` and `kwargs` are what the program adds."""
    if "_target_" not in node:
        raise ValueError(f"a mapping of {', '.join(map(str, node))} has no _target_, the class to build")
    refuse_foreign_target(node["_target_"], "the job")
    module, _, name = node["_target_"].rpartition(".")
    settings = {key: value for key, value in node.items() if key != "_target_"}
    target = getattr(importlib.import_module(module), name)
    if not isinstance(target, type):
        raise ValueError(f"_target_ is {node['_target_']}, which is no class; only classes are built")
    refuse_foreign_target(f"{target.__module__}.{name}", "the job")  # which our module may have imported
    return target(*args, **settings, **kwargs)
