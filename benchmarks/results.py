"""Where results are kept: benchmarks/results/<commit>-<gpu>.json, one entry for each command."""

import json
import platform
import re
import subprocess
from pathlib import Path
from typing import Any

from nanolit.machine.paths import PACKAGE, read_json, write_json

FORMAT = 1
FOLDER = Path(__file__).resolve().parent / "results"


def split_settings(arguments: list[str], own: dict[str, str]) -> tuple[dict[str, str], list[str]]:
    """The benchmark's own settings, defaults filled in, and the rest, which are overrides of the job."""
    settings, overrides = dict(own), []
    for argument in arguments:
        key, separator, value = argument.partition("=")
        if not separator:
            raise ValueError(f"{argument!r} is not key=value; own settings are {', '.join(own)}")
        if key in own:
            settings[key] = value
        else:
            overrides.append(argument)
    return settings, overrides


def own_settings(arguments: list[str], own: dict[str, str]) -> dict[str, str]:
    """Those of a benchmark that takes no overrides."""
    settings, unknown = split_settings(arguments, own)
    if unknown:
        raise ValueError(f"{unknown[0]} is no setting of this benchmark; it has {', '.join(own)}")
    return settings


def command_line(benchmark: str, arguments: list[str]) -> str:
    """What was measured, as it is typed again; where results are kept and under which name is no part."""
    kept = [argument for argument in arguments if not argument.startswith(("commit=", "results="))]
    return " ".join(["python -m benchmarks", benchmark, *kept])


def number(settings: dict[str, str], key: str, *, least: int) -> int:
    """The whole number that a setting holds."""
    text = settings[key]
    if not text.isdigit() or int(text) < least:
        raise ValueError(f"{key}={text} must be a whole number of at least {least}")
    return int(text)


def choice(settings: dict[str, str], key: str, allowed: tuple[str, ...]) -> str:
    """The value of a setting that is one of a few words."""
    if settings[key] not in allowed:
        raise ValueError(f"{key}={settings[key]} is not one of {', '.join(allowed)}; choose one of them")
    return settings[key]


def commit() -> str:
    """The checkout's short commit, `-dirty` where files differ from it; "unknown" where there is none."""
    command = ["git", "-C", str(PACKAGE.parent), "describe", "--always", "--dirty", "--exclude=*"]
    try:
        found = subprocess.run(command, capture_output=True, text=True, check=False, timeout=10)
    except OSError:
        return "unknown"
    return found.stdout.strip() if found.returncode == 0 else "unknown"


def processor() -> str:
    """The CPU's architecture, for results that no GPU took part in."""
    return f"cpu-{platform.machine()}"


def save(entry: dict[str, Any], *, commit: str, device: str, folder: str) -> Path:
    """Add the entry to the file of its commit and device, in place of one with the same command."""
    where = Path(folder) if folder else FOLDER
    name = re.sub(r"[^a-z0-9]+", "-", device.lower()).strip("-")
    path = where / f"{commit}-{name}.json"
    where.mkdir(parents=True, exist_ok=True)
    kept = read_json(path)["results"] if path.exists() else []
    kept = [one for one in kept if one["command"] != entry["command"]]
    write_json(path, {"format": FORMAT, "commit": commit, "device": device, "results": [*kept, entry]})
    return path


def print_entry(entry: dict[str, Any], path: Path) -> None:
    """The entry as a table, then as one line of JSON: the last line."""
    for key, value in entry.items():
        print(f"  {key:<28} {value:,.4g}" if isinstance(value, float) else f"  {key:<28} {value}")
    print_json(entry, path)


def print_json(entry: dict[str, Any], path: Path) -> None:
    """Where the entry was written, then the entry as one line: the last line."""
    print(f"  written to {path}")
    print(json.dumps(entry), flush=True)
