"""One optimizer step of tokens: its size, and how its rows are dealt out to ranks and micro-batches."""

from dataclasses import dataclass
from typing import Any, Literal

from nanolit.config.schema import Job
from nanolit.machine.numbers import divisors
from nanolit.optim import scaling
from nanolit.planning.memory import fits
from nanolit.planning.ranks import multiple, num_ranks
from nanolit.planning.sizes import ModelPlan, counted_parameters, reference_parameters

FAST_DEV_STEPS = 3
FAST_DEV_ROWS = 2  # of one device


@dataclass(frozen=True, kw_only=True)
class BatchPlan(ModelPlan):
    """A step of `total_batch` tokens is `rows` = ranks × accumulation × micro_batch rows of a context."""

    total_batch: int
    rows: int
    ranks: int
    micro_batch: int
    accumulation: int

    @property
    def micro_batches(self) -> list[int]:
        """The micro-batches that divide a rank's rows of a step, in rising order."""
        return divisors(self.rows // self.ranks)


def plan_batch(
    job: Job, model: ModelPlan, total_batch: int | None, *, wish: int | Literal["auto"] | None
) -> BatchPlan:
    """Deal out a step of `total_batch` tokens (None: as base's rule has it); ValueError names what fits.

    `wish` is the micro-batch that was asked for; null, and auto before anything was tried, are derived.
    """
    context, ranks = job["model"]["context"], num_ranks(job)
    micro_batch = None if wish == "auto" else wish
    if job["fast_dev_run"]:
        total_batch, micro_batch = FAST_DEV_ROWS * ranks * context, FAST_DEV_ROWS
    elif total_batch is None:
        total_batch = batch_of_base(job, model.gpt)
    if total_batch < 1 or total_batch % (context * ranks):
        what = f"context × devices ({context:,} × {ranks})"
        raise ValueError(multiple("total_batch", total_batch, unit=context * ranks, what=what))
    rows = total_batch // context
    rows_of_rank = rows // ranks
    choices = divisors(rows_of_rank)
    if micro_batch is None:
        most = most_rows(job, model.gpt)
        micro_batch = max(choice for choice in choices if choice <= most)
    if micro_batch not in choices:
        nearest = min(choices, key=lambda choice: abs(choice - (micro_batch or 1)))
        raise ValueError(
            f"micro_batch ({micro_batch} rows) must divide the {rows_of_rank} rows of a device "
            f"(total_batch {total_batch:,} / {context:,} / {ranks} devices); try micro_batch={nearest}"
        )
    return BatchPlan(
        **vars(model),
        total_batch=total_batch,
        rows=rows,
        ranks=ranks,
        micro_batch=micro_batch,
        accumulation=rows_of_rank // micro_batch,
    )


def batch_of_base(job: Job, gpt: dict[str, Any]) -> int:
    """Return the tokens of a base step: fixed, or grown with the horizon relative to d12's."""
    if job["recipe"]["scaling"]["batch"] == "fixed":
        return scaling.REFERENCE_BATCH
    return scaling.batch_from_horizon(counted_parameters(job, gpt), reference_parameters(job))


def most_rows(job: Job, gpt: dict[str, Any]) -> int:
    """Return 32, 16 or 8 rows of 2,048 tokens (nanochat's choices for 80 GB), or the fewer that fit."""
    depth, context, gpu = job["model"]["depth"], job["model"]["context"], job["cluster"]["gpu"] or "cpu"
    tokens = 2_048 * (32 if depth <= 20 else 16 if depth <= 26 else 8)
    if gpu == "cpu":
        tokens = 8_192
    most = max(1, tokens // context)
    return max((rows for rows in range(1, most + 1) if fits(job, gpt, rows, gpu=gpu) is not False), default=1)
