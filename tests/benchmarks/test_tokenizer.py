"""`python -m benchmarks tokenizer` measures what is installed, and refuses what it doesn't know."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks import tokenizer as bench


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "benchmarks", "tokenizer", *arguments]
    return subprocess.run(command, capture_output=True, text=True)


def test_it_measures_ours_and_keeps_the_figures(tmp_path: Path) -> None:
    sizes = ["train_mb=1", "encode_mb=1", "vocab_size=600"]
    done = run(*sizes, "repeats=1", "peers=none", "commit=test", f"results={tmp_path}")
    assert done.returncode == 0, done.stderr
    entry = json.loads(done.stdout.splitlines()[-1])
    assert set(entry["measured"]["train"]) == {"nanolit", "nanolit, parquet"}
    assert len(entry["measured"]["encode"]["nanolit"]) == 1
    assert entry["train_megabytes"] == pytest.approx(1, abs=0.1)
    (kept,) = tmp_path.glob("test-*.json")
    assert json.loads(kept.read_text())["results"] == [entry]


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("megabytes=3", "unknown setting 'megabytes=3'; "),
        ("peers=rustbpe,hf", "there is no peer 'hf'; allowed: all, none, rustbpe, tiktoken, tokenizers"),
    ],
)
def test_unknown_settings_are_refused(argument: str, message: str) -> None:
    done = run(argument)
    assert done.returncode == 2
    assert message in done.stderr


def test_a_table_has_medians_ranges_and_ratios() -> None:
    figures = {"nanolit": [{"seconds": 1.0, "megabytes": 100.0}] * 3}
    figures["rustbpe"] = [{"seconds": seconds, "megabytes": 300.0} for seconds in (3.0, 5.0, 4.0)]
    lines = bench.table_of("train", figures, {"train_bytes": 100_000_000}).splitlines()
    assert [cell.strip() for cell in lines[-1].split("|")[1:-1]] == [
        "rustbpe",
        "4.00",
        "3.00–5.00",
        "25.0",
        "4.00",
        "300",
    ]
