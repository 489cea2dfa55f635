"""Gradients of whole models, compiled as training compiles, beside eager float32: wrong ones fail."""

import json
import math
import os
import subprocess
import sys
from pathlib import Path
from typing import get_args

import pytest
import torch
from tiny_jobs import ON_A_GPU, TINY, needs_gpu

from benchmarks import parity
from benchmarks.parity import Difference, Gradients, compare, faults_of
from nanolit.kernels.attention import Backend, agrees
from nanolit.model import gpt as gpt_module

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning:torch")  # of torch's own, of compiling


@pytest.fixture(autouse=True)
def _fresh_compiler():
    torch.compiler.reset()


def run(arguments: list[str], folder: Path, capsys: pytest.CaptureFixture[str]) -> tuple[int, dict, str]:
    """The exit status, the entry that is printed last and kept, and what is said of faults."""
    code = parity.main([*arguments, f"results={folder}"])
    printed = capsys.readouterr()
    entry = json.loads(printed.out.splitlines()[-1])
    [path] = folder.iterdir()
    assert json.loads(path.read_text())["results"] == [entry]
    return code, entry, printed.err


def test_compiled_gradients_equal_float32(tmp_path, capsys):
    code, entry, said = run([*TINY, "compile=true"], tmp_path, capsys)
    assert (code, entry["faults"], said) == (0, [], "")
    assert entry["compiled"]
    assert entry["precision"] == "fp32"
    assert len(entry["parts"]) == 15
    assert all(0 <= one["compiled"]["error"] < 1e-5 for one in entry["parts"].values())
    assert entry["loss"]["compiled"] == pytest.approx(entry["loss"]["float32"], abs=1e-5)
    assert 5 < entry["loss"]["float32"] < math.log(500)  # it has begun to learn


def test_a_lost_path_fails_by_name(tmp_path, capsys, monkeypatch):
    """As it was once: compiled, the first block's mix lost the gradient through r."""

    def forgetful(x, x0, r, s):
        return r * (x.detach() if x is x0 and torch.compiler.is_compiling() else x) + s * x0

    monkeypatch.setattr(gpt_module, "mix", forgetful)
    code, entry, said = run([*TINY, "compile=true", "model.depth=1"], tmp_path, capsys)
    assert code == 1
    assert "embedding.weight: its gradient is off by 0." in said
    assert "; at most 0.0001 is allowed in fp32" in said
    assert entry["parts"]["embedding"]["compiled"]["error"] > 0.5
    assert entry["parts"]["embedding"]["eager"]["error"] < 1e-5
    assert entry["parts"]["unembedding"]["compiled"]["error"] < 1e-5


def test_bfloat16_is_within_its_bounds_and_not_float32s(tmp_path, capsys):
    """Eagerly, which is how a CPU trains; its bound would not pass float32's."""
    code, entry, _ = run([*TINY, "precision=bf16", "steps=11"], tmp_path, capsys)
    assert (code, entry["precision"], entry["compiled"]) == (0, "bf16", False)
    assert parity.BOUNDS["fp32"].error < entry["parts"]["unembedding"]["compiled"]["error"]


def test_a_kernel_that_does_not_run_here_is_refused(tmp_path):
    with pytest.raises(ValueError, match="attention=flash4 is not installed or does not run here"):
        parity.main([*TINY, "attention=flash4", f"results={tmp_path}"])
    with pytest.raises(ValueError, match="attention=fast must be one of flash3"):
        parity.main([*TINY, "attention=fast", f"results={tmp_path}"])


def test_errors_of_scalars_are_relative_to_the_largest_scalars():
    """A matrix's are relative to its own norm; a scalar's that nearly vanishes may be as large as itself."""
    expected = {"matrix": torch.full((2, 2), 0.01), "large": torch.ones(4), "small": torch.tensor([1e-6])}
    found = {"matrix": torch.full((2, 2), 0.011), "large": torch.ones(4), "small": torch.tensor([-1e-6])}
    differences = compare(Gradients(0.0, found), Gradients(0.0, expected))
    assert differences["matrix"] == pytest.approx((0.1, 0.1, 1.1, 1.0), rel=1e-5)
    assert differences["large"] == pytest.approx((0, 0, 1, 1))
    assert differences["small"] == pytest.approx((1e-6, 2, 1, -1))
    assert faults_of(differences, {"matrix"}, "bf16") == [
        "matrix: its gradient is off by 0.1; at most 0.02 is allowed in bf16"
    ]


@pytest.mark.parametrize(
    ("difference", "said"),
    [
        (
            Difference(0.01, 0.01, 0.98, 1.0),
            "has 0.9800 times the norm of float32's; 0.985 to 1.015 is allowed",
        ),
        (Difference(math.nan, math.nan, math.nan, math.nan), "is off by nan; at most 0.02 is allowed"),
    ],
)
def test_a_bias_and_no_number_are_faults(difference, said):
    [fault] = faults_of({"name": difference}, {"name"}, "bf16")
    assert said in fault


def passes(arguments: list[str], folder: Path, capsys: pytest.CaptureFixture[str]) -> dict:
    code, entry, said = run([*ON_A_GPU, *arguments], folder, capsys)
    assert (code, said) == (0, "")
    assert entry["compiled"]
    return entry


@pytest.mark.gpu
@needs_gpu
@pytest.mark.parametrize("precision", ["bf16", "fp8", "fp32"])
def test_every_precision_is_within_its_bounds_on_a_gpu(precision, tmp_path, capsys):
    assert passes([f"precision={precision}"], tmp_path, capsys)["precision"] == precision


@pytest.mark.gpu
@needs_gpu
@pytest.mark.filterwarnings("ignore::Warning:cutlass|flash_attn|quack|torch|tvm_ffi")  # of compiling
@pytest.mark.parametrize("backend", get_args(Backend))
def test_every_attention_kernel_is_within_the_bounds_on_a_gpu(backend, tmp_path, capsys):
    if backend != "sdpa" and not agrees(backend, torch.device("cuda"), torch.bfloat16, 128):
        pytest.skip(f"{backend} does not run here")
    assert passes([f"attention={backend}"], tmp_path, capsys)["attention"] == backend


@pytest.mark.gpu
@needs_gpu
def test_torchs_kernels_are_within_the_bounds_on_a_gpu(tmp_path):
    """In a process of its own: what a kernel runs on is looked up once."""
    command = [sys.executable, "-m", "benchmarks", "parity", *ON_A_GPU, f"results={tmp_path}"]
    environment = os.environ | {"NANOLIT_KERNELS": "plain"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.splitlines()[-1])["kernels"] == "plain"
