"""The plan of mid and sft: one epoch of the mixture unless max_steps says otherwise."""

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from nanolit.config.schema import FinetuneDefaults, Job, Target
from nanolit.planning.batch import FAST_DEV_STEPS, BatchPlan, plan_batch
from nanolit.planning.hours import Hours, evaluation_flops, hours
from nanolit.planning.memory import Memory, memory
from nanolit.planning.prices import Cost
from nanolit.planning.rates import scaled_groups
from nanolit.planning.sizes import plan_model
from nanolit.planning.stage import StagePlan
from nanolit.planning.watching import watching

EPOCH_CONTEXT = 2_048  # of the rows in which the recipes' epoch_tokens are counted


@dataclass(frozen=True, kw_only=True)
class FinetunePlan(BatchPlan):
    """`num_steps` is None for one epoch; `expected_steps` is about how many that is, where it is known."""

    num_steps: int | None
    expected_steps: int | None
    flops: float | None
    packing: Literal["flat", "single", "bestfit"]
    schedule: Target
    warm_start: bool
    groups: dict[str, dict[str, Any]]
    eval_every: int
    save_every: int
    sample_every: int
    eval_tokens: int
    eval_rows: int
    hours: Hours
    memory: Memory | None
    cost: Cost | None = None

    allows_fp8: ClassVar[bool] = True
    chats: ClassVar[bool] = True

    @property
    def equal_rows(self) -> bool:
        """False where a row is one conversation: then every micro-batch has its own length."""
        return self.packing != "single"

    def tasks(self, job: Job) -> list[Target]:
        """Return the targets of what the stage learns from and is validated on."""
        settings: Any = job["stage"]
        mixture = settings[self.stage]["mixture"]
        return [*mixture["sources"], *mixture["validation"]]


def plan_finetune(job: Job, head: StagePlan, *, dataset: Any) -> FinetunePlan:
    stages: Any = job["stage"]
    recipe: Any = job["recipe"]
    settings, defaults = stages[head.stage], recipe[head.stage]
    model = plan_model(job, head)
    total_batch = settings["total_batch"]
    if total_batch is None:
        total_batch = defaults["total_batch"]
    step = plan_batch(job, model, total_batch, wish=settings["micro_batch"])
    num_steps = FAST_DEV_STEPS if job["fast_dev_run"] else settings["max_steps"]
    expected = num_steps or epoch_steps(job, defaults, rows=step.rows)
    flops = expected * step.total_batch * model.flops_per_token if expected else None
    lr_scale = settings["lr_scale"] if settings["lr_scale"] is not None else defaults["lr_scale"]
    watched = watching(job, settings, defaults)
    return FinetunePlan(
        **vars(step),
        num_steps=num_steps,
        expected_steps=expected,
        flops=flops,
        packing=defaults["packing"],
        schedule=defaults["schedule"],
        warm_start=defaults["warm_start"],
        groups=scaled_groups(job, model.gpt, step.total_batch, lr_scale=lr_scale),
        **watched,
        hours=hours(job, flops, evaluation=evaluation_flops(model.gpt, watched, expected or 0)),
        memory=memory(job, model.gpt, step.micro_batch, choices=step.micro_batches),
    )


def epoch_steps(job: Job, defaults: FinetuneDefaults, *, rows: int) -> int | None:
    """Return about how many steps an epoch of the recipe's own mixture has; None for any other mixture."""
    if defaults["epoch_tokens"] is None or job["recipe"]["mirror"] != "hub":
        return None
    # A conversation a row takes as many rows of any context
    row = EPOCH_CONTEXT if defaults["packing"] == "single" else job["model"]["context"]
    return -(-defaults["epoch_tokens"] // (rows * row))
