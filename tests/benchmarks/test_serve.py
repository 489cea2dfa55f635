"""The benchmark of the API serves a real model and asks it over HTTP."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks import serve

ROOT = Path(__file__).resolve().parents[2]
TINY = ["model.depth=2", "model.width=64", "model.heads=1", "model.context=256", "recipe.vocab_size=512"]


def test_a_random_model_is_served_and_streams(tmp_path):
    words = [*TINY, "streams=3", "new=8", "repeats=1", "commit=abc", f"results={tmp_path}"]
    environment = os.environ | {"NANOLIT_DEVICE": "cpu"}
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks", "serve", *words],
        capture_output=True,
        text=True,
        env=environment,
        check=False,
        cwd=ROOT,
    )
    assert done.returncode == 0, done.stderr
    entry = json.loads(done.stdout.splitlines()[-1])
    assert entry["seconds_to_first_token"] > entry["seconds_to_answering"] > 0
    assert entry["tokens_per_second"] > 0
    assert entry["streams_tokens_per_second"] > 0
    (kept,) = tmp_path.iterdir()
    assert json.loads(kept.read_text())["results"] == [entry]


def test_a_release_takes_no_settings_of_a_model(tmp_path):
    with pytest.raises(ValueError, match="leave out model=d4"):
        serve.main([f"release={tmp_path}", "model=d4"])


def test_a_server_that_does_not_start_says_why(tmp_path):
    with pytest.raises(ValueError, match=r"did not start: .*neither a release"):
        serve.main([f"release={tmp_path / 'none'}"])
