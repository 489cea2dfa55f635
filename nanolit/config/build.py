"""A `_target_` node to the object it names, and to the arguments that its class takes, read from the source.

Importing the class would import torch: a typo on the command line would take seconds to answer. So `ast`
reads the arguments, as a TypedDict. Only nanolit's and Lightning's own classes are ever built.
"""

import ast
import functools
import importlib
import importlib.util
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple, NotRequired, Optional, Union

from typing_extensions import TypedDict

from nanolit.config.schema import Target

# What configurations choose: other classes of ours write files where they are told to
ALLOWED = (
    "nanolit.data.",
    "nanolit.model.",
    "nanolit.optim.",
    "nanolit.tasks.",
    "lightning.pytorch.loggers.",
)
# Keyword-only arguments that the program derives and passes itself.
DERIVED = {"nanolit.model.gpt.GPT": {"depth", "width", "heads", "kv_heads", "vocab_size", "context"}}
Annotation = Any  # int, list[str], float | None: typing has no name for what stands in a signature
NAMES: dict[str, Annotation] = {
    **{kind.__name__: kind for kind in (int, float, str, bool, list, dict)},
    **{"Path": str, "Mapping": dict, "Sequence": Sequence, "Iterable": Iterable},
    **{"Literal": Literal, "Optional": Optional, "Union": Union},
}


typed_dict: Any = TypedDict  # called with fields that only the source knows


class Signature(NamedTuple):
    arguments: Annotation  # a TypedDict
    takes_others: bool  # it has **kwargs


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
    """The arguments of the class with this dotted name; `path` is the key that names it, for messages.

    Required are keyword-only arguments without default; positional ones are the program's to give.
    """
    module, _, name = target.rpartition(".")
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
    """The signature of `__init__`: the class's own, else that of its first base in the same module.

    That of a dataclass are its fields; `__init__(self, config: GPTConfig)` takes the fields of that one.
    """
    derived = DERIVED.get(f"{module}.{node.name}", set())
    if any(ast.unparse(decorator).startswith("dataclass") for decorator in node.decorator_list):
        return signature_of_dataclass(node, module, derived=derived)
    for line in node.body:
        if isinstance(line, ast.FunctionDef) and line.name == "__init__":
            if config := config_of(line, module):
                return signature_of_dataclass(config, module, derived=derived)
            return signature_of_function(line, module, derived=derived)
    bases = [base.id for base in node.bases if isinstance(base, ast.Name)]
    if bases:
        return signature_of(f"{module}.{bases[0]}", path)
    return Signature(typed_dict(node.name, {}), takes_others=False)


def config_of(init: ast.FunctionDef, module: str) -> ast.ClassDef | None:
    """The class of `config` in `__init__(self, config: …)`; None for any other signature."""
    argument = init.args.args[-1]
    if argument.arg != "config" or not isinstance(argument.annotation, ast.Name):
        return None
    classes = [node for node in syntax_tree(module).body if isinstance(node, ast.ClassDef)]
    return next((node for node in classes if node.name == argument.annotation.id), None)


def signature_of_dataclass(node: ast.ClassDef, module: str, *, derived: set[str]) -> Signature:
    fields = {}
    for line in node.body:
        if isinstance(line, ast.AnnAssign) and (name := ast.unparse(line.target)) not in derived:
            kind = type_of(line.annotation, module)
            fields[name] = kind if line.value is None else NotRequired[kind]
    return Signature(typed_dict(node.name, fields), takes_others=False)


def signature_of_function(node: ast.FunctionDef, module: str, *, derived: set[str]) -> Signature:
    arguments = node.args
    defaults = zip(arguments.kwonlyargs, arguments.kw_defaults, strict=True)
    required = {argument.arg for argument, default in defaults if default is None}
    fields = {}
    for argument in (*arguments.args, *arguments.kwonlyargs):
        if argument.arg not in {"self", *derived}:
            kind = type_of(argument.annotation, module)
            fields[argument.arg] = kind if argument.arg in required else NotRequired[kind]
    return Signature(typed_dict(node.name, fields), takes_others=arguments.kwarg is not None)


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
