"""Weights & Biases without a key: an offline run per stage. The oracle is W&B's own reader of its files."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.jobs.tiny_runs import overrides, train, write_corpus

pytestmark = pytest.mark.xdist_group("training")


def test_an_offline_run_holds_the_configuration_the_metrics_and_its_place(tmp_path: Path) -> None:
    corpus, root = write_corpus(tmp_path / "text"), tmp_path / "root"
    more = ["recipe=classic", "logger=wandb", "max_steps=4"]
    done = train(overrides(corpus, root, *more), WANDB_API_KEY="", WANDB_MODE="", HOME=str(tmp_path))
    assert done.returncode == 0, done.stderr
    assert "wandb sync" in done.stdout
    (folder,) = (root / "runs" / "tiny" / "base" / "wandb").glob("offline-run-*")
    reader = shutil.which("wandb", path=str(Path(sys.executable).parent))
    assert reader, "wandb has no command beside this Python"
    shown = subprocess.run(
        [reader, "leet", "inspect", "--summary", "--json", str(folder)],
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
    )
    found = json.loads(shown.stdout)
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
