"""Jobs for the tests of benchmarks, one for a CPU, one for a GPU, and how a benchmark runs on a CPU."""

import contextlib
import importlib
import io
import json

import pytest
import torch

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


def entry_on_a_cpu(name: str, *words: str) -> dict:
    """Run a benchmark with these words; return the JSON of its last line."""
    printed = io.StringIO()
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(printed):
        patch.setenv("NANOLIT_DEVICE", "cpu")
        assert importlib.import_module(f"benchmarks.{name}").main([*words]) == 0
    return json.loads(printed.getvalue().splitlines()[-1])
