"""Whole runs: ours learns what nanochat's own model and optimizer learn from the same rows and weights."""

import json
import os
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

from benchmarks import learning

ROOT = Path(__file__).resolve().parents[2]
PEERS = Path(os.environ.get("NANOLIT_SHARED", "shared")) / "peers"
TINY = [
    "data=sample",
    "model.depth=2",
    "model.width=128",
    "model.heads=1",
    "model.context=64",
    "stage.tokenizer.vocab_size=512",
    "stage.base.eval_tokens=2048",
    "total_batch=512",
    "micro_batch=4",
    "compile=false",
    "steps=8",
    "evaluations=2",
    "commit=abc",
]


def run(folder: Path, *words: str) -> dict:
    """The entry of one run, in a process that finds nanochat and stand-ins for what it only imports."""
    path = os.pathsep.join(map(str, (ROOT, ROOT / "launch", PEERS / "stubs")))
    command = [sys.executable, "-m", "benchmarks", "learning", *TINY, *words]
    command += [f"root={folder}/root", f"results={folder}/results"]
    # nanochat's optimizer asks for compiled updates, which take half a minute of compiling and are the same
    eager = {"TORCHDYNAMO_DISABLE": "1"}
    environment = os.environ | {"PYTHONPATH": path, "NANOLIT_DEVICE": "cpu"} | eager
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.slow
@pytest.mark.skipif(not PEERS.is_dir(), reason="needs nanochat, in NANOLIT_SHARED")
def test_the_same_rows_and_weights_give_nanochats_losses(tmp_path: Path):
    """Oracle: nanochat of July 2026 itself, its model and its optimizer, in float32: eight steps."""
    with tarfile.open(PEERS / "nanochat.tar.xz") as archive:
        archive.extractall(tmp_path, filter="data")
    peer = f"peer={tmp_path / 'nanochat'}"
    ours, theirs = run(tmp_path, peer, "weights=peer"), run(tmp_path, peer, "who=peer")
    assert ours["rows"] == theirs["rows"]
    assert ours["losses"] == pytest.approx(theirs["losses"], abs=2e-5)
    assert ours["bits_per_byte"] == pytest.approx(theirs["bits_per_byte"], abs=2e-5)
    assert ours["losses"]["8"] < ours["losses"]["1"] - 0.003


def test_a_peer_must_be_named():
    with pytest.raises(ValueError, match=r"^who=peer and weights=peer need nanochat; give peer=FOLDER"):
        learning.main([*TINY, "who=peer"])
