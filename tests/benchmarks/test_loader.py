"""`python -m benchmarks loader` measures the stream, its memory and its parts."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks import loader

TINY = ["vocab_size=400", "rows=16", "context=64", "warmup=1", "seconds=1", "threads=2", "commit=test"]


PACKINGS = ["bestfit", "bestfit_split", "flat"]
SCRIPT = "import sys; from benchmarks import loader; [loader.main(words.split()) for words in sys.argv[1:]]"


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Path, str]]:
    """The benchmark of each packing, in one small process: (its results, what it printed last).

    A process's peak memory begins at that of the one that starts it, and that of the tests is large.
    """
    folders = [tmp_path_factory.mktemp(packing) for packing in PACKINGS]
    words = [
        " ".join([*TINY, f"packing={packing}", f"results={folder}"])
        for packing, folder in zip(PACKINGS, folders, strict=True)
    ]
    done = subprocess.run([sys.executable, "-c", SCRIPT, *words], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    lines = [line for line in done.stdout.splitlines() if line.startswith("{")]
    return dict(zip(PACKINGS, zip(folders, lines, strict=True), strict=True))


@pytest.mark.parametrize("packing", PACKINGS)
def test_it_measures_the_stream_and_keeps_the_figures(
    measured: dict[str, tuple[Path, str]], packing: str
) -> None:
    folder, line = measured[packing]
    entry = json.loads(line)
    shares = [entry[name] for name in entry if name.startswith("share_of_")]
    assert sum(shares) == pytest.approx(1)
    assert min(shares) > 0
    assert entry["tokens_per_second"] >= 16 * 64 * entry["steps"] / 3
    assert entry["peak_memory_of_data_megabytes"] < entry["memory_bound_megabytes"]
    assert (entry["cropped_fraction"] == 0) == (packing == "flat")
    (kept,) = folder.glob("test-*.json")
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
