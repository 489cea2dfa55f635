"""The walls of the design: which rooms a room may import, and which of the heavy libraries."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parent.parent
WATCHED = {
    "torch",
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
ROOMS = {
    "machine",
    "config",
    "planning",
    "tokenizer",
    "tasks",
    "kernels",
    "model",
    "optim",
    "inference",
    "data",
    "evaluation",
    "phases",
    "callbacks",
    "chat",
    "report",
    "jobs",
}
# room: what of nanolit it may import
OURS: dict[str, set[str]] = {
    "machine": set(),
    "config": {"machine.paths"},
    "planning": {"config", "machine.paths", "model.accounting", "optim.scaling"},
    "tokenizer": {"machine.paths"},
    "tasks": {"machine.paths"},
    "kernels": {"machine.device"},
    "model": {"kernels", "machine"},
    "optim": {"kernels", "machine.device"},
    "inference": {"model", "tokenizer", "machine"},
    "data": {"tokenizer", "tasks", "machine"},
    "evaluation": {"inference", "model", "tokenizer", "tasks", "machine"},
    "phases": {"model", "optim", "inference", "tokenizer", "tasks", "data", "machine"},
    "callbacks": {
        "evaluation",
        "inference",
        "model",
        "tokenizer",
        "tasks",
        "report",
        "machine",
        "phases",
        "optim",
    },
    "chat": {"inference", "tokenizer", "model.release", "machine"},
    "report": {"machine"},
    # Two more than in the design: execute.py ends a run with its report, worker.py gives rl an engine.
    "jobs": {
        "config",
        "planning",
        "phases",
        "callbacks",
        "data",
        "model",
        "tokenizer",
        "tasks",
        "machine",
        "report",
        "inference",
    },
}
# room, or file of a room: which of the watched libraries it may import
THEIRS: dict[str, set[str]] = {
    "machine": set(),
    "machine.device": {"torch"},
    "config": set(),
    "planning": set(),
    "config.compose": {"hydra", "omegaconf"},
    "tokenizer": set(),
    "tasks": {"datasets"},
    "kernels": {"torch"},
    "model": {"torch"},
    "optim": {"torch"},
    "inference": {"torch"},
    "data": {"torch", "lightning", "datasets"},
    "evaluation": {"torch", "transformers"},
    "phases": {"torch", "lightning"},
    "callbacks": {"torch", "lightning"},
    "chat": {"torch"},
    "chat.web": {"torch", "gradio", "fastapi"},
    "chat.api": {"torch", "gradio", "fastapi"},
    "report": set(),
    "jobs": set(),
    "jobs.worker": {"torch", "lightning"},
    "jobs.parts": {"torch", "lightning"},
    "jobs.ranks": {"torch"},
    "jobs.trial": {"torch"},
    "train": {"hydra", "omegaconf"},
    "plan": {"hydra", "omegaconf"},
    "launch": {"modal", "hydra", "omegaconf"},
}
DOOR = {"torch", "lightning"}  # what any other door may import
INSIDE_FUNCTIONS = {("tasks", "datasets"), ("evaluation", "transformers")}


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


def faults_of(module: str, tree: ast.Module) -> list[str]:
    """What a module imports and may not; `module` is dotted and without `nanolit.`, or `launch`.

    A room's `__main__` is a door.
    """
    room = "a door" if module.endswith(".__main__") else module.split(".")[0]
    faults = []
    for name, at_module_level in imports(tree):
        first, *rest = name.split(".")
        if name.startswith("nanolit._rustbpe"):
            continue  # the compiled half of the tokenizer's room, and of data's
        if first == "nanolit" and room in ROOMS:
            target = ".".join(rest)
            allowed = {room, *OURS[room]}
            if not any(target == one or target.startswith(f"{one}.") for one in allowed):
                faults.append(f"{module} imports nanolit.{target}; it may import {sorted(allowed)}")
        elif first == "benchmarks" and module != "benchmarks":
            faults.append(f"{module} imports benchmarks")
        elif first in WATCHED:
            allowed = THEIRS.get(module, THEIRS.get(room, DOOR))
            if first not in allowed:
                faults.append(f"{module} imports {first}; it may import {sorted(allowed)}")
            elif at_module_level and (room, first) in INSIDE_FUNCTIONS:
                faults.append(f"{module} imports {first} at module level; do it inside a function")
    return faults


def sources() -> list[tuple[str, Path]]:
    """Every module of the product: ("model.gpt", path)."""
    package = REPOSITORY / "nanolit"
    ours = [(path, path.relative_to(package).with_suffix("").parts) for path in package.rglob("*.py")]
    modules = [(".".join(parts), path) for path, parts in ours if parts != ("__init__",)]
    others = [(name, path) for name in ("launch", "benchmarks") for path in (REPOSITORY / name).rglob("*.py")]
    return sorted(modules) + others


@pytest.mark.parametrize(("module", "path"), sources(), ids=lambda value: str(value).split("/")[-1])
def test_no_module_imports_through_a_wall(module, path):
    assert faults_of(module, ast.parse(path.read_text(encoding="utf-8"))) == []


def test_every_folder_of_the_package_is_a_room_with_walls():
    folders = {path.parent.name for path in (REPOSITORY / "nanolit").glob("*/__init__.py")}
    assert folders <= ROOMS == set(OURS)


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("tokenizer.bpe", "import torch"),
        ("optim.groups", "from nanolit.model import gpt"),
        ("optim.groups", "from nanolit.machine.paths import home"),
        ("tasks.arc", "import datasets"),
        ("jobs.execute", "from omegaconf import OmegaConf"),
        ("phases.base", "from nanolit.callbacks.evaluate import Evaluate"),
        ("chat.terminal", "def page():\n    import gradio"),
        ("model.gpt", "import lightning as L"),
        ("evaluate", "import hydra"),
    ],
)
def test_the_walls_stop_a_forbidden_import(module, source):
    assert faults_of(module, ast.parse(source))


def test_package_inits_hold_only_a_docstring():
    for path in (REPOSITORY / "nanolit").glob("*/__init__.py"):
        body = ast.parse(path.read_text(encoding="utf-8")).body
        assert len(body) == 1, path
        assert isinstance(body[0], ast.Expr), path


def torch_free_modules() -> list[str]:
    rooms = [
        path
        for room in ("config", "planning", "tokenizer", "tasks")
        for path in (REPOSITORY / "nanolit" / room).glob("*.py")
    ]
    names = [".".join(path.relative_to(REPOSITORY).with_suffix("").parts) for path in sorted(rooms)]
    pure = (
        "plan",
        "train",
        "model.accounting",
        "optim.scaling",
        "jobs.execute",
        "jobs.sweep",
    )
    return [name.removesuffix(".__init__") for name in names] + [f"nanolit.{name}" for name in pure]


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
