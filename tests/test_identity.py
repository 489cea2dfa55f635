"""The command that has identity conversations written: what it prints, and that it resumes."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from nanolit import identity
from nanolit.chat.__main__ import main as chat
from nanolit.config.compose import compose
from nanolit.jobs.execute import run
from nanolit.machine.arguments import settings_of
from nanolit.machine.locks import held
from nanolit.tasks.identity import Identity
from tests.tasks.stand_in_endpoint import StandIn

KEY = "sk-not-to-be-shown"


@pytest.fixture(autouse=True)
def key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)


def words(server: StandIn, out: Path, **more: object) -> list[str]:
    settings = {
        "name": "Ada",
        "model": "writer-1",
        "base_url": server.base_url,
        "out": out,
        "count": 8,
        **more,
    }
    return [f"{key}={value}" for key, value in settings.items()]


def test_it_says_what_it_will_cost_then_what_it_made(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "identity.jsonl"
    with StandIn() as server:
        assert identity.main(words(server, out, prices="0.25,2.00", dry_run="true")) == 0
        said = capsys.readouterr().out
        assert said.startswith("8 requests, about ")
        assert ", $0.01\n" in said
        assert "You write training data for Ada" in said
        assert server.requests == []
        assert identity.main(words(server, out, prices="0.25,2.00")) == 0
    said = capsys.readouterr().out
    assert f"{out}: 8 conversations with 1 openings, 8 say Ada" in said
    assert "used 5,600 prompt tokens and 320 answer tokens, $0.00, 0 retries" in said
    assert KEY not in said
    assert len(Identity(path=str(out))) == 8


def test_facts_come_from_a_file(tmp_path: Path) -> None:
    (tmp_path / "about.md").write_text("Ada was trained in Delft.\n")
    with StandIn() as server:
        arguments = words(server, tmp_path / "identity.jsonl", facts=tmp_path / "about.md", count=1)
        assert identity.main(arguments) == 0
        assert "Ada was trained in Delft." in server.requests[0]["messages"][0]["content"]


def test_ctrl_c_keeps_what_is_done_and_the_same_command_goes_on(tmp_path: Path) -> None:
    """A process of its own, interrupted while requests are under way; the first answers were faults."""
    out, partial = tmp_path / "identity.jsonl", tmp_path / "identity.jsonl.partial"
    with StandIn(seconds=0.1, faults=["429", "reset"]) as server:
        arguments = words(server, out, count=40, workers=2)
        command = [sys.executable, "-m", "nanolit.identity", *arguments]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        deadline = time.monotonic() + 60
        while not partial.exists() or partial.read_bytes().count(b"\n") < 4:
            assert time.monotonic() < deadline
            time.sleep(0.02)
        process.send_signal(signal.SIGINT)
        stdout, stderr = process.communicate(timeout=30)
        assert process.returncode == 130
        assert stderr == "stopped; finished conversations are kept, and the same command resumes\n"
        assert not out.exists()
        done = {json.loads(line)["number"] for line in partial.read_text().splitlines()[1:]}
        assert 3 <= len(done) < 40
        server.requests.clear()
        server.seconds = 0.0
        finished = subprocess.run(command, capture_output=True, text=True, check=False)
        assert finished.returncode == 0, finished.stderr
        assert f"{len(done)} already done; {40 - len(done)} requests" in finished.stdout
        assert len(server.requests) == 40 - len(done)
    assert len(Identity(path=str(out))) == 40
    assert not partial.exists()
    assert KEY not in stdout + stderr + finished.stdout + finished.stderr + out.read_text()


LESSON = ["stage.sft.max_steps=120", "stage.sft.lr_scale=4"]  # of a base that knows nothing
MIXTURE = """\
mirror: sample
sources:
  - {_target_: nanolit.tasks.sums.Sums, split: train, size: 40}
validation:
  - {_target_: nanolit.tasks.sums.Sums, split: test, size: 8}
"""


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[str]]:
    """(root, what was typed) of a tiny base of the modern recipe, which knows nothing."""
    root = tmp_path_factory.mktemp("root")
    (root / "mixture.yaml").write_text(MIXTURE)
    (root / "chat.yaml").write_text("{mirror: sample, max_tokens: 4, tasks: []}")
    typed = [
        "recipe=modern",
        "data=sample",
        "model=d2",
        "model.width=64",
        "model.heads=2",
        "model.context=64",
        "stage.tokenizer.vocab_size=600",
        "stage.tokenizer.max_chars=200000",
        "total_batch=1024",
        "stage.base.max_steps=5",
        "stage.base.eval_tokens=512",
        "stage.sft.eval_tokens=512",
        f"stage.sft.mixture={root / 'mixture.yaml'}",
        f"chat_tasks={root / 'chat.yaml'}",
        "compile=false",
        f"root={root}",
    ]
    result = run(compose([*typed, "run=tiny"]))
    assert result["status"] == "done", result
    return root, typed


def test_a_base_that_is_taught_the_file_says_its_name(
    base: tuple[Path, list[str]], capsys: pytest.CaptureFixture[str]
) -> None:
    """From the request to the chat: the mixture is sums alone, phase=identity adds the file."""
    root, typed = base
    out = root / "identity.jsonl"
    with StandIn() as server:
        assert identity.main(words(server, out, count=60)) == 0
    job = compose([*typed, "phase=identity", "start_from=tiny", f"identity={out}", *LESSON])
    assert job["run"].startswith("tiny-identity-"), "with a hash of all that was typed"
    assert job["stages"] == ["sft"]
    result = run(job)
    assert result["status"] == "done", result
    capsys.readouterr()
    arguments = [f"run={job['run']}", f"root={root}", "temperature=0", "max_tokens=24", "-p", "Who are you?"]
    assert chat(arguments) == 0
    assert "I am Ada" in capsys.readouterr().out


def test_without_a_key_none_is_sent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OPENAI_API_KEY")
    with StandIn() as server:
        assert identity.main(words(server, tmp_path / "identity.jsonl", count=1)) == 0
        assert server.requests[0]["authorization"] is None


def test_the_endpoint_that_wants_a_key_is_not_asked_without_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("OPENAI_API_KEY")
    settings = ["name=Ada", "model=m", f"out={tmp_path / 'identity.jsonl'}"]
    assert identity.main(settings) == 2
    assert capsys.readouterr().err == (
        "error: OPENAI_API_KEY is not set; export it, or give the base_url= of a server without keys\n"
    )
    assert identity.main([*settings, "dry_run=true"]) == 0, "which asks nobody"


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["model=m"], "name is missing; give name=NAME"),
        (["name=Ada"], "model is missing; give model=MODEL"),
        (["nmae=Ada"], "did you mean name=…?"),
        (["name=Ada", "model=m", "count=0"], "count=0 must be"),
        (["name=Ada", "model=m", "workers=two"], "workers=two must be"),
        (["name=Ada", "model=m", "seed=-1"], "seed=-1 must be"),
        (["name=Ada", "model=m", "prices=1"], "prices=1 must be"),
        (["name=Ada", "model=m", "prices=-1,nan"], "prices=-1,nan must be"),
        (["name=Ada", "model=m", "dry_run=yes"], "dry_run=yes must be true or false"),
        (["name=Ada", "model=m", "facts=absent.md"], "facts=absent.md can't be read"),
        (["name=Ada", "model=m", "base_url=example.com"], "base_url is 'example.com'"),
        (["name=Ada", "model=m", "out=there.jsonl"], "there.jsonl already exists"),
        (["name=Ada", "model=m", "facts=there.jsonl"], "facts=there.jsonl is empty"),
    ],
)
def test_a_bad_setting_is_one_line(
    arguments: list[str],
    complaint: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("there.jsonl").touch()
    assert identity.main(arguments) == 2
    said = capsys.readouterr().err
    assert complaint in said
    assert said.count("\n") == 1
    assert [path.name for path in tmp_path.iterdir()] == ["there.jsonl"]


def test_help_names_every_setting(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        identity.main(["--help"])
    said = capsys.readouterr().out
    assert all(f"\n  {key}=" in said for key in settings_of(identity.Settings))
    assert os.environ["OPENAI_API_KEY"] not in said


def test_a_second_one_is_told_who_writes_the_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Both would pay for every conversation, and two heads in one file make it unreadable."""
    out = tmp_path / "identity.jsonl"
    with StandIn() as server, held(out.with_name(".identity.jsonl.lock")):
        assert identity.main(words(server, out)) == 2
        assert server.requests == []
    assert f"{out} is being written by process {os.getpid()}; wait for it" in capsys.readouterr().err
