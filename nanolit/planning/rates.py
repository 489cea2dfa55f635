"""Learning rates and weight decay by parameter role, carried from the recipe's reference to this size."""

from typing import Any

from nanolit.config.schema import Group, Job
from nanolit.model.accounting import parameter_counts
from nanolit.optim import scaling
from nanolit.planning.sizes import counted_parameters, reference_parameters


def scaled_groups(
    job: Job, gpt: dict[str, Any], total_batch: int, *, lr_scale: float
) -> dict[str, dict[str, Any]]:
    """Return the optimizer's final settings by role; ValueError for a role that the recipe leaves out."""
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
    """Return one role's settings; only Muon's weight decay follows the horizon."""
    lr, decay = group["lr"] * lr_scale, group["weight_decay"]
    if group["width_scaled"]:
        lr *= scaling.lr_factor_from_width(gpt["width"])
    if group["batch_scaled"]:
        lr *= scaling.lr_factor_from_batch(total_batch)
    if group["kind"] == "muon" and job["recipe"]["scaling"]["batch"] == "horizon":
        decay *= scaling.weight_decay_factor(
            total_batch,
            tokens=counted_parameters(job, gpt),
            reference_tokens=reference_parameters(job),
        )
    settings = {key: value for key, value in group.items() if not key.endswith("_scaled")}
    return settings | {"lr": lr, "weight_decay": decay}
