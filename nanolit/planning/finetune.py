"""The plan of mid and sft: one epoch of the mixture unless max_steps says otherwise."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

from typing_extensions import TypedDict

from nanolit.config.names import releases_before
from nanolit.config.schema import (
    FinetuneDefaults,
    Job,
    StageName,
    Target,
    finetune_defaults,
    finetune_settings,
)
from nanolit.machine.paths import expanded, read_json, stage_folder
from nanolit.model.accounting import Hyperparameters
from nanolit.planning.base import Dataset
from nanolit.planning.costs import asked_at_the_end, hours, num_ranks
from nanolit.planning.sizes import (
    FAST_DEV_STEPS,
    StagePlan,
    TextPlan,
    evaluation_flops,
    plan_batch,
    plan_model,
    rows_of_text,
    scaled_groups,
    watching,
)

EPOCH_CONTEXT = 2_048  # of the rows in which the recipes' epoch_tokens are counted
# Of a file of chats: the part that is held out (tasks/jsonl.py), what a short chat takes, and about how much
# larger the text of a compressed one is
HELD_OUT_FRACTION = 0.05
CHAT_BYTES = 100
EXPANSION = {".gz": 4, ".zst": 4, ".parquet": 4}


@dataclass(frozen=True, kw_only=True)
class FinetunePlan(TextPlan):
    """`num_steps` is None for one epoch; `expected_steps` is about how many that is, where it is known."""

    num_steps: int | None
    expected_steps: int | None
    flops: float | None
    packing: Literal["flat", "single", "bestfit"]
    warm_start: bool

    chats: ClassVar[bool] = True

    @property
    def equal_rows(self) -> bool:
        return has_equal_rows(self.packing)

    def tasks(self, job: Job) -> list[Target]:
        """Return the targets of what the stage learns from and is validated on."""
        mixture = finetune_settings(job, self.stage)["mixture"]
        return [*mixture["sources"], *mixture["validation"]]


class Batch(TypedDict):
    """The part of a base's plan.json that is read here."""

    total_batch: int


def has_equal_rows(packing: str) -> bool:
    """Return False where a row is one conversation: then every micro-batch has its own length."""
    return packing != "single"


def plan_finetune(job: Job, head: StagePlan, *, dataset: Dataset) -> FinetunePlan:
    settings, defaults = finetune_settings(job, head.stage), finetune_defaults(job, head.stage)
    model = plan_model(job, head)
    total_batch = settings["total_batch"]
    if total_batch is None:
        total_batch = defaults["total_batch"] or batch_before(job, head.stage)
    equal_rows = has_equal_rows(defaults["packing"])
    step = plan_batch(job, model, settings, total_batch=total_batch, equal_rows=equal_rows)
    num_steps = FAST_DEV_STEPS if job["fast_dev_run"] else settings["max_steps"]
    expected = num_steps or epoch_steps(job, defaults, rows=step.rows)
    flops = expected * step.total_batch * model.flops_per_token if expected else None
    lr_scale = settings["lr_scale"] if settings["lr_scale"] is not None else defaults["lr_scale"]
    held_out = held_out_rows(settings["mixture"]["validation"], model.gpt, packing=defaults["packing"])
    watched = watching(job, settings, defaults, held_out=held_out)
    return FinetunePlan(
        **vars(step),
        num_steps=num_steps,
        expected_steps=expected,
        flops=flops,
        packing=defaults["packing"],
        schedule=defaults["schedule"],
        warm_start=defaults["warm_start"],
        groups=scaled_groups(job, model, step.total_batch, lr_scale=lr_scale),
        **watched,
        hours=hours(
            job,
            model.gpt,
            flops,
            evaluation=evaluation_flops(model, watched, expected or 0),
            answers=asked_at_the_end(job),
        ),
    )


def batch_before(job: Job, stage: StageName) -> int | None:
    """Return the tokens of a step of the base that the stage continues; None: by the rule.

    The rule also holds where the base's plan isn't known, or where its batch doesn't divide evenly here. A
    stage that has begun keeps its own batch, which may be of an older rule.
    """
    begun = stage_folder(job["root"], job["run"], stage) / "plan.json"
    if begun.is_file():
        return read_json(begun, Batch)["total_batch"]
    if "base" in job["stages"]:
        return job["stage"]["base"]["total_batch"]
    for path in (release.parent.parent / "base" / "plan.json" for release in releases_before(job)):
        if path.is_file():
            batch = read_json(path, Batch)["total_batch"]
            return None if batch % (job["model"]["context"] * num_ranks(job)) else batch
    return None


def held_out_rows(validation: Sequence[Target], gpt: Hyperparameters, *, packing: str) -> int | None:
    """Return about how many rows the held-out conversations fill; None if a source's number is not known."""
    counts = [rows_of_source(source, gpt, packing=packing) for source in validation]
    known = [count for count in counts if count is not None]
    return sum(known) if len(known) == len(counts) else None


def rows_of_source(source: Target, gpt: Hyperparameters, *, packing: str) -> int | None:
    """Return about how many rows a source fills: by the size of its file, and at most one a conversation."""
    # Flat rows cut conversations: a long one is in several
    bounds = [source[key] for key in ("size", "max_rows") if source.get(key) and packing != "flat"]
    path = expanded(source.get("path") or "")
    if source.get("source", ".") == "." and path.is_file():
        num_bytes = path.stat().st_size * EXPANSION.get(path.suffix.lower(), 1)
        num_bytes *= HELD_OUT_FRACTION if source.get("part") == "held_out" else 1
        by_size = rows_of_text(num_bytes, gpt)
        bounds.append(by_size if has_equal_rows(packing) else max(by_size, round(num_bytes / CHAT_BYTES)))
    return min(bounds) * source.get("epochs", 1) if bounds else None


def epoch_steps(job: Job, defaults: FinetuneDefaults, *, rows: int) -> int | None:
    """Return about how many steps an epoch of the recipe's own mixture has; None for any other mixture."""
    if defaults["epoch_tokens"] is None or job["recipe"]["mirror"] != "hub":
        return None
    # A conversation a row takes as many rows of any context
    row = EPOCH_CONTEXT if defaults["packing"] == "single" else job["model"]["context"]
    return -(-defaults["epoch_tokens"] // (rows * row))
