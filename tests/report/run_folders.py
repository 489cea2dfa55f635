"""Run folders for tests, written through real files as training leaves them; the numbers are made up."""

import json
import math
import os
from collections.abc import Sequence
from pathlib import Path

import yaml

COLUMNS = "step,loss,val_bpb,lr_multiplier,tokens,flops,seconds,tokens_per_second,mfu,epoch"
METRICS = {
    "base": {"CORE": 0.0123},
    "mid": {"ARC-Easy": 0.25, "GSM8K": 0.0, "ChatCORE": 0.01},
    "sft": {"ARC-Easy": 0.31, "GSM8K": 0.025, "ChatCORE": 0.0884},
    "rl": {"GSM8K": 0.0758},
}


def write_stage(
    folder: Path,
    *,
    result: dict | None = None,
    plan: dict | None = None,
    metrics: str | None = None,
    samples: str | None = None,
    job: dict | None = None,
    changed: float | None = None,
) -> Path:
    """One stage's folder with the files that are given; `changed`: their time in seconds since the epoch."""
    folder.mkdir(parents=True, exist_ok=True)
    if result is not None:
        (folder / "result.json").write_text(json.dumps({"format": 1, "stage": folder.name, **result}))
    if plan is not None:
        (folder / "plan.json").write_text(json.dumps({"format": 1, **plan}))
    if metrics is not None:
        (folder / "metrics.csv").write_text(metrics)
    if samples is not None:
        (folder / "samples.md").write_text(samples)
    if job is not None:
        (folder / "job.yaml").write_text(yaml.safe_dump(job))
    if changed is not None:
        for path in (folder, *folder.iterdir()):
            os.utime(path, (changed, changed))
    return folder


def metrics_text(num_steps: int, *, start: float = 10.0, end: float = 4.0, eval_every: int = 10) -> str:
    """metrics.csv as training writes it: a row per step, and sparse rows for the evaluations."""
    lines = [COLUMNS]
    for step in range(1, num_steps + 1):
        loss = end + (start - end) * math.exp(-5 * step / num_steps) + 0.3 * math.sin(12.9898 * step)
        lines.append(f"{step},{loss!r},,1.0,{step * 512},{step * 512e6},{step * 0.5},1024.0,0.4,0")
        if step % eval_every == 0:
            lines.append(f"{step},,{loss / 2.5!r},,,,,,,")
    return "\n".join(lines) + "\n"


def conversation_metrics_text(num_steps: int, columns: Sequence[str]) -> str:
    """metrics.csv of a later stage: every column moves linearly from 1 to 2, and one of them is unknown."""
    lines = [",".join(["step", *columns, "invented_by_a_later_version"])]
    lines += [
        ",".join([str(step), *(repr(1 + step / num_steps) for _ in columns), "text"])
        for step in range(1, num_steps + 1)
    ]
    return "\n".join(lines) + "\n"


def job_of(run: str, *, depth: int = 4, seed: int = 1) -> dict:
    return {
        "run": run,
        "seed": seed,
        "stages": ["tokenizer", "base", "mid", "sft", "rl"],
        "model": {"depth": depth, "context": 256},
        "recipe": {"name": "classic", "groups": {"matrix": {"lr": 0.02}}},
        "data": {"_target_": "nanolit.data.shards.Sample", "name": "sample"},
        "cluster": {"name": "local", "devices": 1},
    }


def write_demo(root: Path, run: str = "demo", *, depth: int = 4, seed: int = 1, end: float = 4.0) -> Path:
    """A finished run of all five stages below `root`; returns its folder."""
    folder, job = root / "runs" / run, job_of(run, depth=depth, seed=seed)
    finished = {"run": run, "status": "done"}
    write_stage(folder / "tokenizer", result={**finished, "seconds": 5.0, "vocab_size": 4096}, job=job)
    write_stage(
        folder / "base",
        job=job,
        plan={
            "data": "sample",
            "num_steps": 100,
            "width": 256,
            "groups": {"matrix": {"lr": 0.02, "betas": [0.8, 0.95]}},
        },
        metrics=metrics_text(100, end=end),
        samples="## Step 50\n\n- 'early'\n\n## Step 100\n\n- 'The capital of France is ```Paris```'\n\n",
        result={
            **finished,
            "step": 100,
            "tokens": 51_200,
            "seconds": 120.0,
            "wall_seconds": 150.0,
            "tokens_per_second": 1024.0,
            "val_bpb": end / 2.5,
            "metrics": METRICS["base"],
            "release": f"{run}/base/release",
        },
    )
    columns = {
        "mid": ["loss", "val_bpb"],
        "sft": ["loss", "val_loss"],
        "rl": ["reward", "pass_at_1", "pass_at_8", "sequence_length"],
    }
    for stage, names in columns.items():
        write_stage(
            folder / stage,
            job=job,
            plan={"num_steps": 20},
            metrics=conversation_metrics_text(20, names),
            result={**finished, "step": 20, "seconds": 60.0, "metrics": METRICS[stage]},
        )
    return folder


def write_items(
    stage: Path,
    task: str,
    rights: Sequence[bool],
    *,
    baseline: float,
    of: int | None = None,
    questions: str = "q",
) -> None:
    """The items of a task as an evaluation leaves them, right or wrong as given."""
    header = {
        "format": 1,
        "task": task,
        "baseline": baseline,
        "questions": questions,
        "of": of or len(rights),
    }
    items = [{"index": place, "prompt": place * 7, "right": right} for place, right in enumerate(rights)]
    (stage / "evaluation").mkdir(exist_ok=True)
    text = "".join(json.dumps(line) + "\n" for line in (header, *items))
    (stage / "evaluation" / f"{task}.jsonl").write_text(text)
