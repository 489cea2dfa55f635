"""A resolved job to the plan of each stage: everything that `null` leaves to us, as numbers.

`nanolit.plan`, training and plan.json all use this. Pure arithmetic: importing it never imports torch.
"""

import math
from collections.abc import Callable, Mapping
from typing import Any, Literal, TypedDict

from nanolit.config.schema import FinetuneDefaults, Group, Job
from nanolit.model.accounting import (
    activation_bytes,
    flops_per_token,
    gpu_memory_gib,
    multiplies_in_fp8,
    parameter_counts,
    peak_bf16_flops,
    peak_memory_gib,
    size_from_depth,
)
from nanolit.optim import scaling

Plan = dict[str, Any]

# Model FLOPs utilisation by depth, in bf16. H100: d20 (47.4–49 %), d24 (46.9–50.5 %), d32 (50.9 %) published
# with nanochat; the rest measured with nanochat of July 2026 on one GPU. H200: measured here (LOG.md), but
# d24 with nanochat. A100: from the 6.6 hours published for the classic d20 on eight.
MFU: dict[str, dict[int, float]] = {
    "H100": {8: 0.30, 12: 0.43, 20: 0.47, 24: 0.485, 32: 0.51},
    "H200": {8: 0.46, 12: 0.50, 20: 0.52, 24: 0.53},
    "A100": {20: 0.66},
}
FP8_SPEED = {8: 1.15, 12: 1.25, 20: 1.39}  # times bf16's, by depth, measured on one H200 (LOG.md)
ASSUMED_MFU = 0.40  # for any other GPU: not measured
CPU_FLOPS = 0.11e12  # FLOP/s of two cores, measured with nanochat's d2 and d4 in float32
KEPT_FRACTION = {
    "flat": 1.0,
    "bestfit": 0.65,
    "bestfit_split": 0.985,
}  # of the tokens read; best-fit cropping at 2,048 is nanochat's figure, splitting measured (LOG.md)
# From the start of a process to the end of its first step, compilation included: d12 and d20 on one H200.
START_HOURS = 75 / 3600
TOKENIZER_CHARACTERS_PER_HOUR = 37e6 * 3600  # two cores, from parquet (LOG.md)
# nanochat's RL of the classic d20: 1.5 hours on eight H100s for 467 steps of 256 answers, here as FLOPs at
# the GPU's peak for each sampled token and each FLOP of a training token.
RL_PEAK_FLOPS = 1.5 * 3600 * 8 * 989e12 / (467 * 256 * 256) / 3.491758e9
EPOCH_CONTEXT = 2_048  # of the rows in which the recipes' epoch_tokens are counted
HEADROOM = 0.95  # of a GPU's memory that a micro-batch may fill: CUDA itself and fragments take some
GPUS = ("A10G", "A100-40GB", "L40S", "H100", "H200")  # for which a plan says what fits: 22 to 140 GiB
RL_ROWS = 8  # answers scored at once, nanochat's
FAST_DEV_STEPS = 3
FAST_DEV_ROWS = 2  # of one device


class Step(TypedDict):
    """One optimizer step: `rows` of `context` tokens, on `ranks`: `accumulation` × `micro_batch` rows."""

    total_batch: int
    rows: int
    ranks: int
    micro_batch: int
    accumulation: int


def derive(job: Job, stage: str, *, dataset: Any, tokenizer: str) -> Plan:
    """The plan of one stage; ValueError where its settings cannot be met.

    `dataset` is what the job's data node builds; `tokenizer` is the name of the tokenizer's folder.
    """
    head = {"format": 1, "run": job["run"], "stage": stage, "data": dataset.name, "tokenizer": tokenizer}
    settings: Any = job["stage"][stage]
    refuse_below_one(
        {
            "model.context": job["model"]["context"],
            "cluster.devices": job["cluster"]["devices"],
            "cluster.nodes": job["cluster"]["nodes"],
            f"stage.{stage}.max_steps": settings.get("max_steps"),
        }
    )
    if stage == "tokenizer":
        duration = settings["max_chars"] / TOKENIZER_CHARACTERS_PER_HOUR
        return {
            **head,
            **settings,
            "hours": {"gpu": "cpu", "hours": duration, "total_hours": duration},
            **shards(dataset, dataset.shards_with(settings["max_chars"])),
        }
    gpu = job["cluster"]["gpu"] or "cpu"
    if job["precision"] == "fp8" and not multiplies_in_fp8(gpu):
        raise ValueError(f"precision=fp8 needs an NVIDIA GPU from Ada on; this is {gpu}: give precision=bf16")
    derivation: dict[str, Callable[..., Plan]] = {"base": derive_base, "rl": derive_rl}
    return {**head, **derivation.get(stage, derive_finetuning)(job, stage=stage, dataset=dataset)}


def derive_base(job: Job, *, stage: str, dataset: Any) -> Plan:
    """Base pretraining: horizon, batch, learning rates, evaluation, hours, shards."""
    settings, recipe = job["stage"]["base"], job["recipe"]
    gpt = gpt_hyperparameters(job)
    ratio = (
        recipe["scaling"]["target_ratio"] if settings["target_ratio"] is None else settings["target_ratio"]
    )
    total_batch = base_batch(job, gpt) if settings["total_batch"] is None else settings["total_batch"]
    step = batch(job, gpt, total_batch, wish=settings["micro_batch"])
    num_steps = scaling.steps_from_horizon(
        batch=step["total_batch"],
        max_steps=FAST_DEV_STEPS if job["fast_dev_run"] else settings["max_steps"],
        target_flops=settings["target_flops"],
        target_ratio=ratio,
        flops_per_token=flops_per_token(gpt),
        counted_parameters=counted_parameters(job, gpt),
    )
    tokens = num_steps * step["total_batch"]
    kept_fraction = KEPT_FRACTION[recipe["packing"]]
    return {
        **sizes(gpt),
        **step,
        "num_steps": num_steps,
        "tokens": tokens,
        "counted_parameters": counted_parameters(job, gpt),
        "tokens_per_parameter": tokens / counted_parameters(job, gpt),
        "flops": tokens * flops_per_token(gpt),
        "packing": recipe["packing"],
        "schedule": recipe["schedule"],
        "groups": scaled_groups(job, gpt, step["total_batch"], lr_scale=settings["lr_scale"]),
        **(watched := watching(job, settings, recipe["base"])),
        "hours": hours(
            job, tokens * flops_per_token(gpt), evaluation=evaluation_flops(gpt, watched, num_steps)
        ),
        "memory": memory(job, gpt, step),
        **shards(dataset, dataset.shards_needed(tokens, kept_fraction=kept_fraction)),
    }


def derive_finetuning(job: Job, *, stage: str, dataset: Any) -> Plan:
    """mid and sft: one epoch of the mixture unless max_steps says otherwise; hours by the published steps."""
    settings, defaults = job["stage"][stage], job["recipe"][stage]
    gpt = gpt_hyperparameters(job)
    total_batch = settings["total_batch"]
    if total_batch is None:
        total_batch = defaults["total_batch"] or base_batch(job, gpt)
    step = batch(job, gpt, total_batch, wish=settings["micro_batch"])
    num_steps = FAST_DEV_STEPS if job["fast_dev_run"] else settings["max_steps"]
    expected = num_steps or epoch_steps(job, defaults, step)
    flops = expected * step["total_batch"] * flops_per_token(gpt) if expected else None
    lr_scale = settings["lr_scale"] if settings["lr_scale"] is not None else defaults["lr_scale"]
    return {
        **sizes(gpt),
        **step,
        "num_steps": num_steps,
        "expected_steps": expected,
        "flops": flops,
        "packing": defaults["packing"],
        "schedule": defaults["schedule"],
        "warm_start": defaults["warm_start"],
        "groups": scaled_groups(job, gpt, step["total_batch"], lr_scale=lr_scale),
        **(watched := watching(job, settings, defaults)),
        "hours": hours(job, flops, evaluation=evaluation_flops(gpt, watched, expected or 0)),
        "memory": memory(job, gpt, step),
    }


def derive_rl(job: Job, *, stage: str, dataset: Any) -> Plan:
    """Reinforcement learning: `questions` a step over all ranks, `samples` answers to each."""
    settings, defaults = job["stage"]["rl"], job["recipe"]["rl"]
    gpt = gpt_hyperparameters(job)
    names = (
        "lr_scale",
        "questions",
        "samples",
        "temperature",
        "top_k",
        "max_new_tokens",
        "eval_every",
        "save_every",
    )
    chosen: dict[str, Any] = {
        name: defaults[name] if settings[name] is None else settings[name] for name in names
    }
    counted = ("questions", "eval_every", "save_every")
    refuse_below_one({f"stage.rl.{name}": chosen[name] for name in counted})
    check_sampling(chosen, context=gpt["context"])
    chosen["top_k"] = chosen["top_k"] or None  # 0: from the whole vocabulary, as in the chat
    ranks = num_ranks(job)
    if chosen["questions"] % ranks:
        raise ValueError(multiple("stage.rl.questions", chosen["questions"], unit=ranks, what="devices"))
    num_steps = FAST_DEV_STEPS if job["fast_dev_run"] else settings["max_steps"]
    known = settings["task"] in (None, defaults["task"]) and job["recipe"]["mirror"] == "hub"
    expected = num_steps or (defaults["epoch_questions"] // chosen["questions"] if known else None)
    answer_tokens = chosen["questions"] * chosen["samples"] * chosen["max_new_tokens"]
    return {
        **sizes(gpt),
        "ranks": ranks,
        "num_steps": num_steps,
        "expected_steps": expected,
        **chosen,
        "micro_batch": RL_ROWS if settings["micro_batch"] in (None, "auto") else settings["micro_batch"],
        "task": settings["task"] or defaults["task"],
        "validation": settings["validation"] or defaults["validation"],
        "schedule": defaults["schedule"],
        "warm_start": defaults["warm_start"],
        "groups": scaled_groups(job, gpt, scaling.REFERENCE_BATCH, lr_scale=chosen["lr_scale"]),
        "hours": rl_hours(job, gpt, tokens=expected * answer_tokens if expected else None),
    }


def check_sampling(rl: Plan, *, context: int) -> None:
    """ValueError for answers that can't be drawn, or from which nothing could be learned."""
    allowed = {
        "samples": (rl["samples"] >= 2, "2 or more: answers to a question are compared with each other"),
        "temperature": (0 < rl["temperature"] < math.inf, "above 0, where answers to a question differ"),
        "top_k": (rl["top_k"] >= 0, "0 (from the whole vocabulary) or more"),
        "max_new_tokens": (1 <= rl["max_new_tokens"] <= context, f"1 to the context's {context:,}"),
    }
    for name, (right, what) in allowed.items():
        if not right:
            raise ValueError(f"stage.rl.{name} is {rl[name]}; allowed: {what}")


def epoch_steps(job: Job, defaults: FinetuneDefaults, step: Step) -> int | None:
    """About how many steps an epoch of the recipe's mixture has; None for others, whose stage will count."""
    if defaults["epoch_tokens"] is None or job["recipe"]["mirror"] != "hub":
        return None
    # A conversation a row takes as many rows of any context
    row = EPOCH_CONTEXT if defaults["packing"] == "single" else job["model"]["context"]
    return -(-defaults["epoch_tokens"] // (step["rows"] * row))


def refuse_below_one(counts: Mapping[str, int | None]) -> None:
    for name, value in counts.items():
        if value is not None and value < 1:
            raise ValueError(f"{name} is {value}; it must be 1 or more")


def shards(dataset: Any, num_shards: int) -> Plan:
    """How many train shards a stage reads, and about how much they and the held-out one are to download."""
    gigabytes = (num_shards + 1) * dataset.bytes_per_shard / 1e9
    return {"shards": num_shards, **({"download_gigabytes": round(gigabytes, 1)} if gigabytes else {})}


def gpt_hyperparameters(job: Job, depth: int | None = None) -> dict[str, Any]:
    """The arguments of the GPT's constructor; with `depth`, those of that depth at its own default size."""
    model, recipe = job["model"], job["recipe"]
    sizing = recipe["scaling"]["sizing"]
    flags = {key: value for key, value in recipe["gpt"].items() if key != "_target_"}
    shared = {"vocab_size": job["stage"]["tokenizer"]["vocab_size"], "context": model["context"], **flags}
    if depth is not None or (model["width"] is None and model["heads"] is None):
        size = size_from_depth(depth or model["depth"], sizing=sizing)
        width, heads = size.width, size.heads
    else:
        width = model["width"] or 64 * model["depth"]
        heads = model["heads"] or -(-width // 128)
    if width < 1 or heads < 1 or width % heads or width // heads % 2:
        raise ValueError(
            f"model.width={width} does not divide into model.heads={heads} of an even size; "
            f"try model.width={2 * heads * max(1, round(width / 2 / heads))}"
        )
    kv_heads = heads if depth is not None or model["kv_heads"] is None else model["kv_heads"]
    if kv_heads < 1 or heads % kv_heads:
        divisors = ", ".join(str(one) for one in range(1, heads + 1) if heads % one == 0)
        raise ValueError(
            f"model.kv_heads={kv_heads} does not divide {heads} heads; it must be one of {divisors}"
        )
    return {"depth": depth or model["depth"], "width": width, "heads": heads, "kv_heads": kv_heads, **shared}


def sizes(gpt: dict[str, Any]) -> Plan:
    counts = parameter_counts(gpt)
    return {
        "gpt": gpt,
        "parameters": counts,
        "num_parameters": sum(counts.values()),
        "flops_per_token": flops_per_token(gpt),
    }


def counted_parameters(job: Job, gpt: dict[str, Any]) -> int:
    """The parameters that the recipe's tokens-per-parameter ratio counts."""
    counts = parameter_counts(gpt)
    if job["recipe"]["scaling"]["ratio_of"] == "all":
        return sum(counts.values())
    return counts["matrix"] + counts["unembedding"]


def base_batch(job: Job, gpt: dict[str, Any]) -> int:
    """Tokens of a base step: fixed, or grown with the horizon relative to d12's."""
    if job["recipe"]["scaling"]["batch"] == "fixed":
        return scaling.REFERENCE_BATCH
    reference = gpt_hyperparameters(job, depth=12)
    return scaling.batch_from_horizon(counted_parameters(job, gpt), counted_parameters(job, reference))


def batch(job: Job, gpt: dict[str, Any], total_batch: int, *, wish: int | Literal["auto"] | None) -> Step:
    """Rows, ranks and accumulation of a step of `total_batch` tokens; ValueError names what fits.

    `wish` is the micro-batch that was asked for; null and auto (before anything was tried) are derived.
    """
    context, ranks = job["model"]["context"], num_ranks(job)
    micro_batch = None if wish == "auto" else wish
    if job["fast_dev_run"]:
        total_batch, micro_batch = FAST_DEV_ROWS * ranks * context, FAST_DEV_ROWS
    if total_batch < 1 or total_batch % (context * ranks):
        what = f"context × devices ({context:,} × {ranks})"
        raise ValueError(multiple("total_batch", total_batch, unit=context * ranks, what=what))
    rows = total_batch // context
    of_a_rank = rows // ranks
    choices = divisors(of_a_rank)
    if micro_batch is None:
        most = most_rows(job, gpt)
        micro_batch = max(one for one in choices if one <= most)
    if micro_batch not in choices:
        nearest = min(choices, key=lambda one: abs(one - (micro_batch or 1)))
        raise ValueError(
            f"micro_batch ({micro_batch} rows) must divide the {of_a_rank} rows of a device "
            f"(total_batch {total_batch:,} / {context:,} / {ranks} devices); try micro_batch={nearest}"
        )
    return Step(
        total_batch=total_batch,
        rows=rows,
        ranks=ranks,
        micro_batch=micro_batch,
        accumulation=of_a_rank // micro_batch,
    )


def num_ranks(job: Job) -> int:
    return job["cluster"]["devices"] * job["cluster"]["nodes"]


def divisors(number: int) -> list[int]:
    return [one for one in range(1, number + 1) if number % one == 0]


def multiple(name: str, value: int, *, unit: int, what: str) -> str:
    below, above = value // unit * unit, (value // unit + 1) * unit
    nearest = [f"{one:,}" for one in (below, above) if one > 0]
    return f"{name} ({value:,}) must be a multiple of {what} = {unit:,}; try {' or '.join(nearest)}"


def most_rows(job: Job, gpt: dict[str, Any]) -> int:
    """Rows of a micro-batch: 32, 16 or 8 of 2,048 tokens (nanochat's, for 80 GB) or the fewer that fit."""
    depth, context, gpu = job["model"]["depth"], job["model"]["context"], job["cluster"]["gpu"] or "cpu"
    tokens = 2_048 * (32 if depth <= 20 else 16 if depth <= 26 else 8)
    if gpu == "cpu":
        tokens = 8_192
    most = max(1, tokens // context)
    return max((one for one in range(1, most + 1) if fits(job, gpt, one, gpu=gpu) is not False), default=1)


def memory(job: Job, gpt: dict[str, Any], step: Step) -> dict[str, Any] | None:
    """Peak GiB of a GPU by part, what it has, and the largest micro-batch of this step for each of GPUS.

    None on a CPU. `fits` is None for a GPU whose memory we don't know.
    """
    gpu = job["cluster"]["gpu"] or "cpu"
    if gpu == "cpu":
        return None
    choices = divisors(step["rows"] // step["ranks"])
    largest = {name: [one for one in choices if fits(job, gpt, one, gpu=name)] for name in GPUS}
    return {
        "gib": peak_memory(job, gpt, step["micro_batch"], gpu=gpu),
        "gpu_gib": gpu_memory_gib(gpu),
        "fits": fits(job, gpt, step["micro_batch"], gpu=gpu),
        "largest_micro_batch": {name: max(found, default=0) for name, found in largest.items()},
    }


def peak_memory(job: Job, gpt: dict[str, Any], micro_batch: int, *, gpu: str) -> dict[str, float]:
    """accounting.peak_memory_gib of the job's ranks and precision on a GPU."""
    compute_bytes = 4 if job["precision"] == "fp32" else 2
    return peak_memory_gib(
        gpt,
        micro_batch=micro_batch,
        ranks=num_ranks(job),
        compute_bytes=compute_bytes,
        activation_bytes=activation_bytes(gpu, job["precision"]),
    )


def fits(job: Job, gpt: dict[str, Any], micro_batch: int, *, gpu: str) -> bool | None:
    """Whether so many rows leave a GPU its headroom; None if nobody knows its memory."""
    available = gpu_memory_gib(gpu)
    if available is None:
        return None
    return peak_memory(job, gpt, micro_batch, gpu=gpu)["peak"] <= HEADROOM * available


def scaled_groups(
    job: Job, gpt: dict[str, Any], total_batch: int, *, lr_scale: float
) -> dict[str, dict[str, Any]]:
    """Final optimizer settings by role: learning rates and decay carried from the reference to this size."""
    counts = parameter_counts(gpt)
    missing = sorted(counts.keys() - job["recipe"]["groups"].keys())
    if missing:
        raise ValueError(
            f"recipe.groups has no settings for {', '.join(missing)}; add recipe.groups.{missing[0]}"
        )
    return {
        role: scaled_group(job, group, gpt, total_batch, lr_scale=lr_scale)
        for role, group in job["recipe"]["groups"].items()
        if role in counts
    }


def scaled_group(
    job: Job, group: Group, gpt: dict[str, Any], total_batch: int, *, lr_scale: float
) -> dict[str, Any]:
    lr, decay = group["lr"] * lr_scale, group["weight_decay"]
    if group["width_scaled"]:
        lr *= scaling.lr_factor_from_width(gpt["width"])
    if group["batch_scaled"]:
        lr *= scaling.lr_factor_from_batch(total_batch)
    if group["kind"] == "muon" and job["recipe"]["scaling"]["batch"] == "horizon":
        reference = counted_parameters(job, gpt_hyperparameters(job, depth=12))
        decay *= scaling.weight_decay_factor(
            total_batch, tokens=counted_parameters(job, gpt), reference_tokens=reference
        )
    return {key: group[key] for key in group if not key.endswith("_scaled")} | {
        "lr": lr,
        "weight_decay": decay,
    }


def watching(job: Job, settings: Any, defaults: Any) -> Plan:
    """How often a stage is evaluated, saved and sampled, in steps, and on how many validation rows."""
    chosen = {
        name: settings[name] if settings[name] is not None else defaults[name]
        for name in ("eval_every", "save_every", "sample_every", "eval_tokens")
    }
    for name, value in chosen.items():
        if value < 1:
            raise ValueError(
                f"{name} is {value}; it must be 1 or more, or null for the recipe's {defaults[name]:,}"
            )
    rows = FAST_DEV_ROWS if job["fast_dev_run"] else max(1, chosen["eval_tokens"] // job["model"]["context"])
    return {**chosen, "eval_rows": rows}


def hours(job: Job, flops: float | None, *, evaluation: float = 0) -> dict[str, Any]:
    """Hours on the job's cluster and what they assume; None where the work or the GPU's peak is unknown.

    `evaluation` is FLOPs too. Chat tasks are not counted (half an hour of nanochat's classic d20 on 8 H100).
    """
    gpu, devices = job["cluster"]["gpu"] or "cpu", num_ranks(job)
    depth = job["model"]["depth"]
    mfu = None if gpu == "cpu" else utilisation(gpu, depth)
    if mfu and job["precision"] == "fp8":
        mfu = round(mfu * interpolated(FP8_SPEED, depth), 3)
    peak = peak_bf16_flops(gpu)
    speed = CPU_FLOPS if mfu is None else mfu * devices * peak if peak else None
    known = bool(flops and speed)
    parts = {
        "hours": flops / speed / 3600 if flops and speed else None,
        "evaluation_hours": evaluation / speed / 3600 if known and speed else None,
        "start_hours": 0.0 if gpu == "cpu" else START_HOURS,
    }
    total = sum(part or 0.0 for part in parts.values()) if known else None
    return {"gpu": gpu, "devices": devices, "mfu": mfu, **parts, "total_hours": total}


def evaluation_flops(gpt: dict[str, Any], watched: Plan, num_steps: int) -> float:
    """Bits per byte every so often and after the last step: forward passes, a third of training each."""
    times = math.ceil(num_steps / watched["eval_every"])
    return times * watched["eval_rows"] * gpt["context"] * flops_per_token(gpt) / 3


def rl_hours(job: Job, gpt: dict[str, Any], *, tokens: int | None) -> dict[str, Any]:
    """Hours to sample and learn so many tokens, scaled from nanochat's; unknown on a CPU."""
    found = {**hours(job, None), "mfu": None}
    peak = peak_bf16_flops(found["gpu"])
    if peak and tokens:
        seconds = RL_PEAK_FLOPS * tokens * flops_per_token(gpt) / (peak * found["devices"])
        found["hours"] = seconds / 3600
        found["total_hours"] = found["hours"] + found["start_hours"]
    return found


def utilisation(gpu: str, depth: int) -> float:
    """MFU of a depth on a GPU, against its bf16 peak."""
    known = next((table for name, table in MFU.items() if name in gpu.upper()), {0: ASSUMED_MFU})
    return interpolated(known, depth)


def interpolated(known: dict[int, float], depth: int) -> float:
    """Between what is known, constant beyond it."""
    below = max((one for one in known if one <= depth), default=min(known))
    above = min((one for one in known if one >= depth), default=max(known))
    if below == above:
        return known[below]
    if depth < below or depth > above:
        return known[below] if depth < below else known[above]
    share = (depth - below) / (above - below)
    return round(known[below] + share * (known[above] - known[below]), 3)
