"""What every stage's plan says: which run and stage it is of, and what the stage reads.

A plan is a frozen dataclass whose `asdict` is plan.json. Each class adds fields to the one before:
StagePlan → ModelPlan (sizes.py) → BatchPlan (batch.py) → BasePlan, FinetunePlan; RLPlan has no BatchPlan.
"""

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, kw_only=True)
class StagePlan:
    """The first fields of plan.json; `data` and `tokenizer` are names of folders."""

    format: int = 1
    run: str
    stage: str
    data: str
    tokenizer: str


def download_gigabytes(dataset: Any, num_shards: int) -> float | None:
    """Return about how many GB the train shards and the held-out one are; None for a corpus that is here."""
    gigabytes = (num_shards + 1) * dataset.bytes_per_shard / 1e9
    return round(gigabytes, 1) if gigabytes else None
