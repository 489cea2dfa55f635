"""Several runs side by side: their metrics, which differences are more than noise, and their settings."""

import json
import statistics
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

from nanolit.config.names import flatten
from nanolit.config.schema import STAGES
from nanolit.machine.terminal import duration
from nanolit.report.folders import Run, Stage, open_run
from nanolit.report.noise import CANNOT_TELL, CORE_SPREAD, difference
from nanolit.report.scores import measured, parts_of_core, sorted_metrics
from nanolit.report.sweep import bpb_names, letters, rows_remark, split_seed, spread
from nanolit.report.tables import MISSING, markdown_table, readable, score

PLACES = {"run", "root", "overrides", "cluster", "logger", "wait", "offline", "max_cost", "yes", "dry_run"}
RESULTS = {"step": readable, "tokens": readable, "tokens_per_second": readable, "seconds": duration}
NOISE = (
    "Noise: between seeds, Student's t at 95 %; between questions, two standard errors of the paired "
    "difference. By chance, one in twenty such differences exceeds it.\n"
)
ONE_RUN = (
    f"One run says little: identical runs differ by {CORE_SPREAD} in CORE (sd, published) and by 0.0002 (a "
    "d24, published) to 0.006 (a d12, short) in val_bpb. Train each with seed=1,2,3 to know.\n"
)


def compare(root: Path, names: Sequence[str]) -> str:
    """Return tables: every stage's metrics, which differences are more than noise, the settings that differ.

    Runs that differ in the seed alone are one column, mean ± sd.
    """
    runs = [open_run(root, name) for name in names]
    if len(runs) < 2:
        raise ValueError(f"compare needs two or more runs, got {len(runs)}; write compare=RUN1,RUN2")
    groups = by_seed(runs)
    return "\n".join(part for part in (_results(groups), _noise(groups), _differences(runs)) if part)


def by_seed(runs: Sequence[Run]) -> dict[str, list[Run]]:
    """Return the runs by name; those whose settings differ in the seed alone are together.

    Equal runs, of the same seed too, stay apart: their code may differ.
    """
    together: dict[tuple[str, int], list[Run]] = {}
    seen: Counter[tuple[str, object]] = Counter()
    stages = {stage.name for run in runs for stage in run.stages}  # only one seed trains the tokenizer
    for run in runs:
        settings = {
            key: value
            for key, value in flatten(run.job).items()
            if key != "seed" and _decides(key.split("."), stages)
        }
        alike = json.dumps(settings, sort_keys=True, default=str) if settings else run.name
        seed = (alike, run.job.get("seed"))
        together.setdefault((alike, seen[seed]), []).append(run)
        seen[seed] += 1
    return {
        group[0].name if len(group) == 1 else _name_without_seed(group): group for group in together.values()
    }


def _name_without_seed(runs: Sequence[Run]) -> str:
    names = {split_seed(run.name)[0] for run in runs}
    return f"{' + '.join(names)} (n={len(runs)})" if len(names) == 1 else " + ".join(run.name for run in runs)


def _results(groups: Mapping[str, Sequence[Run]]) -> str:
    by_group = {name: _by_stage(runs) for name, runs in groups.items()}
    rows, remarks = [], []
    for name in _stages(by_group):
        found = [stages.get(name, []) for stages in by_group.values()]
        scored = [stage for stages in found for stage in stages if stage.val_bpb is not None]
        names = bpb_names(map(_checksum, scored))
        metrics = [[_metrics(stage, names) for stage in stages] for stages in found]
        every = sorted_metrics(key for group in metrics for values in group for key in values)
        short = letters(names) | parts_of_core(every)
        for metric in every:
            cells = [[values[metric] for values in group if metric in values] for group in metrics]
            rows.append([name, short.get(metric, metric), *map(spread, cells)])
        remark = rows_remark({stage.folder.parent.name: _checksum(stage) for stage in scored})
        remarks += [f"{name}: {remark}"] if remark and len(scored) > 1 else []
        remarks += [f"{name}: {word} is {metric}.\n" for metric, word in short.items()]
        for key, show in RESULTS.items():
            known = [[n for stage in stages if (n := stage.number(key)) is not None] for stages in found]
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


def _noise(groups: Mapping[str, Sequence[Run]]) -> str:
    """Return each other column's differences from the first one, and which of them are more than noise."""
    first, *others = groups
    if not others:
        return "They differ only in the seed.\n"
    before, rows = _by_stage(groups[first]), []
    for other in others:
        now = _by_stage(groups[other])
        for stage in _stages({first: before, other: now}):
            if stage not in before or stage not in now:
                continue
            checksums = {*filter(None, map(_checksum, [*before[stage], *now[stage]]))}
            metrics = sorted_metrics(measured(before[stage][0]))
            short = parts_of_core(metrics)
            for metric in metrics:
                if metric == "val_bpb" and len(checksums) > 1:
                    continue  # of other rows: no difference
                if (found := difference(before[stage], now[stage], metric)) is None:
                    continue
                noise = MISSING if found.noise is None else f"±{score(found.noise)}"
                cells = [f"{found.value:+.4f}", noise, found.verdict, found.basis]
                rows.append([other, stage, short.get(metric, metric), *cells])
    if not rows:
        return ""
    header = [f"Against {first}", "Stage", "Metric", "Difference", "Noise", "Verdict", "Basis"]
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
        return f"The settings can't be compared: {without} has no job.yaml.\n"
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
