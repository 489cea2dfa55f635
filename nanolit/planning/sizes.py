"""The model of a job: its shape, its parameters, and the FLOPs of a token."""

from dataclasses import dataclass
from typing import Any

from nanolit.config.schema import Job
from nanolit.model.accounting import flops_per_token, parameter_counts, size_from_depth
from nanolit.planning.stage import StagePlan


@dataclass(frozen=True, kw_only=True)
class ModelPlan(StagePlan):
    """`gpt` holds the arguments of the GPT's constructor, `parameters` counts by role."""

    gpt: dict[str, Any]
    parameters: dict[str, int]
    num_parameters: int
    flops_per_token: int


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


def gpt_hyperparameters(job: Job, depth: int | None = None) -> dict[str, Any]:
    """Return the arguments of the GPT's constructor; with `depth`, those of that depth at its default size.

    ValueError when width, heads and key-value heads do not divide, with values that do.
    """
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
        allowed = ", ".join(str(number) for number in range(1, heads + 1) if heads % number == 0)
        raise ValueError(
            f"model.kv_heads={kv_heads} does not divide {heads} heads; it must be one of {allowed}"
        )
    return {"depth": depth or model["depth"], "width": width, "heads": heads, "kv_heads": kv_heads, **shared}


def counted_parameters(job: Job, gpt: dict[str, Any]) -> int:
    """Return how many parameters the recipe's tokens-per-parameter ratio counts."""
    counts = parameter_counts(gpt)
    if job["recipe"]["scaling"]["ratio_of"] == "all":
        return sum(counts.values())
    return counts["matrix"] + counts["unembedding"]


def reference_parameters(job: Job) -> int:
    """Return the counted parameters of d12, from which batch and weight decay are carried over."""
    return counted_parameters(job, gpt_hyperparameters(job, depth=12))
