"""The reading lists of CONTRIBUTING.md and docs/layout.md against a trace of the step they describe."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from nanolit.machine.paths import PACKAGE

ROOT = PACKAGE.parent
SCRIPT = ROOT / "dev" / "trace_step.py"


@pytest.fixture(scope="module")
def traced_files() -> list[str]:
    """The files of the traced step and its data threads, in the order that the script prints."""
    output = subprocess.run([sys.executable, SCRIPT], capture_output=True, text=True, timeout=300)
    assert output.returncode == 0, output.stderr
    return listed_files(output.stdout.split("Reading list:")[1])


def listed_files(text: str) -> list[str]:
    return re.findall(r"`(?:nanolit/)?(\w+/\w+\.py)`", text)


def between_markers(document: Path) -> str:
    text = document.read_text()
    return text.split("<!-- reading list:")[1].split("<!-- end of the reading list")[0]


def test_every_file_that_contributing_names_exists():
    named = re.findall(
        r"`((?:nanolit|launch|conf|tests|dev)/[\w/]+\.\w+)`", (ROOT / "CONTRIBUTING.md").read_text()
    )
    assert len(named) > 20
    assert [name for name in named if not (ROOT / name).exists()] == []


@pytest.mark.slow
def test_the_reading_list_of_contributing_is_what_a_step_runs_through(traced_files: list[str]):
    """Oracle: sys.settrace. Remedy: `python dev/trace_step.py write`."""
    assert listed_files(between_markers(ROOT / "CONTRIBUTING.md")) == traced_files


@pytest.mark.slow
def test_the_reading_list_of_the_layout_is_the_step_without_its_data_threads(traced_files: list[str]):
    """Oracle: sys.settrace, whose data threads come last. Remedy: `python dev/trace_step.py write`."""
    listed = listed_files(between_markers(ROOT / "docs" / "layout.md"))
    assert listed == traced_files[: len(listed)]
    assert not any(name.startswith("data/") for name in listed)
    assert all(name.startswith(("data/", "tokenizer/")) for name in traced_files[len(listed) :])
