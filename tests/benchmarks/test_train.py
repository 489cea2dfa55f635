"""The benchmarks run on tiny models, keep what they measured, and refuse what they don't know."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks import results, train
from benchmarks.__main__ import main

TINY = [
    "model.depth=1",
    "model.width=16",
    "model.heads=2",
    "model.context=16",
    "stage.tokenizer.vocab_size=300",
    "total_batch=64",
    "micro_batch=2",
    "data=sample",
    "steps=3",
    "warmup=2",
    "commit=abc",
]


def last_line(capsys: pytest.CaptureFixture[str]) -> dict:
    return json.loads(capsys.readouterr().out.splitlines()[-1])


def test_training_is_measured_through_the_trainer(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert train.main([*TINY, f"results={tmp_path}"]) == 0
    entry = last_line(capsys)
    assert entry["tokens_per_second"] == pytest.approx(64_000 / entry["step_ms"])
    assert entry["accumulation"] == 2
    assert min(entry[name] for name in ("forward_ms", "backward_ms", "optimizer_ms")) > 0
    assert entry["first_step_seconds"] < entry["process_to_first_step_seconds"]
    [path] = tmp_path.iterdir()
    assert path.name == f"abc-{results.processor().replace('_', '-')}.json"
    assert json.loads(path.read_text())["results"] == [entry]


def test_the_comparison_gives_a_difference_for_every_round(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    assert train.main([*TINY, f"results={tmp_path}", "overhead=true", "rounds=2", "clock=cpu"]) == 0
    entry = last_line(capsys)
    assert len(entry["overhead_ms_by_round"]) == 2
    assert entry["trainer_ms"] > 0
    assert entry["bare_ms"] > 0


def test_an_entry_replaces_that_of_the_same_command_alone(tmp_path: Path):
    for command, value in (("a", 1), ("b", 2), ("a", 3)):
        entry = {"command": command, "value": value}
        path = results.save(entry, results.Kept(commit="c", results=tmp_path), device="NVIDIA H200")
    assert path.name == "c-nvidia-h200.json"
    assert [(one["command"], one["value"]) for one in json.loads(path.read_text())["results"]] == [
        ("b", 2),
        ("a", 3),
    ]


@pytest.mark.parametrize(
    ("argument", "said"),
    [
        ("steps=0", "steps=0 must be a whole number, 1 or more"),
        ("tokens=few", "tokens=few must be one of random, real"),
        ("quick", "quick"),
        ("model.depht=2", "model.depth"),
        ("cluster.devices=2", "the job needs 2 ranks but 1 started; give cluster.devices=1"),
    ],
)
def test_what_it_does_not_know_is_refused_in_one_line(argument: str, said: str):
    with pytest.raises(ValueError, match=said.replace(".", r"\.")):
        train.main([*TINY, argument])


def test_the_command_lists_the_benchmarks(capsys: pytest.CaptureFixture[str]):
    command = [sys.executable, "-m", "benchmarks", "speed"]
    found = subprocess.run(command, capture_output=True, text=True, check=False)
    assert found.returncode == 2
    assert found.stderr.startswith("error: there is no benchmark 'speed'; allowed: train, ")
    shown = "`python -m benchmarks profile model=d12 micro_batch=32`"
    assert main(["--help"]) == 0
    assert shown in capsys.readouterr().out
    with pytest.raises(SystemExit) as end:
        main(["profile", "--help"])
    assert not end.value.code
    assert shown in capsys.readouterr().out
