"""The benchmark of single kernels launches what it says, with the right results."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from benchmarks import kernels

ROOT = Path(__file__).resolve().parents[2]
needs_triton = pytest.mark.skipif(not importlib.util.find_spec("triton"), reason="needs Triton")
INTERPRETED = """
import torch
from benchmarks import kernels
from nanolit.model.gpt import GPTConfig
from nanolit.kernels import decode_kernel
from tests.conftest import MODERN, multiply_row_by_row
decode_kernel.multiply = multiply_row_by_row
kernels.TOUCHED = 0
kernels.brain = torch.randn  # the interpreter multiplies no bfloat16
config = GPTConfig(depth=2, width=32, heads=2, kv_heads=1, vocab_size=300, context=64, softcap=15.0,
                   vocab_multiple=64, **MODERN)
for rows in (1, 3):
    some = [*kernels.kernels_of(config, rows, 40)]
    names = ["qkv", "output", "expand", "contract", "attention", "sampling"]
    assert [kernel.name for kernel in some] == names
    for kernel in some:
        for launch in kernel.launches[:2]:
            launch()
        assert kernel.error() < 1e-3, (kernel.name, kernel.error())
with kernels.cut_into("_tile_of_a_row", (4, 1)):
    (kernel, *_) = kernels.kernels_of(config, 1, 40)
    kernel.launches[-1]()
    assert kernel.error() < 1e-3
"""


@needs_triton
def test_what_is_timed_gives_the_right_results_in_tritons_interpreter():
    environment = os.environ | {"TRITON_INTERPRET": "1", "PYTHONPATH": str(ROOT)}
    subprocess.run([sys.executable, "-c", INTERPRETED], env=environment, check=True, timeout=240, cwd=ROOT)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_machine_without_a_gpu_is_told():
    with pytest.raises(ValueError, match="no CUDA device"):
        kernels.main(["model=d2"])


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_every_kernel_is_timed(tmp_path, capsys):
    kernels.main(["model=d4", "rows=1,8", "tiles=true", f"results={tmp_path}", "commit=abc"])
    entry = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert len(entry["kernels"]) == 12
    assert all(0 < line["floor"] < line["microseconds"] for line in entry["kernels"])
    assert all(line["error"] < 0.01 for line in entry["kernels"])
