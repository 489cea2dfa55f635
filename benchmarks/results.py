"""Keep results on disk: benchmarks/results/<commit>-<gpu>.json has one entry per command."""

import json
import platform
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nanolit.machine import system
from nanolit.machine.arguments import setting
from nanolit.machine.paths import read_json, write_json

FORMAT = 1
FOLDER = Path(__file__).resolve().parent / "results"


@dataclass(frozen=True, kw_only=True)
class Kept:
    """Settings of every benchmark that keeps its results."""

    commit: str | None = setting("label of the results (default: the checkout's commit)", None)
    results: Path = setting("folder for the results", FOLDER)


def command_line(benchmark: str, arguments: list[str]) -> str:
    """Return the command that repeats the measurement, without `commit` and `results`."""
    kept = [argument for argument in arguments if not argument.startswith(("commit=", "results="))]
    return " ".join(["python -m benchmarks", benchmark, *kept])


def processor() -> str:
    """Return the CPU's architecture, for results without a GPU."""
    return f"cpu-{platform.machine()}"


def save(entry: dict[str, Any], kept: Kept, *, device: str) -> Path:
    """Add the entry to the file of its commit and device, in place of one with the same command."""
    name = re.sub(r"[^a-z0-9]+", "-", device.lower()).strip("-")
    measured = kept.commit or system.commit() or "unknown"
    path = kept.results / f"{measured}-{name}.json"
    kept.results.mkdir(parents=True, exist_ok=True)
    entries = read_json(path)["results"] if path.exists() else []
    entries = [older for older in entries if older["command"] != entry["command"]]
    write_json(path, {"format": FORMAT, "commit": measured, "device": device, "results": [*entries, entry]})
    return path


def shown(value: object) -> str:
    return f"{value:,.4g}" if isinstance(value, float) else str(value)


def in_words(figures: dict[str, Any]) -> str:
    """Return the figures with their names in one line."""
    return "  ".join(f"{key} {shown(value)}" for key, value in figures.items())


def print_entry(entry: dict[str, Any], path: Path) -> None:
    """Print the entry as a table, then as one line of JSON: the last line."""
    for key, value in entry.items():
        print(f"  {key:<28} {shown(value)}")
    print_json(entry, path)


def print_json(entry: dict[str, Any], path: Path) -> None:
    """Print the path of the entry, then the entry as one line of JSON: the last line."""
    print(f"  written to {path}")
    print(json.dumps(entry), flush=True)
