"""`nanolit NAME` and `python -m nanolit.NAME` are the same command, and `nanolit` lists them."""

import subprocess
import sys
from pathlib import Path

import pytest

from nanolit.__main__ import commands, main
from nanolit.machine.arguments import listing

PACKAGE = Path(__file__).resolve().parent.parent / "nanolit"


def run(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", *words], capture_output=True, text=True, check=False)


def test_every_module_that_runs_is_a_command_with_a_line():
    assert {"train", "plan", "chat", "report", "runs", "describe", "convert", "evaluate", "identity"} <= set(
        commands()
    )
    lines = dict(line.split(maxsplit=1) for line in listing(commands()).splitlines())
    assert set(lines) == set(commands())
    assert all(line.endswith(".") for line in lines.values())


def test_the_listing_imports_nothing_heavy():
    """In a process of its own: this one has torch already."""
    code = "import sys; from nanolit.__main__ import main; main([]); print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    modules = set(done.stdout.splitlines()[-1].split())
    assert not modules & {"torch", "hydra", "omegaconf", "lightning", "numpy", "pyarrow"}


def test_an_unknown_command_is_answered_with_the_nearest(capsys):
    assert main(["trian"]) == 2
    assert capsys.readouterr().err.startswith("error: there is no command 'trian'; did you mean train?")
    assert main(["hlep"]) == 2
    assert "did you mean help?" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "first"),
    [
        ("help", "usage: nanolit COMMAND …"),
        ("--version", "nanolit 0."),
        ("help plan", "Estimate a job's parameters"),
    ],
)
def test_help_and_version_are_where_people_look_for_them(words, first):
    done = run("nanolit", *words.split())
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith(first)


def test_a_python_without_the_libraries_says_which_one_has_them(tmp_path):
    """Isolated from the environment's packages, as the system's Python is; the checkout lies beside it."""
    (tmp_path / "nanolit").symlink_to(PACKAGE)
    bare = [getattr(sys, "_base_executable", sys.executable), "-S", "-m"]
    for name in ("nanolit.train", "nanolit.chat", "nanolit.doctor", "nanolit"):
        done = subprocess.run([*bare, name], cwd=tmp_path, capture_output=True, text=True, check=False)
        assert (done.returncode, done.stdout) == (2, "")
        assert done.stderr.startswith("error: ")
        assert done.stderr.endswith("has no torch; run `make setup`, then the same command\n")


@pytest.mark.parametrize("name", ["runs", "report"])
def test_both_ways_to_run_a_command_say_the_same(name, tmp_path):
    words = [f"root={tmp_path}", *(["run=absent"] if name == "report" else [])]
    short, long = run("nanolit", name, *words), run(f"nanolit.{name}", *words)
    assert (short.returncode, short.stdout, short.stderr) == (long.returncode, long.stdout, long.stderr)
    assert (short.returncode, short.stdout == "") in ((0, False), (2, True))


def test_every_command_refuses_in_the_same_form(tmp_path):
    for name in commands():
        done = run("nanolit", name, "model.dpeth=3" if name in ("train", "plan", "describe") else "dpeth=3")
        assert done.returncode == 2, name
        assert done.stderr.startswith("error: "), name
        assert done.stderr.count("\n") == 1, name


@pytest.mark.parametrize("words", [["train", "--cfg", "job"], ["train", "--help"], ["plan", "--help"]])
def test_no_command_minds_a_reader_that_leaves(words):
    command = [sys.executable, "-u", "-m", "nanolit", *words]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout
        assert process.stderr
        process.stdout.close()
        assert process.stderr.read() == ""
    assert process.returncode == 1


def test_hydra_reads_the_words_behind_the_name():
    done = run("nanolit", "train", "--cfg", "job", "model=d4")
    assert done.returncode == 0, done.stderr
    assert "depth: 4" in done.stdout
