"""Weights & Biases without a key: an offline run per stage. The oracle is W&B's own reader of its files."""

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.jobs.tiny_runs import overrides, train, write_corpus


def inspect(folder: Path, *more: str) -> str:
    reader = shutil.which("wandb", path=str(Path(sys.executable).parent))
    assert reader, "wandb has no command beside this Python"
    command = [reader, "leet", "inspect", *more, "--json", str(folder)]
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=120).stdout


def steps(folder: Path) -> list[int]:
    """The `_step` of every row that W&B kept."""
    records = [json.loads(line) for line in inspect(folder).splitlines()]
    rows = [record["history"]["item"] for record in records if record["type"] == "history"]
    return [int(json.loads(str(row["_step"]))) for row in rows]


def test_an_offline_run_holds_the_configuration_the_metrics_and_its_place(tmp_path: Path) -> None:
    corpus, root = write_corpus(tmp_path / "text"), tmp_path / "root"
    more = ["recipe=classic", "logger=wandb", "max_steps=4"]
    done = train(overrides(corpus, root, *more), WANDB_API_KEY="", WANDB_MODE="", HOME=str(tmp_path))
    assert done.returncode == 0, done.stderr
    assert "wandb sync" in done.stdout
    (folder,) = (root / "runs" / "tiny" / "base" / "wandb").glob("offline-run-*")
    found = json.loads(inspect(folder, "--summary"))
    assert found["config"]["job"]["run"] == "tiny"
    assert found["config"]["plan"]["num_steps"] == 4
    text = json.dumps(found)
    assert "val_bpb" in text
    assert "tokens_per_second" in text
    assert folder.name.split("-")[-2] == "base"
    report = (folder / "files" / "report.md").read_text()
    assert report.startswith("# Report card: tiny")
    assert "## base" in report.lower()
    assert (folder / "files" / "report.html").is_file()


@pytest.mark.slow
def test_the_second_part_of_a_stopped_run_counts_on_from_the_first(tmp_path: Path) -> None:
    """Else the parts lie over each other once they are synced: they are one run of W&B."""
    corpus, root = write_corpus(tmp_path / "text"), tmp_path / "root"
    more = ["logger=wandb", "max_steps=12", "save_every=5"]
    environment = {"WANDB_API_KEY": "", "WANDB_MODE": "", "HOME": str(tmp_path)}
    command = [sys.executable, "-m", "nanolit.train", *overrides(corpus, root, *more)]
    first = subprocess.Popen(
        command, stdout=subprocess.PIPE, text=True, env={**os.environ, **environment}, bufsize=1
    )
    assert first.stdout is not None
    for line in first.stdout:
        if "  loss " in line:
            first.send_signal(signal.SIGINT)
            break
    first.communicate()
    assert train(overrides(corpus, root, *more), **environment).returncode == 0
    parts = sorted((root / "runs" / "tiny" / "base" / "wandb").glob("offline-run-*"))
    before, after = map(steps, parts)
    assert before
    assert before == list(range(1, before[-1] + 1))
    assert after == list(range(before[-1] + 1, 13))
