"""Jobs for the tests of benchmarks, one for a CPU, one for a GPU, and how a benchmark runs on a CPU."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parents[2]

needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
# A step's tokens are more than 3,072, from which on CUDA adds an embedding's rows in float32
ON_A_GPU = [
    "model=d4",
    "model.context=256",
    "stage.tokenizer.vocab_size=4096",
    "total_batch=16384",
    "micro_batch=32",
    "commit=abc",
]
TINY = [
    "model.depth=2",
    "model.width=32",
    "model.heads=2",
    "model.context=64",
    "stage.tokenizer.vocab_size=500",
    "total_batch=1024",
    "micro_batch=8",
    "steps=3",
    "commit=abc",
]


def entry_on_a_cpu(*words: str) -> dict:
    """Run `python -m benchmarks` with these words; return the JSON of its last line."""
    environment = os.environ | {"NANOLIT_DEVICE": "cpu"}
    command = [sys.executable, "-m", "benchmarks", *words]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])
