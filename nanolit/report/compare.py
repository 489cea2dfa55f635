"""Several runs side by side, and the table of a sweep: mean ± standard deviation over seeds."""

import csv
import io
import re
import statistics
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from nanolit.config.names import flatten
from nanolit.machine.clock import duration
from nanolit.machine.paths import Json, write_atomically
from nanolit.report.card import sorted_metrics
from nanolit.report.folders import Run, Stage, as_number, flat_numbers, open_run
from nanolit.report.tables import MISSING, markdown_table, readable, score

PLACES = {"run", "root", "overrides", "cluster", "logger", "wait", "offline", "max_cost", "dry_run"}
COSTS = ("tokens_per_second", "seconds")
RESULTS = {"step": readable, "tokens": readable, "tokens_per_second": readable, "seconds": duration}


def compare(root: Path, names: Sequence[str]) -> str:
    """Return two tables: the metrics of every stage by run, and the settings in which the runs differ."""
    runs = [open_run(root, name) for name in names]
    if len(runs) < 2:
        raise ValueError(f"compare needs two runs or more, got {len(runs)}; write compare run=a,b")
    return _results(runs) + "\n" + _differences(runs)


def bpb_names(checksums: Iterable[str | None]) -> dict[str | None, str]:
    """Return what bits per byte are called for each checksum of validation rows (None: an older version's).

    Figures of different rows don't compare, so that each set of rows has a name of its own.
    """
    known = sorted({checksum for checksum in checksums if checksum})
    if len(known) < 2:
        return dict.fromkeys([None, *known], "val_bpb")
    return {None: "val_bpb of unknown rows"} | {checksum: f"val_bpb of rows {checksum}" for checksum in known}


def rows_remark(checksums: Mapping[str, str | None]) -> str:
    """Return a line where the runs' validation rows differ or are unknown, by the runs' names; else ""."""
    if len({checksum for checksum in checksums.values() if checksum}) > 1:
        return "val_bpb is of different validation rows: only figures of the same rows compare.\n"
    if unknown := [name for name, checksum in checksums.items() if not checksum]:
        return f"val_bpb may be of different validation rows: those of {', '.join(unknown)} are unknown.\n"
    return ""


def _results(runs: Sequence[Run]) -> str:
    by_run = {run.name: {stage.name: stage for stage in run.stages} for run in runs}
    stages = list(dict.fromkeys(name for run in runs for name in by_run[run.name]))
    rows, remarks = [], []
    for name in stages:
        found = [by_run[run.name].get(name) for run in runs]
        measured = [stage for stage in found if stage and stage.val_bpb is not None]
        names = bpb_names(map(_checksum, measured))
        metrics = [_metrics(stage, names) if stage else {} for stage in found]
        for metric in sorted_metrics(metric for values in metrics for metric in values):
            rows.append([name, metric, *(score(values.get(metric)) for values in metrics)])
        remark = rows_remark({stage.folder.parent.name: _checksum(stage) for stage in measured})
        remarks += [f"{name}: {remark}"] if remark and len(measured) > 1 else []
        for key, show in RESULTS.items():
            values = [as_number(stage.result.get(key)) if stage else None for stage in found]
            if any(value is not None for value in values):
                rows.append([name, key, *(MISSING if value is None else show(value) for value in values)])
    return "\n".join([markdown_table(["Stage", "Result", *by_run], rows, num_left=2), *remarks])


def _checksum(stage: Stage) -> str | None:
    return stage.val_rows.get("checksum")


def _metrics(stage: Stage, names: Mapping[str | None, str]) -> dict[str, float]:
    """Return the stage's metrics, its bits per byte under the name of its rows."""
    own_name = {"val_bpb": names[_checksum(stage)]}
    return {own_name.get(metric, metric): value for metric, value in stage.metrics.items()}


def _differences(runs: Sequence[Run]) -> str:
    """Return the settings that differ, of the stages that a run has; what changes no result is left out."""
    jobs = [flatten(run.job) for run in runs]
    if not all(jobs):
        without = ", ".join(run.name for run, job in zip(runs, jobs, strict=True) if not job)
        return f"The settings can't be compared: no job.yaml in {without}.\n"
    keys = dict.fromkeys(key for job in jobs for key in job)
    stages = {stage.name for run in runs for stage in run.stages}
    keys = [key for key in keys if _decides(key.split("."), stages)]
    rows = [
        [key, *(readable(job.get(key)) for job in jobs)]
        for key in keys
        if any(job.get(key) != jobs[0].get(key) for job in jobs)
    ]
    if not rows:
        return "The settings are the same.\n"
    return markdown_table(["Setting", *(run.name for run in runs)], rows)


def _decides(key: Sequence[str], stages: Collection[str]) -> bool:
    if key[0] == "stage" and key[1] not in stages:
        return False
    return key[0] not in PLACES and key[-1] != "micro_batch"


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
        for name, value in measured(result, bpb_name=bpb_name).items():
            self.values.setdefault(name, []).append(value)


def measured(result: Json, *, bpb_name: str = "val_bpb") -> dict[str, float]:
    """Return the numbers of a result that a sweep is about: val_bpb, metrics, speed and time."""
    names = {"val_bpb": bpb_name} | {key: key for key in COSTS}
    values = {
        name: number for key, name in names.items() if (number := as_number(result.get(key))) is not None
    }
    return values | flat_numbers(result.get("metrics") or {})


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
        seeded = re.fullmatch(r"(d\d+-.+?)-s(\d+)(|-.+)", run)
        name, seed = (seeded[1] + seeded[3], seeded[2]) if seeded else (run, "")
        name, seed = str(result.get("configuration", name)), str(result.get("seed", seed))
        rows.setdefault(name, Configuration(name)).add(seed, result, bpb_name=names[checksums.get(run)])
    return list(rows.values())


def mean_and_sd(values: Sequence[float]) -> tuple[float, float | None]:
    """Mean and sample standard deviation (n - 1 below); None for one value."""
    return statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else None


def sweep_table(results: Sequence[Json]) -> str:
    """Return a row per configuration: n finished seeds, mean ± sd of each number, and how many didn't finish.

    Bits per byte of different validation rows have columns of their own, and a line below says so.
    """
    rows = by_configuration(results)
    names = _value_names(rows)
    unfinished = any(row.unfinished for row in rows)
    header = ["Configuration", "n", *(["unfinished"] if unfinished else []), *names]
    cells = [
        [
            row.name,
            str(len(row.seeds)),
            *([str(row.unfinished)] if unfinished else []),
            *(_spread(row.values.get(name, []), name, len(row.seeds)) for name in names),
        ]
        for row in rows
    ]
    checksums = _checksums(results)
    remark = rows_remark(checksums) if len(checksums) > 1 else ""
    return markdown_table(header, cells) + (f"\n{remark}" if remark else "")


def _value_names(rows: Sequence[Configuration]) -> list[str]:
    found = {name for row in rows for name in row.values}
    return [*sorted_metrics(found - set(COSTS)), *(name for name in COSTS if name in found)]


def _spread(values: Sequence[float], name: str, expected: int) -> str:
    if not values:
        return MISSING
    show = readable if name in COSTS else score
    mean, sd = mean_and_sd(values)
    text = show(mean) if sd is None else f"{show(mean)} ± {show(sd)}"
    return text if len(values) == expected else f"{text} (n={len(values)})"


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
