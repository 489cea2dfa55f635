"""Two runs from the same weights: which parts are equal bit for bit, for each way to compute."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch._inductor.config
from tiny_jobs import ON_A_GPU, TINY, needs_gpu
from torch._inductor.utils import fresh_cache

from benchmarks import determinism
from nanolit.kernels import layout
from nanolit.kernels.residual import Embedding

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning:torch")  # of torch's own, of compiling
OWN_TINY = [one for one in TINY if not one.startswith("steps=")]


def last_line(capsys: pytest.CaptureFixture[str]) -> dict:
    return json.loads(capsys.readouterr().out.splitlines()[-1])


def repeats(way: dict) -> bool:
    return not any((*way["gradients"].values(), *way["weights"].values()))


def test_every_way_runs_and_repeats_on_a_cpu(tmp_path: Path, capsys, monkeypatch):
    """One thread repeats anyway. Each way is what its name says: tables and kernels are asked as it runs."""
    seen = {}
    run = determinism.run

    def recording(phase, *arguments):
        tables = {module.deterministic for module in phase.gpt.modules() if isinstance(module, Embedding)}
        seen.setdefault((phase.forward_gpt is phase.gpt, tables.pop(), layout.in_order()), 0)
        assert not tables
        return run(phase, *arguments)

    monkeypatch.setattr(determinism, "run", recording)
    # What another number of threads compiled would be found again, and keeps its own
    # vec_isa_ok spares a new cache folder half a minute of test programs for the CPU's vector units
    with fresh_cache(), torch._inductor.config.patch({"cpp.vec_isa_ok": True}):
        assert determinism.main([*OWN_TINY, "model.depth=1", "compile=true", f"results={tmp_path}"]) == 0
    entry = last_line(capsys)
    assert list(entry["ways"]) == ["eager", "compiled", "attention", "embedding", "both"]
    assert list(seen) == [
        (True, False, False),
        (False, False, False),
        (False, False, True),
        (False, True, False),
        (False, True, True),
    ]
    assert all(repeats(way) for way in entry["ways"].values())
    assert all(way["forward_backward_ms"] > 0 for way in entry["ways"].values())
    assert not layout.in_order()
    [path] = tmp_path.iterdir()
    assert json.loads(path.read_text())["results"] == [entry]


@pytest.mark.usefixtures("deterministic_algorithms")
def test_the_jobs_own_setting_is_measured_alone(tmp_path: Path, capsys):
    assert determinism.main([*OWN_TINY, "deterministic=true", f"results={tmp_path}"]) == 0
    first = last_line(capsys)["ways"]
    assert list(first) == ["deterministic=true"]
    assert repeats(first["deterministic=true"])
    determinism.main([*OWN_TINY, "deterministic=true", f"results={tmp_path}"])
    assert (
        last_line(capsys)["ways"]["deterministic=true"]["checksum"] == first["deterministic=true"]["checksum"]
    )


def test_the_smallest_difference_is_no_equality(tiny_model):
    """A single number counts, also beside zeros."""
    first = {name: torch.zeros(3) for name, _ in tiny_model.named_parameters()}
    second = {name: one.clone() for name, one in first.items()}
    assert not any(determinism.by_part(tiny_model, first, second).values())
    second["blocks.0.mlp.expand.weight"][1] = 1e-44
    found = determinism.by_part(tiny_model, first, second)
    assert [part for part, difference in found.items() if difference] == ["mlp.expand"]


@pytest.mark.gpu
@needs_gpu
def test_a_gpu_repeats_where_both_are_in_order(tmp_path: Path):
    """And so does the job's setting, from one process to the next, whatever the compiler chooses anew."""
    checksums = []
    for arguments in ([], ["deterministic=true"], ["deterministic=true"]):
        command = [sys.executable, "-m", "benchmarks", "determinism", *ON_A_GPU, *arguments]
        done = subprocess.run([*command, f"results={tmp_path}"], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        ways = json.loads(done.stdout.splitlines()[-1])["ways"]
        last = ways["deterministic=true" if arguments else "both"]
        assert repeats(last), last
        checksums.append(last["checksum"])
    assert checksums[1] == checksums[2]
