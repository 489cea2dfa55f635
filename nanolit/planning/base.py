"""The plans of the two stages that read the corpus, the tokenizer and base."""

from dataclasses import dataclass
from typing import ClassVar, Literal, Protocol

from nanolit.config.schema import Job
from nanolit.machine.numbers import listed
from nanolit.optim import scaling
from nanolit.planning.costs import Cost, Hours, hours, num_ranks
from nanolit.planning.sizes import (
    FAST_DEV_STEPS,
    ModelPlan,
    StagePlan,
    TextPlan,
    counted_parameters,
    evaluation_flops,
    plan_batch,
    plan_model,
    refuse_below_one,
    rows_of_text,
    scaled_groups,
    watching,
)

RANKS = (1, 2, 4, 8, 16)  # that share data/stream.py's LANES evenly
CHARACTERS_PER_HOUR = 37e6 * 3600  # of a tokenizer's training: two cores, from parquet (LOG.md)
BYTES_PER_TOKEN = 4.0  # about, of English text
# Of the tokens read. Best fit, which crops, has nanochat's figure for rows of 2,048; splitting was measured
# (LOG.md)
KEPT_FRACTION = {"flat": 1.0, "bestfit": 0.65, "bestfit_split": 0.985}


class Dataset(Protocol):
    """The part of the job's data (data/shards.py) that a plan asks."""

    name: str
    is_shipped: bool
    num_characters: int | None

    def train_bytes(self) -> dict[str, int]: ...

    def shards_needed(self, num_tokens: int, *, kept_fraction: float) -> int: ...

    def shards_with(self, num_characters: int) -> int: ...

    def download_gigabytes(self, num_shards: int) -> float | None: ...

    def text_bytes(self) -> int | None: ...

    def held_out_bytes(self) -> int | None: ...

    def document_bytes(self) -> float | None: ...


@dataclass(frozen=True, kw_only=True)
class TokenizerPlan(StagePlan):
    vocab_size: int
    doc_cap: int
    max_chars: int
    hours: Hours
    shards: int
    download_gigabytes: float | None
    cost: Cost | None = None


def plan_tokenizer(job: Job, head: StagePlan, *, dataset: Dataset) -> TokenizerPlan:
    settings = job["stage"]["tokenizer"]
    counts = {"recipe.vocab_size": settings["vocab_size"], "stage.tokenizer.doc_cap": settings["doc_cap"]}
    refuse_below_one({**counts, "stage.tokenizer.max_chars": settings["max_chars"]})
    has = dataset.num_characters or sum(dataset.train_bytes().values())  # of packed files about a third
    characters = min(settings["max_chars"], has or settings["max_chars"])
    duration = max(characters / CHARACTERS_PER_HOUR, 1 / 3600)
    shards = dataset.shards_with(settings["max_chars"])
    return TokenizerPlan(
        **vars(head),
        **settings,
        hours={"gpu": "cpu", "hours": duration, "total_hours": duration},
        shards=shards,
        download_gigabytes=dataset.download_gigabytes(shards),
    )


@dataclass(frozen=True, kw_only=True)
class BasePlan(TextPlan):
    num_steps: int
    tokens: int
    counted_parameters: int
    tokens_per_parameter: float
    flops: float
    packing: Literal["flat", "bestfit", "bestfit_split"]
    core_every: int | Literal["end"] | None  # steps; None: CORE is not asked
    shards: int
    download_gigabytes: float | None

    warm_start: ClassVar[bool] = True  # with start_from, the optimizer's state comes along
    equal_rows: ClassVar[bool] = True  # every step has the same shape, so that compiling pays


def choose_packing(job: Job, dataset: Dataset, tokens: int) -> Literal["bestfit", "bestfit_split"]:
    """Return bestfit_split for text of which cropping would drop much, else bestfit.

    Cropping drops what is longer than a row: nearly all of a book. Splitting is also better where text is
    repeated, and worse by 0.016 bits per byte where there is plenty (LOG.md, 2026-11-23).
    """
    document = dataset.document_bytes()
    if document is None:
        return "bestfit"
    has = dataset.text_bytes()
    little = has is not None and has * KEPT_FRACTION["bestfit"] < tokens * BYTES_PER_TOKEN
    return "bestfit_split" if little or document > BYTES_PER_TOKEN * job["model"]["context"] else "bestfit"


def horizon(job: Job, model: ModelPlan, total_batch: int, *, counted: int) -> int:
    """Return the steps that the job's target asks for, the recipe's where it has none."""
    settings, default = job["stage"]["base"], job["recipe"]["scaling"]["target_ratio"]
    return scaling.steps_from_horizon(
        batch=total_batch,
        target_flops=settings["target_flops"],
        target_ratio=default if settings["target_ratio"] is None else settings["target_ratio"],
        flops_per_token=model.flops_per_token,
        counted_parameters=counted,
    )


def plan_base(job: Job, head: StagePlan, *, dataset: Dataset) -> BasePlan:
    settings, recipe = job["stage"]["base"], job["recipe"]
    if settings["core_every"] not in ("end", None):
        refuse_below_one({"core_every": settings["core_every"]})
    model = plan_model(job, head)
    if (ranks := num_ranks(job)) not in RANKS:
        raise ValueError(
            f"base can't divide its text among {ranks} devices, cluster.devices × cluster.nodes; allowed are "
            f"{listed(RANKS, most=len(RANKS))}"
        )
    step = plan_batch(
        job, model, settings, total_batch=settings["total_batch"], equal_rows=BasePlan.equal_rows
    )
    counted = counted_parameters(job, model.parameters)
    num_steps = FAST_DEV_STEPS if job["fast_dev_run"] else settings["max_steps"]
    if num_steps is None:
        num_steps = horizon(job, model, step.total_batch, counted=counted)
    tokens = num_steps * step.total_batch
    num_bytes = dataset.held_out_bytes()
    held_out = None if num_bytes is None else rows_of_text(num_bytes, model.gpt)
    watched = watching(job, settings, recipe["base"], held_out=held_out)
    flops, evaluated = tokens * model.flops_per_token, evaluation_flops(model, watched, num_steps)
    packing = recipe["packing"]
    is_typed = any("recipe.packing=" in word for word in job["overrides"])
    if packing == "bestfit" and not dataset.is_shipped and not is_typed:
        packing = choose_packing(job, dataset, tokens)
    groups = scaled_groups(job, model, step.total_batch, lr_scale=settings["lr_scale"])
    shards = dataset.shards_needed(tokens, kept_fraction=KEPT_FRACTION[packing])
    gigabytes = dataset.download_gigabytes(shards)
    return BasePlan(
        **vars(step),
        num_steps=num_steps,
        tokens=tokens,
        counted_parameters=counted,
        tokens_per_parameter=tokens / counted,
        flops=flops,
        packing=packing,
        core_every=settings["core_every"],
        schedule=recipe["schedule"],
        groups=groups,
        **watched,
        hours=hours(job, model.gpt, flops, evaluation=evaluated),
        shards=shards,
        download_gigabytes=gigabytes,
    )
