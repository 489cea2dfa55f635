"""`python -m benchmarks loader` measures the stream, its memory and its parts."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks import loader

TINY = ["vocab_size=400", "rows=16", "context=64", "warmup=1", "seconds=1", "threads=2", "commit=test"]


@pytest.mark.parametrize("packing", ["bestfit", "bestfit_split", "flat"])
def test_it_measures_the_stream_and_keeps_the_figures(tmp_path: Path, packing: str) -> None:
    command = [sys.executable, "-m", "benchmarks", "loader", *TINY]
    done = subprocess.run(
        [*command, f"packing={packing}", f"results={tmp_path}"], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    entry = json.loads(done.stdout.splitlines()[-1])
    shares = [entry[name] for name in entry if name.startswith("share_of_")]
    assert sum(shares) == pytest.approx(1)
    assert min(shares) > 0
    assert entry["tokens_per_second"] >= 16 * 64 * entry["steps"] / 3
    assert entry["peak_memory_of_data_megabytes"] < entry["memory_bound_megabytes"]
    assert (entry["cropped_fraction"] == 0) == (packing == "flat")
    (kept,) = tmp_path.glob("test-*.json")
    assert json.loads(kept.read_text())["results"] == [entry]


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("speed=3", "unknown setting 'speed=3'; allowed: commit"),
        ("threads=0", "threads=0 must be a whole number, 1 or more"),
        ("packing=best", "packing=best must be one of bestfit, bestfit_split, flat"),
        ("data=/nowhere", "data.path=/nowhere does not exist"),
    ],
)
def test_unknown_settings_are_refused(argument: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        loader.main([argument])
