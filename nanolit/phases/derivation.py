"""A resolved job to the plan of each stage: everything that `null` leaves to us, as numbers.

`nanolit.plan`, training and plan.json all use this. Pure arithmetic: importing it never imports torch.
"""

from collections.abc import Callable
from typing import Any, TypedDict

from nanolit.model.accounting import flops_per_token, parameter_counts, peak_bf16_flops, size_from_depth
from nanolit.optim import scaling
from nanolit.phases.job import Group, Job

Plan = dict[str, Any]

# Model FLOPs utilisation by depth, in bf16. H100: d20 (47.4–49 %), d24 (46.9–50.5 %), d32 (50.9 %) published
# with nanochat; the rest, and the H200, measured with nanochat of July 2026 on one GPU. A100: from the 6.6
# hours published for the classic d20 on eight.
MFU: dict[str, dict[int, float]] = {
    "H100": {8: 0.30, 12: 0.43, 20: 0.47, 24: 0.485, 32: 0.51},
    "H200": {8: 0.39, 12: 0.45, 20: 0.50, 24: 0.53},
    "A100": {20: 0.66},
}
ASSUMED_MFU = 0.40  # for any other GPU: not measured
CPU_FLOPS = 0.11e12  # FLOP/s of two cores, measured with nanochat's d2 and d4 in float32
KEPT_FRACTION = {
    "flat": 1.0,
    "bestfit": 0.65,
}  # of the tokens read; best-fit cropping at 2,048, nanochat's figure
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
    if stage == "tokenizer":
        settings = job["stage"]["tokenizer"]
        return {**head, **settings, **shards(dataset, dataset.shards_with(settings["max_chars"]))}
    derivation: dict[str, Callable[..., Plan]] = {"base": derive_base, "rl": derive_rl}
    return {**head, **derivation.get(stage, derive_finetuning)(job, stage=stage, dataset=dataset)}


def derive_base(job: Job, *, stage: str, dataset: Any) -> Plan:
    """Base pretraining: horizon, batch, learning rates, evaluation, hours, shards."""
    settings, recipe = job["stage"]["base"], job["recipe"]
    gpt = gpt_hyperparameters(job)
    ratio = settings["target_ratio"] or recipe["scaling"]["target_ratio"]
    step = batch(job, settings["total_batch"] or base_batch(job, gpt), micro_batch=settings["micro_batch"])
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
        **watching(job, settings, recipe["base"]),
        "hours": hours(job, tokens * flops_per_token(gpt)),
        **shards(dataset, dataset.shards_needed(tokens, kept_fraction=kept_fraction)),
    }


def derive_finetuning(job: Job, *, stage: str, dataset: Any) -> Plan:
    """mid and sft: one epoch of the mixture unless max_steps says otherwise; hours by the published steps."""
    settings, defaults = job["stage"][stage], job["recipe"][stage]
    gpt = gpt_hyperparameters(job)
    wish = settings["total_batch"] or defaults["total_batch"] or base_batch(job, gpt)
    step = batch(job, wish, micro_batch=settings["micro_batch"])
    num_steps = FAST_DEV_STEPS if job["fast_dev_run"] else settings["max_steps"]
    expected = num_steps or defaults["epoch_steps"]
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
        **watching(job, settings, defaults),
        "hours": hours(job, flops) if flops else None,
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
    ranks = job["cluster"]["devices"] * job["cluster"]["nodes"]
    if chosen["questions"] % ranks:
        raise ValueError(multiple("stage.rl.questions", chosen["questions"], unit=ranks, what="devices"))
    num_steps = FAST_DEV_STEPS if job["fast_dev_run"] else settings["max_steps"]
    return {
        **sizes(gpt),
        "ranks": ranks,
        "num_steps": num_steps,
        "expected_steps": num_steps or defaults["epoch_steps"],
        **chosen,
        "micro_batch": settings["micro_batch"] or RL_ROWS,
        "task": settings["task"] or defaults["task"],
        "validation": settings["validation"] or defaults["validation"],
        "schedule": defaults["schedule"],
        "warm_start": defaults["warm_start"],
        "groups": scaled_groups(job, gpt, scaling.REFERENCE_BATCH, lr_scale=chosen["lr_scale"]),
    }


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


def batch(job: Job, total_batch: int, *, micro_batch: int | None) -> Step:
    """Rows, ranks and accumulation of a step of `total_batch` tokens; ValueError names what fits."""
    context, ranks = job["model"]["context"], job["cluster"]["devices"] * job["cluster"]["nodes"]
    if job["fast_dev_run"]:
        total_batch, micro_batch = FAST_DEV_ROWS * ranks * context, FAST_DEV_ROWS
    if total_batch < 1 or total_batch % (context * ranks):
        what = f"context × devices ({context:,} × {ranks})"
        raise ValueError(multiple("total_batch", total_batch, unit=context * ranks, what=what))
    rows = total_batch // context
    of_a_rank = rows // ranks
    most = most_rows(job)
    if micro_batch is None:
        micro_batch = max(one for one in range(1, min(most, of_a_rank) + 1) if of_a_rank % one == 0)
    if micro_batch < 1 or of_a_rank % micro_batch:
        divisors = [one for one in range(1, of_a_rank + 1) if of_a_rank % one == 0]
        nearest = min(divisors, key=lambda one: abs(one - (micro_batch or 1)))
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


def multiple(name: str, value: int, *, unit: int, what: str) -> str:
    below, above = value // unit * unit, (value // unit + 1) * unit
    nearest = [f"{one:,}" for one in (below, above) if one > 0]
    return f"{name} ({value:,}) must be a multiple of {what} = {unit:,}; try {' or '.join(nearest)}"


def most_rows(job: Job) -> int:
    """Rows of a micro-batch that fit: 32, 16 or 8 of 2,048 tokens (nanochat's, for 80 GB); fewer on a CPU."""
    depth, context = job["model"]["depth"], job["model"]["context"]
    tokens = 2_048 * (32 if depth <= 20 else 16 if depth <= 26 else 8)
    if job["cluster"]["gpu"] == "cpu":
        tokens = 8_192
    return max(1, tokens // context)


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


def hours(job: Job, flops: float) -> dict[str, Any]:
    """Hours on the job's cluster and what they assume; `hours` is None for a GPU whose peak we don't know."""
    gpu, devices = job["cluster"]["gpu"] or "cpu", job["cluster"]["devices"] * job["cluster"]["nodes"]
    if gpu == "cpu":
        return {"gpu": gpu, "devices": devices, "mfu": None, "hours": flops / CPU_FLOPS / 3600}
    mfu, peak = utilisation(gpu, job["model"]["depth"]), peak_bf16_flops(gpu)
    return {
        "gpu": gpu,
        "devices": devices,
        "mfu": mfu,
        "hours": flops / (mfu * peak * devices) / 3600 if peak else None,
    }


def utilisation(gpu: str, depth: int) -> float:
    """MFU of a depth on a GPU: interpolated between what is known, constant beyond it."""
    known = next((table for name, table in MFU.items() if name in gpu.upper()), {0: ASSUMED_MFU})
    below = max((one for one in known if one <= depth), default=min(known))
    above = min((one for one in known if one >= depth), default=max(known))
    if below == above:
        return known[below]
    if depth < below or depth > above:
        return known[below] if depth < below else known[above]
    share = (depth - below) / (above - below)
    return round(known[below] + share * (known[above] - known[below]), 3)
