"""What is long or dear is asked once, and only of a person at a terminal."""

import io
import os
import pty
import subprocess
import sys
from pathlib import Path

import pytest

from nanolit.config.compose import compose
from nanolit.jobs import sweep as module
from nanolit.jobs.sweep import confirm
from nanolit.machine.paths import stage_folder
from nanolit.planning.plans import plan_jobs

LONG = ["model=d12", "cluster.gpu=cpu"]  # months on two cores
DEAR = ["phase=base", "model=d26", "cluster=modal_8xh100"]


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch):
    """A person at a terminal who types these lines; what was asked is in the list that it gives."""
    asked: list[str] = []

    def typed(*lines: str) -> list[str]:
        answers = iter(lines)

        def answer(question: str) -> str:
            asked.append(question)
            if line := next(answers, None):
                return line
            raise EOFError

        monkeypatch.setattr("builtins.input", answer)
        monkeypatch.setattr(module.sys.stdin, "isatty", lambda: True, raising=False)
        monkeypatch.setattr(module, "at_terminal", lambda: True)
        return asked

    return typed


def planned(root: Path, *overrides: str):
    return plan_jobs([compose([*overrides, f"root={root}"])])


def test_a_person_who_declines_begins_nothing(tmp_path, terminal):
    for answers in ([], ["n"], ["what?"]):
        asked = terminal(*answers)
        with pytest.raises(SystemExit, match="Nothing was started"):
            confirm(planned(tmp_path, *LONG))
    assert len(asked) == 3
    assert (
        "days on this machine; for a tiny model in minutes: python -m nanolit.train experiment=demo"
        in asked[0]
    )


@pytest.mark.parametrize("answer", ["y", "Yes"])
def test_a_person_who_agrees_is_asked_once(tmp_path, terminal, answer):
    asked = terminal(answer)
    confirm(planned(tmp_path, *LONG))
    folder = stage_folder(tmp_path, "d12-modern-s1", "tokenizer")
    folder.mkdir(parents=True)
    (folder / "plan.json").write_text("{}")
    confirm(planned(tmp_path, *LONG))  # which resumes
    assert len(asked) == 1


def test_dollars_are_asked_about_unless_max_cost_allows_them(tmp_path, terminal):
    asked = terminal("y")
    confirm(planned(tmp_path, *DEAR))
    confirm(planned(tmp_path, *DEAR, "max_cost=1000"))
    assert len(asked) == 1
    assert "$" in asked[0]
    assert "cluster=modal_8xh100" in asked[0]


def test_little_things_and_yes_ask_nobody(tmp_path, terminal, capsys):
    asked = terminal()
    confirm(planned(tmp_path, "experiment=demo", "cluster.gpu=cpu"))
    assert capsys.readouterr().out == ""
    confirm(planned(tmp_path, *LONG, "yes=true"))
    assert "days on this machine" in capsys.readouterr().out
    assert asked == []


def test_jobs_of_a_sweep_are_asked_about_together(tmp_path, terminal):
    one = planned(tmp_path, "model=d12", "cluster=modal_h100")
    assert module.warning(one) == ""
    many = [
        one
        for seed in range(1, 9)
        for one in planned(tmp_path, "model=d12", "cluster=modal_h100", f"seed={seed}")
    ]
    assert module.warning(many).startswith("8 jobs take about $")


def test_no_terminal_is_told_and_goes_on(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("sys.stdin", io.StringIO())
    confirm(planned(tmp_path, *LONG))
    assert "days on this machine" in capsys.readouterr().out


def test_the_bare_command_at_a_terminal_shows_the_plan_and_names_the_demo_before_it_fetches(tmp_path):
    """A real terminal: the person presses Enter."""
    ours, theirs = pty.openpty()
    command = [sys.executable, "-m", "nanolit.train", f"root={tmp_path}", "cluster.gpu=cpu"]
    environment = {**os.environ, "TERM": "xterm", "HF_ENDPOINT": "http://127.0.0.1:9"}
    process = subprocess.Popen(
        command, stdin=theirs, stdout=theirs, stderr=theirs, env=environment, start_new_session=True
    )
    os.close(theirs)
    out = b""
    while b"[y/N]" not in out and (chunk := os.read(ours, 4096)):
        out += chunk
    os.write(ours, b"\n")
    assert process.wait(60) == 1
    os.close(ours)
    text = out.decode()
    assert text.index("2 stages") < text.index("GB to download") < text.index("experiment=demo")
    assert not list(tmp_path.glob("data/*/*"))
