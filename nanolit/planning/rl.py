"""The plan of reinforcement learning: `questions` a step over all ranks, `samples` answers to each."""

import math
from dataclasses import dataclass
from typing import ClassVar

from typing_extensions import TypedDict

from nanolit.config.schema import Job, Target
from nanolit.machine.numbers import divisors
from nanolit.model.accounting import peak_bf16_flops
from nanolit.optim.scaling import REFERENCE_BATCH, GroupSettings
from nanolit.planning.base import Dataset
from nanolit.planning.costs import (
    ANSWER_TOKENS,
    Cost,
    Hours,
    answer_tokens,
    asked_at_the_end,
    hours,
    num_ranks,
)
from nanolit.planning.sizes import (
    FAST_DEV_STEPS,
    ModelPlan,
    StagePlan,
    multiple,
    plan_model,
    refuse_below_one,
    scaled_groups,
)

# nanochat's RL of the classic d20: 1.5 hours on eight H100s for 467 steps of 256 answers, here as FLOPs at
# the GPU's peak for each sampled token and each FLOP of a training token.
PEAK_FLOPS = 1.5 * 3600 * 8 * 989e12 / (467 * 256 * 256) / 3.491758e9
ROWS = 8  # contexts of answers scored at once, nanochat's
MAX_PASSES = 8  # samples of a question in the evaluation: pass@8 is nanochat's


class Chosen(TypedDict):
    """The stage's own settings where they are given, else the recipe's."""

    lr_scale: float
    questions: int
    samples: int
    temperature: float
    top_k: int | None
    max_new_tokens: int
    eval_every: int
    save_every: int


@dataclass(frozen=True, kw_only=True)
class RLPlan(ModelPlan):
    """`num_steps` is None for one epoch; `expected_steps` is about how many that is, where it is known."""

    ranks: int
    num_steps: int | None
    expected_steps: int | None
    lr_scale: float
    questions: int
    samples: int
    temperature: float
    top_k: int | None  # None: from the whole vocabulary
    max_new_tokens: int
    eval_every: int
    save_every: int
    micro_batch: int
    task: Target
    validation: Target
    schedule: Target
    warm_start: bool
    groups: dict[str, GroupSettings]
    hours: Hours
    cost: Cost | None = None

    sample_every: ClassVar[None] = None  # the rollouts are samples: written at the end only
    equal_rows: ClassVar[bool] = False  # answers have all lengths
    allows_fp8: ClassVar[bool] = False  # sampling is in bf16, and scores what was sampled by the same numbers
    chats: ClassVar[bool] = True

    @property
    def micro_batches(self) -> list[int]:
        """Smaller numbers of answers to score at once; any number would do."""
        return divisors(self.micro_batch)

    def tasks(self, job: Job) -> list[Target]:
        """Return the targets of what the stage learns from and is validated on."""
        return [self.task, self.validation]


def plan_rl(job: Job, head: StagePlan, *, dataset: Dataset) -> RLPlan:
    settings, defaults = job["stage"]["rl"], job["recipe"]["rl"]
    model, ranks = plan_model(job, head), num_ranks(job)
    chosen: Chosen = Chosen(
        **{
            name: defaults[name] if settings[name] is None else settings[name]
            for name in Chosen.__annotations__
        }
    )
    check_chosen(chosen, context=model.gpt["context"], ranks=ranks)
    micro_batch = ROWS if settings["micro_batch"] in (None, "auto") else settings["micro_batch"]
    refuse_below_one({"stage.rl.micro_batch": micro_batch})
    chosen["top_k"] = chosen["top_k"] or None  # 0: from the whole vocabulary, as in the chat
    num_steps = FAST_DEV_STEPS if job["fast_dev_run"] else settings["max_steps"]
    known = settings["task"] in (None, defaults["task"]) and job["recipe"]["mirror"] == "hub"
    expected = num_steps or (defaults["epoch_questions"] // chosen["questions"] if known else None)
    validation = settings["validation"] or defaults["validation"]
    return RLPlan(
        **vars(model),
        ranks=ranks,
        num_steps=num_steps,
        expected_steps=expected,
        **chosen,
        micro_batch=micro_batch,
        task=settings["task"] or defaults["task"],
        validation=validation,
        schedule=defaults["schedule"],
        warm_start=defaults["warm_start"],
        groups=scaled_groups(job, model, REFERENCE_BATCH, lr_scale=chosen["lr_scale"]),
        hours=rl_hours(job, model, chosen=chosen, validation=validation, steps=expected),
    )


def check_chosen(rl: Chosen, *, context: int, ranks: int) -> None:
    """Raise ValueError for answers that can't be drawn, or from which nothing could be learned."""
    refuse_below_one({f"stage.rl.{name}": rl[name] for name in ("questions", "eval_every", "save_every")})
    allowed = {
        "samples": (rl["samples"] >= 2, "2 or more: answers to the same question are compared"),
        "temperature": (
            0 < rl["temperature"] < math.inf,
            "above 0, so that answers to the same question differ",
        ),
        "top_k": ((rl["top_k"] or 0) >= 0, "0 (from the whole vocabulary) or more"),
        "max_new_tokens": (1 <= rl["max_new_tokens"] <= context, f"1 to the context's {context:,}"),
    }
    for name, (right, what) in allowed.items():
        if not right:
            raise ValueError(f"stage.rl.{name} is {rl[name]}; allowed: {what}")
    if rl["questions"] % ranks:
        raise ValueError(multiple("stage.rl.questions", rl["questions"], unit=ranks, what="devices"))


def rl_hours(job: Job, model: ModelPlan, *, chosen: Chosen, validation: Target, steps: int | None) -> Hours:
    """Return the hours to sample and learn the steps' answers, scaled from nanochat's on GPUs."""
    tokens = steps and steps * chosen["questions"] * chosen["samples"] * chosen["max_new_tokens"]
    if (job["cluster"]["gpu"] or "cpu") == "cpu":
        passes = answer_tokens(
            [validation], max_tokens=chosen["max_new_tokens"], samples=min(chosen["samples"], MAX_PASSES)
        )
        times = math.ceil((steps or 0) / chosen["eval_every"])
        learned = tokens and tokens * (1 + ANSWER_TOKENS) * model.flops_per_token
        return hours(job, model.gpt, learned, answers=times * passes + asked_at_the_end(job))
    unknown: Hours = {**hours(job, model.gpt, None), "mfu": None}
    peak = peak_bf16_flops(unknown["gpu"])
    if not peak or not tokens:
        return unknown
    seconds = PEAK_FLOPS * tokens * model.flops_per_token / (peak * num_ranks(job))
    start = unknown.get("start_hours", 0.0)
    return {**unknown, "hours": seconds / 3600, "total_hours": seconds / 3600 + start}
