"""Arithmetic that several stages share: model size, batch, rates, and how often a stage is watched.

A plan is a frozen dataclass whose `asdict` is plan.json. Each class adds fields to the one before:
StagePlan → ModelPlan → BatchPlan → TextPlan → BasePlan, FinetunePlan. RLPlan is a ModelPlan: it has no batch.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, cast

from nanolit.config.schema import Group, Job, Node, StageName, Target, TextStage, Watching
from nanolit.machine.numbers import divisors
from nanolit.model.accounting import Hyperparameters, Size, flops_per_token, parameter_counts, size_from_depth
from nanolit.optim import scaling
from nanolit.optim.scaling import GroupSettings
from nanolit.planning.costs import Cost, Hours, Memory, fits, memory, num_ranks
from nanolit.planning.micro_batch import best_known, tried

FAST_DEV_STEPS = 3
FAST_DEV_ROWS = 2  # of one device


@dataclass(frozen=True, kw_only=True)
class StagePlan:
    """The first fields of plan.json: which stage of which run, and the folders of what it reads."""

    format: int = 1
    run: str
    stage: StageName
    data: str
    tokenizer: str

    chats: ClassVar[bool] = False  # mid, sft and rl learn from tasks, and are asked some at their end


@dataclass(frozen=True, kw_only=True)
class ModelPlan(StagePlan):
    """`gpt` holds the arguments of the GPT's constructor, `parameters` counts by role."""

    gpt: Hyperparameters
    parameters: dict[str, int]
    num_parameters: int
    flops_per_token: int


@dataclass(frozen=True, kw_only=True)
class BatchPlan(ModelPlan):
    """A step of `total_batch` tokens is `rows` = ranks × accumulation × micro_batch rows of a context."""

    total_batch: int
    rows: int
    ranks: int
    micro_batch: int
    accumulation: int
    memory: Memory | None

    @property
    def micro_batches(self) -> list[int]:
        """The micro-batches that divide a rank's rows of a step, in rising order."""
        return divisors(self.rows // self.ranks)


@dataclass(frozen=True, kw_only=True)
class TextPlan(BatchPlan):
    """The plan of a stage that learns text which is there already: base, mid or sft."""

    schedule: Target
    groups: dict[str, GroupSettings]
    eval_every: int
    save_every: int
    sample_every: int
    eval_tokens: int
    eval_rows: int
    hours: Hours
    cost: Cost | None = None

    allows_fp8: ClassVar[bool] = True


def refuse_below_one(counts: Mapping[str, int | None]) -> None:
    """Raise ValueError for the first of the named counts that is below 1; None is no count."""
    for name, value in counts.items():
        if value is not None and value < 1:
            raise ValueError(f"{name} is {value}; it must be 1 or more")


def multiple(name: str, value: int, *, unit: int, what: str) -> str:
    """Return the error for a value that is not a multiple of `unit`, with the nearest that are."""
    below, above = value // unit * unit, (value // unit + 1) * unit
    nearest = [f"{candidate:,}" for candidate in (below, above) if candidate > 0]
    return f"{name} ({value:,}) must be a multiple of {what} = {unit:,}; try {' or '.join(nearest)}"


def plan_model(job: Job, head: StagePlan) -> ModelPlan:
    gpt = gpt_hyperparameters(job)
    counts = parameter_counts(gpt)
    return ModelPlan(
        **vars(head),
        gpt=gpt,
        parameters=counts,
        num_parameters=sum(counts.values()),
        flops_per_token=flops_per_token(gpt),
    )


def gpt_hyperparameters(job: Job) -> Hyperparameters:
    """Return the arguments of the GPT's constructor.

    ValueError when width, heads and key-value heads do not divide, with values that do.
    """
    model = job["model"]
    width, heads = model["width"], model["heads"]
    if width is None and heads is None:
        width, heads, _ = size_from_depth(model["depth"], sizing=job["recipe"]["scaling"]["sizing"])
    width = width or 64 * model["depth"]
    heads = heads or -(-width // 128)
    if width < 1 or heads < 1 or width % heads or width // heads % 2:
        raise ValueError(
            f"model.width={width} does not divide into model.heads={heads} of an even size; "
            f"try model.width={2 * heads * max(1, round(width / 2 / heads))}"
        )
    kv_heads = heads if model["kv_heads"] is None else model["kv_heads"]
    if kv_heads < 1 or heads % kv_heads:
        allowed = ", ".join(map(str, divisors(heads)))
        raise ValueError(
            f"model.kv_heads={kv_heads} does not divide {heads} heads; it must be one of {allowed}"
        )
    return of_size(job, model["depth"], Size(width, heads, kv_heads))


def of_size(job: Job, depth: int, size: Size) -> Hyperparameters:
    flags = {key: value for key, value in job["recipe"]["gpt"].items() if key != "_target_"}
    shared = {"vocab_size": job["stage"]["tokenizer"]["vocab_size"], "context": job["model"]["context"]}
    return cast(Hyperparameters, {"depth": depth, **size._asdict(), **shared, **flags})


def plan_batch(
    job: Job,
    model: ModelPlan,
    settings: TextStage,
    *,
    total_batch: int | None,
    equal_rows: bool,
) -> BatchPlan:
    """Deal out a step of `total_batch` tokens (None: as base's rule has it); ValueError names what fits."""
    context, ranks = job["model"]["context"], num_ranks(job)
    if job["fast_dev_run"]:
        total_batch = FAST_DEV_ROWS * ranks * context
    elif total_batch is None:
        total_batch = batch_of_base(job, model.gpt)
    if total_batch < 1 or total_batch % (context * ranks):
        unit, what = context * ranks, f"context × devices ({context:,} × {ranks})"
        raise ValueError(multiple("total_batch", total_batch, unit=unit, what=what))
    rows = total_batch // context
    choices = divisors(rows // ranks)
    micro_batch = choose_micro_batch(job, model, settings["micro_batch"], choices, equal_rows=equal_rows)
    if micro_batch not in choices:
        nearest = min(choices, key=lambda choice: abs(choice - micro_batch))
        raise ValueError(
            f"micro_batch ({micro_batch} rows) must divide the {rows // ranks} rows of a device "
            f"(total_batch {total_batch:,} / {context:,} / {ranks} devices); try micro_batch={nearest}"
        )
    return BatchPlan(
        **vars(model),
        total_batch=total_batch,
        rows=rows,
        ranks=ranks,
        micro_batch=micro_batch,
        accumulation=rows // ranks // micro_batch,
        memory=memory(job, model.gpt, micro_batch, choices=choices),
    )


def batch_of_base(job: Job, gpt: Hyperparameters) -> int:
    """Return the tokens of a base step: fixed, or grown with the horizon relative to d12's."""
    if job["recipe"]["scaling"]["batch"] == "fixed":
        return scaling.REFERENCE_BATCH
    return scaling.batch_from_horizon(counted_parameters(job, gpt), reference_parameters(job))


def counted_parameters(job: Job, gpt: Hyperparameters) -> int:
    """Return how many parameters the recipe's tokens-per-parameter ratio counts."""
    counts = parameter_counts(gpt)
    if job["recipe"]["scaling"]["ratio_of"] == "all":
        return sum(counts.values())
    return counts["matrix"] + counts["unembedding"]


def reference_parameters(job: Job) -> int:
    """Return the counted parameters of d12, from which batch and weight decay are carried over."""
    size = size_from_depth(12, sizing=job["recipe"]["scaling"]["sizing"])
    return counted_parameters(job, of_size(job, 12, size))


def choose_micro_batch(
    job: Job, model: ModelPlan, wish: int | str | None, choices: list[int], *, equal_rows: bool
) -> int:
    """Return the rows of a micro-batch that were asked for, found by trying (auto), or derived."""
    if job["fast_dev_run"]:
        return FAST_DEV_ROWS
    if isinstance(wish, int):
        return wish
    most = most_rows(job, model.gpt)
    derived = max(choice for choice in choices if choice <= most)
    if not is_auto(job, model.stage):
        return derived
    return best_known(choices, derived, tried(job, model.gpt, equal_rows=equal_rows))


def most_rows(job: Job, gpt: Hyperparameters) -> int:
    """Return 32, 16 or 8 rows of 2,048 tokens (nanochat's choices for 80 GB), or the fewer that fit."""
    depth, context, gpu = job["model"]["depth"], job["model"]["context"], job["cluster"]["gpu"] or "cpu"
    tokens = 2_048 * (32 if depth <= 20 else 16 if depth <= 26 else 8)
    if gpu == "cpu":
        tokens = 8_192
    most = max(1, tokens // context)
    return max((rows for rows in range(1, most + 1) if fits(job, gpt, rows, gpu=gpu) is not False), default=1)


def is_auto(job: Job, stage: str) -> bool:
    """Return True if the micro-batch is to be tried; never on a CPU, in rl, or for three tiny steps."""
    wish, gpu = cast(dict[str, Node], job["stage"])[stage].get("micro_batch"), job["cluster"]["gpu"]
    return wish == "auto" and stage != "rl" and gpu != "cpu" and not job["fast_dev_run"]


def scaled_groups(
    job: Job, gpt: Hyperparameters, total_batch: int, *, lr_scale: float
) -> dict[str, GroupSettings]:
    """Return the optimizer's final settings by role; ValueError for a role that the recipe leaves out."""
    counts, groups = parameter_counts(gpt), job["recipe"]["groups"]
    if missing := sorted(counts.keys() - groups.keys()):
        raise ValueError(
            f"recipe.groups has no settings for {', '.join(missing)}; add recipe.groups.{missing[0]}"
        )
    return {
        role: scaled_group(job, group, gpt, total_batch, lr_scale=lr_scale)
        for role, group in groups.items()
        if role in counts
    }


def scaled_group(
    job: Job, group: Group, gpt: Hyperparameters, total_batch: int, *, lr_scale: float
) -> GroupSettings:
    """Return one role's settings; only Muon's weight decay follows the horizon."""
    lr, decay = group["lr"] * lr_scale, group["weight_decay"]
    if group["width_scaled"]:
        lr *= scaling.lr_factor_from_width(gpt["width"])
    if group["batch_scaled"]:
        lr *= scaling.lr_factor_from_batch(total_batch)
    if group["kind"] == "muon" and job["recipe"]["scaling"]["batch"] == "horizon":
        tokens, reference = counted_parameters(job, gpt), reference_parameters(job)
        decay *= scaling.weight_decay_factor(total_batch, tokens=tokens, reference_tokens=reference)
    settings = {key: value for key, value in group.items() if not key.endswith("_scaled")}
    return cast(GroupSettings, settings | {"lr": lr, "weight_decay": decay})


class Watched(Watching):
    eval_rows: int


def watching(job: Job, settings: TextStage, defaults: Watching) -> Watched:
    """Return the stage's own `settings` where they are given, else the recipe's `defaults`."""
    chosen: dict[str, int] = {}
    for name in ("eval_every", "save_every", "sample_every", "eval_tokens"):
        own = settings[name]
        chosen[name] = defaults[name] if own is None else own
        if chosen[name] < 1:
            allowed = f"1 or more, or null for the recipe's {defaults[name]:,}"
            raise ValueError(f"{name} is {chosen[name]}; it must be {allowed}")
    rows = FAST_DEV_ROWS if job["fast_dev_run"] else max(1, chosen["eval_tokens"] // job["model"]["context"])
    return Watched(**chosen, eval_rows=rows)


def evaluation_flops(model: ModelPlan, watched: Watched, num_steps: int) -> float:
    """Return the FLOPs of bits per byte, every so often and after the last step.

    A forward pass is a third of training's forward and backward.
    """
    rows = math.ceil(num_steps / watched["eval_every"]) * watched["eval_rows"]
    return rows * model.gpt["context"] * model.flops_per_token / 3
