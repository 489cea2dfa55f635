"""Arithmetic that several stages share: model size, batch, rates, and how often a stage is watched.

A plan is a frozen dataclass whose `asdict` is plan.json. Each class adds fields to the one before:
StagePlan → ModelPlan → BatchPlan → TextPlan → BasePlan, FinetunePlan. RLPlan is a ModelPlan: it has no batch.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, NoReturn, cast

from nanolit.config.schema import Job, Node, StageName, Target, TextStage, Watching
from nanolit.machine.numbers import divisors
from nanolit.model.accounting import Hyperparameters, flops_per_token, parameter_counts, size_from_depth
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
    data: str = ""  # the corpus, where the stage reads one
    tokenizer: str  # its name; a path where only the model that the stage begins from has it

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
    held_out_rows: int | None  # about; None: at least `eval_rows`, or not known
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
    """Return the model's part of a plan; ValueError for counts below 1, and sizes that don't divide."""
    cluster, steps = job["cluster"], cast(dict[str, Node], job["stage"])[head.stage]["max_steps"]
    counts = {f"cluster.{name}": cluster[name] for name in ("devices", "nodes")}
    counts |= {"model.context": job["model"]["context"], f"stage.{head.stage}.max_steps": steps}
    counts |= {"recipe.vocab_size": job["stage"]["tokenizer"]["vocab_size"]}
    counts |= {"recipe.gpt.vocab_multiple": job["recipe"]["gpt"].get("vocab_multiple")}
    refuse_below_one(counts)
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
    model, shared = job["model"], sizeless(job)
    width, heads = model["width"], model["heads"]
    if width is None and heads is None:
        width, heads, _ = size_from_depth(model["depth"], sizing=job["recipe"]["scaling"]["sizing"])
    width = width or 64 * model["depth"]
    heads = heads or -(-width // 128)
    kv_heads = heads if model["kv_heads"] is None else model["kv_heads"]
    if min(width, heads, kv_heads) < 1 or width % heads or width // heads % 2 or heads % kv_heads:
        refuse_heads(width, heads, kv_heads)
    size = {"width": width, "heads": heads, "kv_heads": kv_heads}
    return cast(Hyperparameters, {"depth": model["depth"], **size, **shared})


def refuse_heads(width: int, heads: int, kv_heads: int) -> NoReturn:
    """ValueError for a width that does not divide into the heads, or heads that key-value heads don't."""
    if width < 1 or heads < 1 or width % heads or width // heads % 2:
        raise ValueError(
            f"model.width={width} does not divide into model.heads={heads} heads of an even size; "
            f"try model.width={2 * heads * max(1, round(width / 2 / heads))}"
        )
    allowed = ", ".join(map(str, divisors(heads)))
    raise ValueError(f"model.kv_heads={kv_heads} does not divide {heads} heads; it must be one of {allowed}")


def sizeless(job: Job) -> dict[str, object]:
    """Return the arguments of the GPT's constructor that don't depend on its depth."""
    flags = {key: value for key, value in job["recipe"]["gpt"].items() if key != "_target_"}
    return {
        "vocab_size": job["stage"]["tokenizer"]["vocab_size"],
        "context": job["model"]["context"],
        **flags,
    }


def plan_batch(
    job: Job,
    model: ModelPlan,
    settings: TextStage,
    *,
    total_batch: int | None,
    equal_rows: bool,
) -> BatchPlan:
    """Divide a step of `total_batch` tokens (None: by base's rule); ValueError names sizes that fit."""
    context, ranks, gpu = job["model"]["context"], num_ranks(job), job["cluster"]["gpu"] or "cpu"
    if job["fast_dev_run"]:
        total_batch = FAST_DEV_ROWS * ranks * context
    elif total_batch is None:
        total_batch = batch_of_base(job, model)
    if total_batch < 1 or total_batch % (context * ranks):
        what = f"context × devices ({context:,} × {ranks})"
        raise ValueError(multiple("total_batch", total_batch, unit=context * ranks, what=what))
    rows = total_batch // context
    micro_batch = choose_micro_batch(
        job, model, settings["micro_batch"], rows // ranks, equal_rows=equal_rows
    )
    return BatchPlan(
        **vars(model),
        total_batch=total_batch,
        rows=rows,
        ranks=ranks,
        micro_batch=micro_batch,
        accumulation=rows // ranks // micro_batch,
        memory=None if gpu == "cpu" else memory(job, model.gpt, micro_batch, rows=rows // ranks, gpu=gpu),
    )


def batch_of_base(job: Job, model: ModelPlan) -> int:
    """Return the tokens of a base step: fixed, or grown with the horizon relative to d12's."""
    if job["recipe"]["scaling"]["batch"] == "fixed":
        return scaling.REFERENCE_BATCH
    return scaling.batch_from_horizon(counted_parameters(job, model.parameters), reference_parameters(job))


def counted_parameters(job: Job, counts: Mapping[str, int]) -> int:
    """Return how many parameters the recipe's tokens-per-parameter ratio counts, of counts by role."""
    if job["recipe"]["scaling"]["ratio_of"] == "all":
        return sum(counts.values())
    return counts["matrix"] + counts["unembedding"]


def reference_parameters(job: Job) -> int:
    """Return the counted parameters of d12, from which batch and weight decay are scaled."""
    size = size_from_depth(12, sizing=job["recipe"]["scaling"]["sizing"])._asdict()
    gpt = cast(Hyperparameters, {"depth": 12, **size, **sizeless(job)})
    return counted_parameters(job, parameter_counts(gpt))


def choose_micro_batch(
    job: Job, model: ModelPlan, wish: int | str | None, rows: int, *, equal_rows: bool
) -> int:
    """Return how many of a device's `rows` are a micro-batch: as asked for, found by trying, or derived."""
    if job["fast_dev_run"]:
        return FAST_DEV_ROWS
    if isinstance(wish, int):
        if wish < 1 or rows % wish:
            raise ValueError(undivided(job, wish, rows))
        return wish
    most, choices = most_rows(job, model.gpt), divisors(rows)
    derived = max(choice for choice in choices if choice <= most)
    if not is_auto(job, model.stage):
        return derived
    return best_known(choices, derived, tried(job, model.gpt, equal_rows=equal_rows))


def undivided(job: Job, wish: int, rows: int) -> str:
    """Return the error for a micro-batch that does not divide the rows of a device."""
    context, ranks = job["model"]["context"], num_ranks(job)
    nearest = min(divisors(rows), key=lambda choice: abs(choice - wish))
    return (
        f"micro_batch ({wish} rows) must divide the {rows} rows per device "
        f"(total_batch {rows * ranks * context:,} / {context:,} / {ranks} devices); try micro_batch={nearest}"
    )


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
    job: Job, model: ModelPlan, total_batch: int, *, lr_scale: float
) -> dict[str, GroupSettings]:
    """Return the optimizer's final settings by role; ValueError for a role that the recipe leaves out."""
    groups = job["recipe"]["groups"]
    if missing := sorted(model.parameters.keys() - groups.keys()):
        raise ValueError(
            f"recipe.groups has no settings for {', '.join(missing)}; add recipe.groups.{missing[0]}"
        )
    plain = {
        role: cast(GroupSettings, {key: value for key, value in group.items() if not key.endswith("_scaled")})
        for role, group in groups.items()
    }
    for role, settings in plain.items():
        scaling.check_settings(role, settings)
    if lr_scale < 0:
        raise ValueError(f"stage.{model.stage}.lr_scale={lr_scale:g} is out of range; give 0 or more")
    by_horizon = 1.0  # of Muon's weight decay alone
    if job["recipe"]["scaling"]["batch"] == "horizon":
        tokens, reference = counted_parameters(job, model.parameters), reference_parameters(job)
        by_horizon = scaling.weight_decay_factor(total_batch, tokens=tokens, reference_tokens=reference)
    by_width = scaling.lr_factor_from_width(model.gpt["width"])
    by_batch = scaling.lr_factor_from_batch(total_batch)
    scaled: dict[str, GroupSettings] = {}
    for role, group in groups.items():
        if role not in model.parameters:
            continue
        lr = group["lr"] * lr_scale * (by_width if group["width_scaled"] else 1.0)
        lr *= by_batch if group["batch_scaled"] else 1.0
        decay = group["weight_decay"] * (by_horizon if group["kind"] == "muon" else 1.0)
        scaled[role] = {**plain[role], "lr": lr, "weight_decay": decay}
    return scaled


class Watched(Watching):
    eval_rows: int
    held_out_rows: int | None


def rows_of_text(num_bytes: float, gpt: Hyperparameters) -> int:
    """Return about how many rows the tokens of that much text fill, at least one."""
    # Bytes per token of the sample at vocabularies of 300, 512, 1,024, 4,096 and 16,384: 1.4, 2.0, 2.5, 3.3,
    # 4.0; by this line 1.5, 1.8, 2.3, 3.2, 4.1
    bytes_per_token = max(1.0, (math.log2(gpt["vocab_size"]) - 5) / 2.2)
    return max(1, round(num_bytes / bytes_per_token / gpt["context"]))


def watching(job: Job, settings: TextStage, defaults: Watching, *, held_out: int | None) -> Watched:
    """Return the stage's own `settings` where they are given, else the recipe's `defaults`.

    `held_out` is about how many rows there are to evaluate on, where that is known.
    """
    chosen: dict[str, int] = {}
    for name in ("eval_every", "save_every", "sample_every", "eval_tokens"):
        own = settings[name]
        chosen[name] = defaults[name] if own is None else own
        if chosen[name] < 1:
            allowed = f"1 or more, or null for the recipe's {defaults[name]:,}"
            raise ValueError(f"{name} is {chosen[name]}; it must be {allowed}")
    rows = FAST_DEV_ROWS if job["fast_dev_run"] else max(1, chosen["eval_tokens"] // job["model"]["context"])
    return Watched(**chosen, eval_rows=rows, held_out_rows=held_out if held_out and held_out < rows else None)


def evaluation_flops(model: ModelPlan, watched: Watched, num_steps: int) -> float:
    """Return the FLOPs of measuring bits per byte every `eval_every` steps and after the last.

    A forward pass takes a third of the FLOPs of training, which has a backward pass too.
    """
    rows = watched["held_out_rows"] or watched["eval_rows"]
    rows *= math.ceil(num_steps / watched["eval_every"])
    return rows * model.gpt["context"] * model.flops_per_token / 3
