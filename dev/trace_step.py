"""Trace one optimizer step and list the code that a newcomer has to read: `python dev/trace_step.py [write]`.

Runs `nanolit.train` on the sample with a tiny eager model on the CPU and records every function of the
repository that is entered between the command and the first finished step. All lines of such a function
count; "comments" counts those that are only comments. "Changes of file" counts how often the next function,
in the order of first calls, is in another file. `write` puts the list into CONTRIBUTING.md and
docs/layout.md. To trace another commit, check it out elsewhere and put that folder first on PYTHONPATH.
"""

import ast
import contextlib
import functools
import importlib.util
import io
import os
import re
import runpy
import subprocess
import sys
import tempfile
import threading
import tokenize
from collections import Counter
from itertools import pairwise
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

os.environ.setdefault("CUDA_VISIBLE_DEVICES", "")  # the plain twins are what a newcomer reads first
SPEC = importlib.util.find_spec("nanolit")
assert SPEC is not None
assert SPEC.origin is not None
ROOT = Path(SPEC.origin).parents[1]
SOURCES = tuple(f"{ROOT / folder}{os.sep}" for folder in ("nanolit", "launch"))
PLANNING = "nanolit/planning/"
BEGIN, END = "<!-- reading list: python dev/trace_step.py write -->", "<!-- end of the reading list -->"
WORDS = [
    *("data=sample", "model=d2", "recipe.vocab_size=1024", "model.context=64", "total_batch=1024"),
    *("micro_batch=8", "max_steps=1", "stage.base.eval_tokens=1024", "compile=false", "run=t"),
]


class Trace:
    """The functions entered, each with its number of calls, in the order of their first calls."""

    def __init__(self) -> None:
        self.main: Counter[CodeType] = Counter()
        self.step: Counter[CodeType] = Counter()
        self.threads: Counter[CodeType] = Counter()
        self.main_thread = threading.get_ident()
        self.in_step = self.finished = False

    def on_call(self, frame: FrameType, event: str, _argument: Any) -> Any:
        """Count one call. Returns a local tracer only for `optimizer_step`, to see it return."""
        code = frame.f_code
        if event != "call" or self.finished or not code.co_filename.startswith(SOURCES):
            return None
        if threading.get_ident() != self.main_thread:
            self.threads[code] += 1
            return None
        if code.co_qualname == "Throughput.on_train_batch_end":
            self.finished = True
            return None
        self.main[code] += 1
        begins = code.co_name == "optimizer_step"
        self.in_step |= begins
        if self.in_step:
            self.step[code] += 1
        return self.until_return if begins else None

    def until_return(self, _frame: FrameType, event: str, _argument: Any) -> Any:
        if event == "return":
            self.in_step = False
        return self.until_return


def trace(root: str) -> Trace:
    """Run the command in this process with every call recorded; SystemExit with its output if it fails."""
    words = ["phase=base", f"root={root}", *WORDS]
    found, output = Trace(), io.StringIO()
    sys.argv = ["nanolit.train", *words]
    threading.settrace(found.on_call)
    sys.settrace(found.on_call)
    try:
        with contextlib.redirect_stdout(output), contextlib.redirect_stderr(output):
            runpy.run_module("nanolit.train", run_name="__main__", alter_sys=True)
    except SystemExit as ended:
        if ended.code:
            sys.exit(f"{' '.join(sys.argv)} failed with {ended.code}:\n{output.getvalue()}")
    finally:
        sys.settrace(None)
        threading.settrace(None)  # type: ignore[arg-type]
    assert found.finished, output.getvalue()
    return found


def make_tokenizer(root: str) -> None:
    """Train the sample's tokenizer first: it is another stage, and not a part of the step."""
    command = [sys.executable, "-m", "nanolit.train", "phase=tokenizer", f"root={root}", *WORDS[:-1]]
    subprocess.run(command, check=True, capture_output=True)


@functools.cache
def spans(path: str) -> dict[int, range]:
    """Return the lines of every function in a file, decorators included, by the first of them."""
    found = {}
    for node in ast.walk(ast.parse(Path(path).read_text())):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            first = min([node.lineno, *(decorator.lineno for decorator in node.decorator_list)])
            assert node.end_lineno
            found[first] = range(first, node.end_lineno + 1)
    return found


@functools.cache
def comment_lines(path: str) -> set[int]:
    """Return the lines of a file that are only comments."""
    lines = Path(path).read_text().splitlines()
    return {number for number, line in enumerate(lines, 1) if line.lstrip().startswith("#")}


def name_of(path: str) -> str:
    return Path(path).relative_to(ROOT).as_posix()


class Leg:
    """Part of a trace in figures. Module bodies, classes, lambdas and comprehensions don't count."""

    def __init__(self, calls: Counter[CodeType]) -> None:
        self.calls = {code: n for code, n in calls.items() if code.co_firstlineno in spans(code.co_filename)}
        lines = {
            (code.co_filename, line)
            for code in self.calls
            for line in spans(code.co_filename)[code.co_firstlineno]
        }
        self.num_lines = len(lines)  # a nested function's lines count once
        self.num_comments = sum(line in comment_lines(path) for path, line in lines)
        by_file = Counter(name_of(path) for path, _ in lines)
        self.files = {name: by_file[name] for name in map(name_of, (c.co_filename for c in self.calls))}
        paths = [code.co_filename for code in self.calls]
        self.hops = sum(a != b for a, b in pairwise(paths))

    def row(self, title: str) -> str:
        counts = f"{len(self.calls):>10}{len(self.files):>7}{self.num_lines:>7,}{self.num_comments:>10}"
        return f"{title:<42}{counts}{self.hops:>17}"


def first_sentence(name: str) -> str:
    docstring = ast.get_docstring(ast.parse((ROOT / name).read_text())) or ""
    return re.split(r"\.(?:\s|$)", " ".join(docstring.split()), maxsplit=1)[0]


def reading_list(files: dict[str, int], *, start: int = 1) -> str:
    """Return a numbered list of files, with the lines in functions that run, to the nearest ten."""
    rows = []
    for number, (name, lines) in enumerate(files.items(), start):
        about = max(10, round(lines, -1))
        rows.append(f"{number}. `{name}` ({about} lines): {first_sentence(name)}.")
    return "\n".join(rows)


def num_comments(name: str) -> int:
    """Return the number of lines with a comment."""
    with (ROOT / name).open("rb") as file:
        return sum(token.type == tokenize.COMMENT for token in tokenize.tokenize(file.readline))


def print_comments(names: list[str]) -> None:
    sizes = {name: (num_comments(name), len((ROOT / name).read_text().splitlines())) for name in names}
    total, lines = (sum(counts) for counts in zip(*sizes.values(), strict=True))
    print(f"\nComment lines per 100 lines: {100 * total / lines:.1f} ({total} of {lines:,})")
    for name, (comments, size) in sizes.items():
        print(f"{100 * comments / size:>6.1f}  {name} ({comments} of {size})")


def sections(step: Leg, threads: Leg) -> dict[str, str]:
    """Return the text between the markers of each document."""
    data = {name: lines for name, lines in threads.files.items() if name not in step.files}
    full = (
        f"The step itself, in the order in which it runs:\n\n{reading_list(step.files)}\n\n"
        "The threads that make its batch ahead of time:\n\n"
        f"{reading_list(data, start=len(step.files) + 1)}"
    )
    short = ", ".join(f"`{name.removeprefix('nanolit/')}`" for name in step.files)
    return {"CONTRIBUTING.md": full, "docs/layout.md": short}


def write(texts: dict[str, str]) -> None:
    """Replace the text between the markers of each document."""
    for document, text in texts.items():
        path = ROOT / document
        before, rest = path.read_text().split(BEGIN)
        path.write_text(f"{before}{BEGIN}\n{text}\n{END}{rest.split(END, 1)[1]}")


def main() -> None:
    if sys.argv[1:] not in ([], ["write"]):
        sys.exit("usage: python dev/trace_step.py [write]")
    should_write = sys.argv[1:] == ["write"]
    with tempfile.TemporaryDirectory() as root:
        make_tokenizer(root)
        traced = trace(root)
    everything, step, threads = Leg(traced.main), Leg(traced.step), Leg(traced.threads)
    besides = Leg(Counter({code: n for code, n in traced.threads.items() if code not in traced.main}))
    print(f"{'':<42}{'functions':>10}{'files':>7}{'lines':>7}{'comments':>10}{'changes of file':>17}")
    print(everything.row("from command to updated weights, main thread"))
    print(step.row("the step itself (included above)"))
    print(besides.row("data threads (in addition)"))
    print("\nPlanning functions by calls:")
    for code, count in sorted(everything.calls.items(), key=lambda item: -item[1]):
        if name_of(code.co_filename).startswith(PLANNING):
            print(f"{count:>6}  {name_of(code.co_filename)}:{code.co_qualname}")
    print_comments(list(step.files | threads.files))
    texts = sections(step, threads)
    print(f"\nReading list:\n\n{texts['CONTRIBUTING.md']}")
    if should_write:
        write(texts)


if __name__ == "__main__":
    main()
