"""The table of a sweep: mean ± standard deviation over seeds, as Markdown and CSV."""

import csv
import io
import re
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from nanolit.machine.paths import Json, write_atomically
from nanolit.report.folders import as_number, flat_numbers
from nanolit.report.scores import sorted_metrics
from nanolit.report.tables import MISSING, markdown_table, readable, score

COSTS = ("tokens_per_second", "seconds")


def bpb_names(checksums: Iterable[str | None]) -> dict[str | None, str]:
    """Return what bits per byte are called for each checksum of validation rows (None: an older version's).

    Figures of different rows don't compare, so that each set of rows has a name of its own.
    """
    known = sorted({checksum for checksum in checksums if checksum})
    if len(known) < 2:
        return dict.fromkeys([None, *known], "val_bpb")
    return {None: "val_bpb of unknown rows"} | {checksum: f"val_bpb of rows {checksum}" for checksum in known}


def letters(names: Mapping[str | None, str]) -> dict[str, str]:
    """Return a short name for each "val_bpb of rows CHECKSUM": no reader compares checksums in a table."""
    of_rows = [name for name in names.values() if name.startswith("val_bpb of rows ")]
    return {name: f"val_bpb of rows {chr(ord('A') + place)}" for place, name in enumerate(of_rows)}


def rows_remark(checksums: Mapping[str, str | None]) -> str:
    """Return a line where the runs' validation rows differ or are unknown, by the runs' names; else ""."""
    if len({checksum for checksum in checksums.values() if checksum}) > 1:
        return "val_bpb was measured on different validation rows: compare only figures of the same rows.\n"
    if unknown := [name for name, checksum in checksums.items() if not checksum]:
        return f"val_bpb may be on different validation rows: those of {', '.join(unknown)} are unknown.\n"
    return ""


@dataclass
class Configuration:
    """The results of a sweep's jobs that differ in the seed only."""

    name: str
    seeds: list[str] = field(default_factory=list)
    unfinished: int = 0
    values: dict[str, list[float]] = field(default_factory=dict)

    def add(self, seed: str, result: Json, *, bpb_name: str) -> None:
        """Count a job: only a finished one gives values."""
        if result.get("status") != "done":
            self.unfinished += 1
            return
        self.seeds.append(seed)
        for name, value in numbers_of(result, bpb_name=bpb_name).items():
            self.values.setdefault(name, []).append(value)


def numbers_of(result: Json, *, bpb_name: str = "val_bpb") -> dict[str, float]:
    """Return the numbers of a result that a sweep is about: val_bpb, metrics, speed and time."""
    values = {bpb_name: result.get("val_bpb")} | {key: result.get(key) for key in COSTS}
    return flat_numbers(values) | flat_numbers(result.get("metrics") or {})


def _checksums(results: Sequence[Json]) -> dict[str, str | None]:
    """Run → checksum of its validation rows, of the finished jobs that have bits per byte."""
    return {
        str(result.get("run", "")): (result.get("val_rows") or {}).get("checksum")
        for result in results
        if result.get("status") == "done" and as_number(result.get("val_bpb")) is not None
    }


def by_configuration(results: Sequence[Json]) -> list[Configuration]:
    """Results grouped over seeds, in order of first appearance.

    A result names its `configuration` and `seed`, or has the default run name, from which both are read:
    'd12-modern-s1' is seed 1 of 'd12-modern', 'd12-modern-s1-3fa9' seed 1 of 'd12-modern-3fa9'.
    """
    rows: dict[str, Configuration] = {}
    checksums = _checksums(results)
    names = bpb_names(checksums.values())
    for result in results:
        run = str(result.get("run", ""))
        name, seed = split_seed(run)
        name, seed = str(result.get("configuration", name)), str(result.get("seed", seed))
        rows.setdefault(name, Configuration(name)).add(seed, result, bpb_name=names[checksums.get(run)])
    return list(rows.values())


def split_seed(run: str) -> tuple[str, str]:
    """Return a run's name without its seed, and the seed; "" where the name isn't the default one."""
    seeded = re.fullmatch(r"(d\d+-.+?)-s(\d+)(|-.+)", run)
    return (seeded[1] + seeded[3], seeded[2]) if seeded else (run, "")


def mean_and_sd(values: Sequence[float]) -> tuple[float, float | None]:
    """Mean and sample standard deviation (n - 1 below); None for one value."""
    return statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else None


def spread(values: Sequence[float], show: Callable[[float], str] = score) -> str:
    """Return mean ± standard deviation; a single value has none."""
    if not values:
        return MISSING
    mean, sd = mean_and_sd(values)
    return show(mean) if sd is None else f"{show(mean)} ± {show(sd)}"


def sweep_table(results: Sequence[Json]) -> str:
    """Return a row per configuration: n finished seeds, mean ± sd of each number, and how many didn't finish.

    Bits per byte of different validation rows have columns of their own, and a line below says so.
    """
    rows = by_configuration(results)
    names = _value_names(rows)
    unfinished = any(row.unfinished for row in rows)
    checksums = _checksums(results)
    short = letters(bpb_names(checksums.values()))
    shown = [short.get(name, name) for name in names]
    header = ["Configuration", "n", *(["unfinished"] if unfinished else []), *shown]
    cells = [
        [
            row.name,
            str(len(row.seeds)),
            *([str(row.unfinished)] if unfinished else []),
            *(_spread(row.values.get(name, []), name, len(row.seeds)) for name in names),
        ]
        for row in rows
    ]
    remarks = [rows_remark(checksums)] if len(checksums) > 1 else []
    remarks += [f"{letter} is {name}.\n" for name, letter in short.items()]
    return "\n".join([markdown_table(header, cells), *filter(None, remarks)])


def _value_names(rows: Sequence[Configuration]) -> list[str]:
    found = {name for row in rows for name in row.values}
    return [*sorted_metrics(found - set(COSTS)), *(name for name in COSTS if name in found)]


def _spread(values: Sequence[float], name: str, expected: int) -> str:
    text = spread(values, readable if name in COSTS else score)
    return text if len(values) in (0, expected) else f"{text} (n={len(values)})"


def write_sweep_csv(path: Path, results: Sequence[Json]) -> None:
    """Write the sweep as CSV with all digits: configuration, n, …, then <name>_mean and <name>_sd."""
    rows = by_configuration(results)
    names = _value_names(rows)
    columns = [f"{name}_{what}" for name in names for what in ("mean", "sd")]
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["configuration", "n", "unfinished", "seeds", *columns])
    for row in rows:
        spreads = [mean_and_sd(row.values[name]) if name in row.values else (None, None) for name in names]
        numbers = ["" if value is None else repr(value) for spread in spreads for value in spread]
        writer.writerow([row.name, len(row.seeds), row.unfinished, " ".join(row.seeds), *numbers])
    write_atomically(path, text.getvalue())
