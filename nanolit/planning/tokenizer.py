"""The plan of a tokenizer: what it learns from, and how long that takes on two cores."""

from dataclasses import dataclass
from typing import Any

from nanolit.config.schema import Job
from nanolit.planning.hours import Hours
from nanolit.planning.prices import Cost
from nanolit.planning.stage import StagePlan, download_gigabytes

CHARACTERS_PER_HOUR = 37e6 * 3600  # two cores, from parquet (LOG.md)


@dataclass(frozen=True, kw_only=True)
class TokenizerPlan(StagePlan):
    vocab_size: int
    doc_cap: int
    max_chars: int
    hours: Hours
    shards: int
    download_gigabytes: float | None
    cost: Cost | None = None


def plan_tokenizer(job: Job, head: StagePlan, *, dataset: Any) -> TokenizerPlan:
    settings = job["stage"]["tokenizer"]
    duration = settings["max_chars"] / CHARACTERS_PER_HOUR
    shards = dataset.shards_with(settings["max_chars"])
    return TokenizerPlan(
        **vars(head),
        **settings,
        hours={"gpu": "cpu", "hours": duration, "total_hours": duration},
        shards=shards,
        download_gigabytes=download_gigabytes(dataset, shards),
    )
