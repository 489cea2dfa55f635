"""The import rules: which packages a package may import, and which of the heavy libraries.

They hold in one direction, without a circle, and nothing is allowed that nobody uses.
"""

import ast
import graphlib
import re
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parent.parent
HEAVY = {
    "torch",
    "triton",
    "lightning",
    "pytorch_lightning",
    "hydra",
    "omegaconf",
    "wandb",
    "gradio",
    "fastapi",
    "modal",
    "transformers",
    "datasets",
}
# Package: the packages, or modules of a package, that it may import, from the bottom to the top. Commands
# (top-level modules, `__main__` of a package), benchmarks, dev and launch may import all of nanolit.
PACKAGES: dict[str, set[str]] = {
    "machine": set(),
    "config": {"machine.paths", "machine.system"},
    "tokenizer": {"machine.paths", "machine.system"},
    "tasks": {"machine.paths"},
    "kernels": {"machine.device"},
    "model": {"kernels", "machine"},
    "optim": {"kernels", "machine.device"},
    "planning": {
        "config",
        "model.accounting",
        "optim.scaling",
        "machine.numbers",
        "machine.paths",
        "machine.terminal",
    },
    "data": {"tokenizer", "tasks", "machine"},
    "inference": {"kernels", "model", "tokenizer", "machine.device"},
    "evaluation": {"inference", "kernels", "model", "tokenizer", "tasks", "machine"},
    "phases": {
        "config",
        "data",
        "evaluation",
        "inference",
        "model",
        "optim",
        "planning",
        "tokenizer",
        "tasks",
        "machine",
    },
    "callbacks": {
        "evaluation",
        "inference",
        "model.release",
        "optim",
        "phases",
        "tokenizer",
        "tasks",
        "machine",
    },
    "report": {
        "config.compose",
        "config.names",
        "config.schema",
        "config.stored",
        "evaluation.scores",
        "planning.plans",
        "tasks.bundle",
        "machine",
    },
    "chat": {"inference", "model", "tokenizer", "machine"},
    "jobs": {
        "callbacks",
        "config",
        "data",
        "evaluation",
        "inference",
        "model",
        "phases",
        "planning",
        "report",  # a run ends with its report
        "tokenizer",
        "tasks",
        "machine",
    },
}
# Package or module: which heavy libraries it may import; a module that is named is judged by its own line.
LIBRARIES: dict[str, set[str]] = {
    "machine.device": {"torch"},
    "config.compose": {"omegaconf"},
    "config.explain": {"hydra", "omegaconf"},
    "config.words": {"hydra", "omegaconf"},
    "tasks": {"datasets"},
    "kernels": {"torch", "triton"},
    "model": {"torch"},
    "optim": {"torch"},
    "data": {"torch"},
    "data.formats": {"datasets"},
    "inference": {"torch"},
    "evaluation": {"torch"},
    "evaluation.scores": set(),
    "evaluation.foreign": {"torch", "transformers"},
    "phases": {"torch", "lightning"},
    "callbacks": {"torch", "lightning"},
    "chat.web": {"gradio", "fastapi"},
    "chat.api": {"fastapi"},
    "chat.server": {"fastapi"},
    "jobs.worker": {"torch", "lightning"},
    "jobs.parts": {"torch"},
    "jobs.watch": {"torch", "lightning"},
    "jobs.ending": {"lightning"},
    "jobs.trial": {"torch"},
    "__init__": {"torch"},  # for type checkers
    "language_model": {"torch"},
    "train": {"hydra", "omegaconf"},
    "launch": {"modal", "hydra", "omegaconf", "torch"},  # torch: the drill's try of a GPU
    "benchmarks": {"torch", "lightning"},
    "doctor": {"torch"},  # where there is a GPU
    "dev": {"torch"},
}
INSIDE_FUNCTIONS = {"datasets", "transformers"}
OUTSIDE = ("benchmarks", "dev", "launch")  # beside nanolit/, which imports none of them, as dev does …
DEPLOYS = "chat.__main__"  # … but for the command that deploys
WITHOUT_TORCH = ("config", "planning", "tokenizer", "tasks")
MORE_WITHOUT_TORCH = ("plan", "train", "model.accounting", "optim.scaling", "jobs.execute", "jobs.sweep")

Imported = list[tuple[str, bool]]


def imports(tree: ast.Module) -> Iterator[tuple[str, bool]]:
    """(dotted name, whether at module level) of every absolute import; `from a import b` counts as a.b."""
    inside = {id(node) for function in ast.walk(tree) if is_function(function) for node in ast.walk(function)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield alias.name, id(node) not in inside
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, "imports are absolute"
            for alias in node.names:
                yield f"{node.module}.{alias.name}", id(node) not in inside


def is_function(node: ast.AST) -> bool:
    return isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))


def within(name: str, permission: str) -> bool:
    return name == permission or name.startswith(f"{permission}.")


def package_of(module: str) -> str:
    """The package whose line holds for a module; "" for a command and for what lies beside nanolit/."""
    package = module.split(".")[0]
    return package if package in PACKAGES and not module.endswith(".__main__") else ""


def libraries_of(module: str) -> set[str]:
    return LIBRARIES.get(module, LIBRARIES.get(module.split(".")[0], set()))


def faults_of(module: str, imported: Imported) -> list[str]:
    """What a module imports and may not; `module` is dotted and without `nanolit.`, or `launch`."""
    package = package_of(module)
    faults = []
    for name, at_module_level in imported:
        first, _, target = name.partition(".")
        if name.startswith("nanolit._rustbpe"):
            continue  # the compiled half of the tokenizer, and of packing
        if first == "nanolit" and package:
            allowed = {package, *PACKAGES[package]}
            if not any(within(target, permission) for permission in allowed):
                faults.append(f"{module} imports {name}; it may import {sorted(allowed)}")
        elif first in OUTSIDE and module not in (first, "dev") and (first, module) != ("launch", DEPLOYS):
            faults.append(f"{module} imports {name}, which lies outside the package")
        elif first in HEAVY:
            allowed = libraries_of(module)
            if first not in allowed:
                faults.append(
                    f"{module} imports {first}; of the heavy libraries it may import {sorted(allowed)}"
                )
            elif at_module_level and first in INSIDE_FUNCTIONS:
                faults.append(f"{module} imports {first} at module level; do it inside a function")
    return faults


def sources() -> dict[str, list[Path]]:
    """The files of every module of the product: "model.gpt"; "launch" and its like count as one module."""
    root = REPOSITORY / "nanolit"
    found = {".".join(path.relative_to(root).with_suffix("").parts): [path] for path in root.rglob("*.py")}
    return dict(sorted(found.items())) | {name: sorted((REPOSITORY / name).rglob("*.py")) for name in OUTSIDE}


def read_imports() -> dict[str, Imported]:
    """What every module imports, by module."""
    return {
        module: [pair for path in paths for pair in imports(ast.parse(path.read_text(encoding="utf-8")))]
        for module, paths in sources().items()
    }


IMPORTED = read_imports()


def unused_permissions(imported: Mapping[str, Imported]) -> list[str]:
    """The permissions of both tables that no module makes use of."""
    unused = []
    for package, permissions in PACKAGES.items():
        names = {
            name.removeprefix("nanolit.")
            for module, pairs in imported.items()
            if package_of(module) == package
            for name, _ in pairs
            if name.startswith("nanolit.")
        }
        idle = {one for one in permissions if not any(within(name, one) for name in names)}
        unused += [f"{package} may import {one}" for one in sorted(idle)]
    for key, permissions in LIBRARIES.items():
        judged = [
            module
            for module in imported
            if module == key or (within(module, key) and module not in LIBRARIES)
        ]
        names = {name.split(".")[0] for module in judged for name, _ in imported[module]}
        unused += [f"{key} may import {one}" for one in sorted(permissions - names)]
    return unused


def circle_in(package: str, imported: Mapping[str, Imported]) -> list[str]:
    """The modules of one circle inside a package; imports inside functions count too."""
    modules = [module for module in imported if within(module, package)]
    graph = {
        module: {
            other
            for name, _ in imported[module]
            for other in modules
            if other != module and within(name, f"nanolit.{other}")
        }
        for module in modules
    }
    try:
        graphlib.TopologicalSorter(graph).prepare()
    except graphlib.CycleError as error:
        return error.args[1]
    return []


def parsed(source: str) -> Imported:
    return list(imports(ast.parse(source)))


@pytest.mark.parametrize("module", IMPORTED)
def test_every_module_keeps_the_import_rules(module):
    assert faults_of(module, IMPORTED[module]) == []


def test_every_folder_of_the_package_has_its_line():
    folders = {path.parent.name for path in (REPOSITORY / "nanolit").glob("*/__init__.py")}
    assert folders == set(PACKAGES)


def test_the_packages_import_in_one_direction():
    graph = {package: {one.split(".")[0] for one in allowed} for package, allowed in PACKAGES.items()}
    assert set(graphlib.TopologicalSorter(graph).static_order()) == set(PACKAGES)


@pytest.mark.parametrize("package", PACKAGES)
def test_no_modules_of_a_package_import_each_other_in_a_circle(package):
    assert circle_in(package, IMPORTED) == []


def test_nothing_is_allowed_that_nobody_uses():
    assert unused_permissions(IMPORTED) == []


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("tokenizer.bpe", "import torch"),
        ("optim.shares", "from nanolit.model import gpt"),
        ("optim.shares", "from nanolit.machine.paths import home"),
        ("kernels.loss", "from nanolit.model.gpt import GPT"),
        ("planning.plans", "from nanolit.jobs.execute import run"),
        ("tasks.arc", "import datasets"),
        ("jobs.execute", "from omegaconf import OmegaConf"),
        ("phases.base", "from nanolit.callbacks.evaluate import Evaluate"),
        ("chat.terminal", "def page():\n    import gradio"),
        ("model.gpt", "import lightning as L"),
        ("evaluate", "import hydra"),
        ("jobs.execute", "from benchmarks import results"),
    ],
)
def test_a_forbidden_import_is_found(module, source):
    assert faults_of(module, parsed(source))


def test_a_circle_is_found_through_an_import_inside_a_function():
    there = parsed("def attend():\n    from nanolit.kernels import attention_cudnn")
    back = parsed("from nanolit.kernels.attention import NO_WINDOW")
    imported = {"kernels.attention": there, "kernels.attention_cudnn": back}
    assert set(circle_in("kernels", imported)) == set(imported)


def test_a_permission_that_nobody_uses_is_found():
    unused = unused_permissions({**IMPORTED, "model.block": [], "model.gpt": [], "chat.web": []})
    assert unused == [
        "model may import kernels",
        "chat.web may import fastapi",
        "chat.web may import gradio",
    ]


def test_package_inits_hold_only_a_docstring():
    for package in PACKAGES:
        body = ast.parse((REPOSITORY / "nanolit" / package / "__init__.py").read_text(encoding="utf-8")).body
        assert len(body) == 1, package
        assert isinstance(body[0], ast.Expr), package


@pytest.mark.parametrize("package", PACKAGES)
def test_a_packages_docstring_names_what_it_may_import(package):
    """Oracle: the table."""
    docstring = ast.get_docstring(ast.parse((REPOSITORY / "nanolit" / package / "__init__.py").read_text()))
    (promise,) = re.findall(r"\bMay import ([^;]*);", docstring or "")
    named = {name for name in re.findall(r"[a-z_]+(?:\.[a-z_]+)*", promise) if name.split(".")[0] in PACKAGES}
    assert named == PACKAGES[package]


def torch_free_modules() -> list[str]:
    names = [module for module in sources() if module.split(".")[0] in WITHOUT_TORCH]
    return [f"nanolit.{name.removesuffix('.__init__')}" for name in (*names, *MORE_WITHOUT_TORCH)]


def test_pure_modules_leave_torch_and_lightning_out():
    """In a process of its own: this one has torch already."""
    code = (
        "import importlib, sys\n"
        f"for name in {torch_free_modules()!r}:\n"
        "    importlib.import_module(name)\n"
        "    heavy = {'torch', 'lightning', 'datasets', 'gradio'} & set(sys.modules)\n"
        "    assert not heavy, (name, heavy)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
