"""The progress of a submitted run, read from its volume: stage, step, loss, time left, dollars so far."""

import csv
import io
import json
import time
from pathlib import Path
from typing import Any

import modal

from launch import calls, spending
from launch.submit import Submission
from nanolit.machine.paths import parse_json
from nanolit.machine.terminal import duration
from nanolit.report.tables import age

RECENT_ROWS = 20  # of metrics.csv, over which a step's time is taken


def read_volume(volume: modal.Volume, path: str) -> bytes:
    """Return a file's bytes, b"" if it is missing."""
    try:
        return b"".join(volume.read_file(path))
    except (FileNotFoundError, modal.exception.NotFoundError):
        return b""


def read_volume_json(volume: modal.Volume, path: str, kind: Any = None) -> dict[str, Any]:
    """Return the object of a JSON file, {} if it is missing; DamagedFile unless it is a `kind`."""
    content = read_volume(volume, path) or b"{}"
    return parse_json(content, Path(f"{volume.name}:{path}"), kind, remedy="remove it with `modal volume rm`")


class OnVolume:
    """A run's files on its volume; what is not there is empty."""

    def __init__(self, submission: Submission) -> None:
        self.submission, self.run = submission, submission["run"]
        environment = submission["environment"]
        self.volume = modal.Volume.from_name(submission["volume"], environment_name=environment)

    def read(self, name: str) -> bytes:
        return read_volume(self.volume, f"runs/{self.run}/{name}")

    def json(self, name: str, kind: Any = None) -> dict[str, Any]:
        return read_volume_json(self.volume, f"runs/{self.run}/{name}", kind)

    def calls(self) -> list[dict[str, Any]]:
        """Return the calls that the run's orchestrators have made, oldest first."""
        return self.json("calls.json", calls.Kept).get("calls", [])

    def write_calls(self, calls: list[dict[str, Any]]) -> None:
        content = io.BytesIO(json.dumps({"format": 1, "calls": calls}, indent=2).encode())
        with self.volume.batch_upload(force=True) as batch:
            batch.put_file(content, f"runs/{self.run}/calls.json")

    def machines(self) -> dict[float, float]:
        """Return the seconds of every machine with GPUs so far, by when it began."""
        seconds = self.json(spending.FILE, spending.Kept).get("seconds", {})
        return {float(begun): spent for begun, spent in seconds.items()}

    def spent(self) -> tuple[float, float | None]:
        """Return GPU hours and dollars so far; None without a known price."""
        hours, rate = sum(self.machines().values()) / 3600, self.submission["dollars_per_hour"]
        return hours, rate and hours * rate

    def rows(self, stage: str) -> list[dict[str, str]]:
        """Return the rows of a stage's metrics.csv that have a loss or a reward."""
        rows = csv.DictReader(io.StringIO(self.read(f"{stage}/metrics.csv").decode()))
        return [row for row in rows if row["loss"]]

    def checkpoint_age(self, stage: str) -> str:
        try:
            entries = self.volume.listdir(f"runs/{self.run}/{stage}/checkpoints", recursive=True)
        except (FileNotFoundError, modal.exception.NotFoundError):
            return "none"
        times = [entry.mtime for entry in entries if entry.path.endswith("manifest.json")]
        return f"{age(time.time() - max(times))} old" if times else "none"


def reached(there: OnVolume, stage: str) -> str:
    """Return `step 12 of 16`, or as much as is known."""
    rows, steps = there.rows(stage), there.json(f"{stage}/plan.json").get("num_steps")
    of = f" of {steps:,}" if steps else ""
    return f"step {int(rows[-1]['step']):,}{of}" if rows else "no step yet"


def progress(there: OnVolume) -> str:
    """Return one line for a run in progress."""
    calls = [call for call in there.calls() if call["state"] == "begun"]
    if not calls:
        return "between two stages"
    call, (_, dollars) = calls[-1], there.spent()
    money = "" if dollars is None else f", ${dollars:,.2f} so far"
    if call["function"] != "train":
        return f"preparing (tokenizer, downloads) for {duration(time.time() - call['at'])}{money}"
    if not any(begun > call["at"] - 1 for begun in there.machines()):
        waiting = duration(time.time() - call["at"])
        return f"{call['stage']}: waiting for {there.submission['gpu']}, or starting, for {waiting}{money}"
    stage, rows = call["stage"], there.rows(call["stage"])
    parts = [f"{stage}: {reached(there, stage)}"]
    if rows:
        parts += [f"loss {float(rows[-1]['loss']):.3f}"]
        if rows[-1]["tokens_per_second"]:
            parts += [f"{float(rows[-1]['tokens_per_second']):,.0f} tokens/s"]
        parts += time_left(rows, there.json(f"{stage}/plan.json").get("num_steps"))
    return f"{', '.join(parts)}{money}; checkpoint: {there.checkpoint_age(stage)}"


def time_left(rows: list[dict[str, str]], num_steps: int | None) -> list[str]:
    """Return `1:02:00 left` of training in this stage, by its last steps; nothing before there are two."""
    first, last = rows[-RECENT_ROWS:][0], rows[-1]
    steps = int(last["step"]) - int(first["step"])
    if not steps or not num_steps:
        return []
    seconds = (float(last["seconds"]) - float(first["seconds"])) / steps
    return [f"{duration(seconds * (num_steps - int(last['step'])))} left"]
