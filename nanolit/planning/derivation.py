"""A job to the plan of one stage, and a plan to and from JSON.

`null` in a job means "derive it": the planners do, one file each. Pure arithmetic, without torch.
"""

from collections.abc import Callable, Mapping
from dataclasses import asdict, fields, replace
from typing import Any

from nanolit.config.schema import Job
from nanolit.model.accounting import multiplies_in_fp8
from nanolit.planning.base import BasePlan, plan_base
from nanolit.planning.finetune import FinetunePlan, plan_finetune
from nanolit.planning.prices import cost
from nanolit.planning.ranks import refuse_below_one
from nanolit.planning.rl import RLPlan, plan_rl
from nanolit.planning.stage import StagePlan
from nanolit.planning.tokenizer import TokenizerPlan, plan_tokenizer

TrainingPlan = BasePlan | FinetunePlan | RLPlan
Plan = TokenizerPlan | TrainingPlan
KINDS: dict[str, type[Plan]] = {
    "tokenizer": TokenizerPlan,
    "base": BasePlan,
    "mid": FinetunePlan,
    "sft": FinetunePlan,
    "rl": RLPlan,
}
PLANNERS: dict[type[Plan], Callable[..., Plan]] = {
    TokenizerPlan: plan_tokenizer,
    BasePlan: plan_base,
    FinetunePlan: plan_finetune,
    RLPlan: plan_rl,
}


def derive(job: Job, stage: str, *, dataset: Any, tokenizer: str) -> Plan:
    """Return the plan of one stage; ValueError where its settings cannot be met.

    `dataset` is what the job's data node builds; `tokenizer` is the name of the tokenizer's folder.
    """
    stages: Any = job["stage"]
    refuse_below_one(
        {
            "model.context": job["model"]["context"],
            "cluster.devices": job["cluster"]["devices"],
            "cluster.nodes": job["cluster"]["nodes"],
            f"stage.{stage}.max_steps": stages[stage].get("max_steps"),
        }
    )
    gpu = job["cluster"]["gpu"] or "cpu"
    if stage != "tokenizer" and job["precision"] == "fp8" and not multiplies_in_fp8(gpu):
        raise ValueError(f"precision=fp8 needs an NVIDIA GPU from Ada on; this is {gpu}: give precision=bf16")
    head = StagePlan(run=job["run"], stage=stage, data=dataset.name, tokenizer=tokenizer)
    plan = PLANNERS[KINDS[stage]](job, head, dataset=dataset)
    return replace(plan, cost=cost(stage, plan.hours, job["cluster"]))


def as_json(plan: Plan) -> dict[str, Any]:
    """Return what plan.json holds: `asdict`, without a download where nothing is downloaded."""
    content = asdict(plan)
    if content.get("download_gigabytes", 0) is None:
        del content["download_gigabytes"]
    return content


def from_json(content: Mapping[str, Any]) -> Plan:
    """Return the plan that a plan.json of format 1 holds.

    Keys that are gone are dropped; what its version did not store yet is None.
    """
    kind = KINDS[content["stage"]]
    return kind(**{field.name: content.get(field.name) for field in fields(kind)})  # type: ignore[arg-type]
