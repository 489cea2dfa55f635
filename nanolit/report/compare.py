"""Several runs side by side, and the table of a sweep: mean ± standard deviation over seeds."""

import csv
import io
import json
import re
import statistics
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from nanolit.config.names import flatten
from nanolit.config.schema import STAGES
from nanolit.machine.clock import duration
from nanolit.machine.paths import Json, write_atomically
from nanolit.report.folders import Run, Stage, as_number, flat_numbers, open_run
from nanolit.report.noise import CANNOT_TELL, CORE_SPREAD, difference
from nanolit.report.scores import measured, sorted_metrics
from nanolit.report.tables import MISSING, markdown_table, readable, score

PLACES = {"run", "root", "overrides", "cluster", "logger", "wait", "offline", "max_cost", "dry_run"}
COSTS = ("tokens_per_second", "seconds")
RESULTS = {"step": readable, "tokens": readable, "tokens_per_second": readable, "seconds": duration}


NOISE = (
    "Noise: by seeds, 95 % of Student's t; by questions, two standard errors of the paired difference. Of "
    "twenty such differences one is beyond it by chance.\n"
)
ONE_RUN = (
    f"One run tells little: equal runs differ by {CORE_SPREAD} in CORE (sd, published) and by 0.0002 (a d24, "
    "published) to 0.006 (a d12, short) in val_bpb. Train seed=1,2,3 of each to know.\n"
)


def compare(root: Path, names: Sequence[str]) -> str:
    """Return tables: every stage's metrics, which differences are more than noise, the settings that differ.

    Runs that differ in the seed alone are one column, mean ± sd.
    """
    runs = [open_run(root, name) for name in names]
    if len(runs) < 2:
        raise ValueError(f"compare needs two runs or more, got {len(runs)}; write compare=a,b")
    groups = by_seed(runs)
    return "\n".join(part for part in (_results(groups), _noise(groups), _differences(runs)) if part)


def by_seed(runs: Sequence[Run]) -> dict[str, list[Run]]:
    """Return the runs by name; those whose settings differ in the seed alone are together."""
    together: dict[str, list[Run]] = {}
    for run in runs:
        stages = [stage.name for stage in run.stages]
        settings = {
            key: value
            for key, value in flatten(run.job).items()
            if key != "seed" and _decides(key.split("."), stages)
        }
        alike = json.dumps(settings, sort_keys=True, default=str) if settings else run.name
        together.setdefault(alike, []).append(run)
    return {
        group[0].name if len(group) == 1 else _name_without_seed(group): group for group in together.values()
    }


def _name_without_seed(runs: Sequence[Run]) -> str:
    names = {split_seed(run.name)[0] for run in runs}
    return f"{' + '.join(names)} (n={len(runs)})" if len(names) == 1 else " + ".join(run.name for run in runs)


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


def _results(groups: Mapping[str, Sequence[Run]]) -> str:
    by_group = {name: _by_stage(runs) for name, runs in groups.items()}
    rows, remarks = [], []
    for name in _stages(by_group):
        found = [stages.get(name, []) for stages in by_group.values()]
        scored = [stage for stages in found for stage in stages if stage.val_bpb is not None]
        names = bpb_names(map(_checksum, scored))
        letters = _letters(names)
        metrics = [[_metrics(stage, names) for stage in stages] for stages in found]
        for metric in sorted_metrics(key for group in metrics for values in group for key in values):
            cells = [[values[metric] for values in group if metric in values] for group in metrics]
            rows.append([name, letters.get(metric, metric), *(_spread_of(values) for values in cells)])
        remark = rows_remark({stage.folder.parent.name: _checksum(stage) for stage in scored})
        remarks += [f"{name}: {remark}"] if remark and len(scored) > 1 else []
        remarks += [
            f"{name}: {letter} are those of checksum {metric.rpartition(' ')[2]}.\n"
            for metric, letter in letters.items()
        ]
        for key, show in RESULTS.items():
            values = [[as_number(stage.result.get(key)) for stage in stages] for stages in found]
            known = [[value for value in group if value is not None] for group in values]
            if any(known):
                rows.append(
                    [name, key, *(show(statistics.fmean(group)) if group else MISSING for group in known)]
                )
    return "\n".join([markdown_table(["Stage", "Result", *by_group], rows, num_left=2), *remarks])


def _by_stage(runs: Sequence[Run]) -> dict[str, list[Stage]]:
    stages: dict[str, list[Stage]] = {}
    for run in runs:
        for stage in run.stages:
            stages.setdefault(stage.name, []).append(stage)
    return stages


def _stages(by_group: Mapping[str, Mapping[str, list[Stage]]]) -> list[str]:
    """Return the stages that some run has, in the pipeline's order."""
    return [name for name in STAGES if any(name in stages for stages in by_group.values())]


def _letters(names: Mapping[str | None, str]) -> dict[str, str]:
    """Return a short name for each "val_bpb of rows CHECKSUM"."""
    of_rows = [name for name in names.values() if name.startswith("val_bpb of rows ")]
    return {name: f"val_bpb of rows {chr(ord('A') + place)}" for place, name in enumerate(of_rows)}


def _spread_of(values: Sequence[float]) -> str:
    if not values:
        return MISSING
    mean, sd = mean_and_sd(values)
    return score(mean) if sd is None else f"{score(mean)} ± {score(sd)}"


def _noise(groups: Mapping[str, Sequence[Run]]) -> str:
    """Return each other column's differences from the first one, and which of them are more than noise."""
    first, *others = groups
    if not others:
        return "They differ in the seed alone.\n"
    before, rows = _by_stage(groups[first]), []
    for other in others:
        now = _by_stage(groups[other])
        for stage in _stages({first: before, other: now}):
            if stage not in before or stage not in now:
                continue
            checksums = {_checksum(one) for one in [*before[stage], *now[stage]] if _checksum(one)}
            for metric in sorted_metrics(measured(before[stage][0])):
                if metric == "val_bpb" and len(checksums) > 1:
                    continue  # of other rows: no difference
                if (found := difference(before[stage], now[stage], metric)) is None:
                    continue
                noise = MISSING if found.noise is None else f"±{score(found.noise)}"
                cells = [f"{found.value:+.4f}", noise, found.verdict, found.basis]
                rows.append([other, stage, metric, *cells])
    if not rows:
        return ""
    header = [f"Against {first}", "Stage", "Metric", "Difference", "Noise", "Verdict", "Known by"]
    remarks = [NOISE] if any(row[5] != CANNOT_TELL for row in rows) else []
    remarks += [ONE_RUN] if any(len(runs) == 1 for runs in groups.values()) else []
    return "\n".join([markdown_table(header, rows, num_left=3), *remarks])


def _checksum(stage: Stage) -> str | None:
    return stage.val_rows.get("checksum")


def _metrics(stage: Stage, names: Mapping[str | None, str]) -> dict[str, float]:
    """Return the stage's metrics, its bits per byte under the name of its rows."""
    own_name = {"val_bpb": names[_checksum(stage)]}
    return {own_name.get(name, name): score.value for name, score in measured(stage).items()}


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
        for name, value in numbers_of(result, bpb_name=bpb_name).items():
            self.values.setdefault(name, []).append(value)


def numbers_of(result: Json, *, bpb_name: str = "val_bpb") -> dict[str, float]:
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
