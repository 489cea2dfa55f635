"""The plans of a job: derived once per stage, kept in plan.json, and refused above `max_cost`.

`null` in a job means "derive it": the planners do, one file each. What an earlier start of the same run
derived comes first. Pure arithmetic, without torch.
"""

import filecmp
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, fields, replace
from functools import cache
from pathlib import Path
from typing import Any, get_type_hints

from typing_extensions import TypedDict

from nanolit.config.build import build, check_target
from nanolit.config.names import releases_before, tokenizer_name
from nanolit.config.schema import Job, StageName
from nanolit.machine.paths import (
    DamagedFile,
    Json,
    check_content,
    read_json,
    stage_folder,
    tokenizers_folder,
)
from nanolit.model.accounting import multiplies_in_fp8
from nanolit.planning.base import BasePlan, TokenizerPlan, plan_base, plan_tokenizer
from nanolit.planning.costs import cost
from nanolit.planning.finetune import FinetunePlan, plan_finetune
from nanolit.planning.rl import RLPlan, plan_rl
from nanolit.planning.sizes import StagePlan

TrainingPlan = BasePlan | FinetunePlan | RLPlan
Plan = TokenizerPlan | TrainingPlan
Plans = Mapping[str, Plan]  # by stage
Planned = Sequence[tuple[Job, Plans]]  # jobs with their plans
PLANNERS: dict[str, tuple[type[Plan], Callable[..., Plan]]] = {
    "tokenizer": (TokenizerPlan, plan_tokenizer),
    "base": (BasePlan, plan_base),
    "mid": (FinetunePlan, plan_finetune),
    "sft": (FinetunePlan, plan_finetune),
    "rl": (RLPlan, plan_rl),
}

SFT_MIXTURE = "stage.sft.mixture="  # what `mixture=` stands for
# The fields that may differ between two starts of one run: they say where it runs and how it is watched.
PRESENT = {
    "ranks",
    "micro_batch",
    "accumulation",
    "hours",
    "memory",
    "cost",
    "eval_every",
    "held_out_rows",
    "save_every",
    "sample_every",
    "core_every",
}
TARGETS = {"schedule", "task", "validation"}
FIGURES = {"hours", "memory", "cost"}  # for people to read; their keys changed between versions
LEFT_OUT = {"data", "download_gigabytes", "held_out_rows"}  # of plan.json, where nothing is to be said
REMEDY = "delete it (the same command derives it again) or restore it"
typed_dict: Any = TypedDict  # called with fields that only the dataclass knows


class Staged(TypedDict):
    stage: StageName


def plan_jobs(jobs: Sequence[Job]) -> list[tuple[Job, Plans]]:
    """Return each job with its plans."""
    return [(job, fresh_plans(job)) for job in jobs]


def fresh_plans(job: Job) -> dict[str, Plan]:
    """Derive the plans of the job's stages, by name."""
    return {stage: fresh_plan(job, stage) for stage in job["stages"]}


def fresh_plan(job: Job, stage: StageName) -> Plan:
    """Derive the plan of a stage by today's rules, whatever is on disk of the run.

    ValueError where its settings cannot be met.
    """
    gpu = job["cluster"]["gpu"] or "cpu"
    if stage != "tokenizer" and job["precision"] == "fp8" and not multiplies_in_fp8(gpu):
        raise ValueError(
            f"precision=fp8 needs an NVIDIA GPU (Ada or newer); this is {gpu}: give precision=bf16"
        )
    dataset = build(job["data"])
    kind, derive = PLANNERS[stage]
    head = StagePlan(run=job["run"], stage=stage, tokenizer=tokenizer_before(job))
    if not kind.chats:
        head = replace(head, data=dataset.name, tokenizer=tokenizer_name(job))
    plan = derive(job, head, dataset=dataset)
    if not isinstance(plan, TokenizerPlan):
        check_schedule(plan)
    return replace(plan, cost=cost(stage, plan.hours, job["cluster"]))


def check_schedule(plan: TrainingPlan) -> None:
    """Raise ValueError now for a value out of its range, not when the stage begins."""
    try:
        build(plan.schedule)
    except ValueError as error:
        raise ValueError(f"the schedule of {plan.stage}: {error}") from error


def tokenizer_before(job: Job) -> str:
    """Return the name of the tokenizer of the model that the job continues, if it is here; else of the job's.

    Found by its content: the job of a later stage need not say what base has read.
    """
    name, tokenizers = tokenizer_name(job), tokenizers_folder(job["root"])
    for own in (release / "tokenizer" / "tokenizer.json" for release in releases_before(job)):
        if own.is_file():
            every = sorted(tokenizers.glob("*/tokenizer.json"))
            same = [path.parent.name for path in every if filecmp.cmp(path, own, shallow=False)]
            return name if name in same else next(iter(same), str(own.parent))
    return name


def keep_stored(job: Job, plan: Plan) -> Plan:
    """Return the plan that training uses: if the stage already has a plan.json, its values win.

    So an upgrade never changes a run in progress. The fields in PRESENT come from today's start, and so does
    all of a tokenizer's plan: its name says what it is learned from, and the text may have changed since.
    """
    path = stage_folder(job["root"], job["run"], plan.stage) / "plan.json"
    return plan if isinstance(plan, TokenizerPlan) or not path.exists() else with_stored(plan, path)


def with_stored(plan: Plan, path: Path) -> Plan:
    """Return the plan with a plan.json's values in place of its own, but for the fields in PRESENT."""
    stored = stored_plan(path)
    if stored["stage"] != plan.stage:
        raise ValueError(f"{path} belongs to the stage {stored['stage']}; {REMEDY}")
    kept = {field.name for field in fields(plan)} & stored.keys() - PRESENT
    if plan.chats:  # older ones named the job's corpus, and a tokenizer after it
        kept -= {"data", "tokenizer"}
    return replace(plan, **{name: stored[name] for name in kept})


def as_json(plan: Plan) -> Json:
    """Return what plan.json holds: `asdict`, without the fields in LEFT_OUT that have no value."""
    return {
        key: value for key, value in asdict(plan).items() if key not in LEFT_OUT or value not in (None, "")
    }


def read_plan(folder: Path, *, may_lack: int = 1) -> Plan:
    """Return the plan in a stage's folder.

    Keys that are gone are dropped; what its version did not store yet is the field's default, or None.
    """
    content = stored_plan(folder / "plan.json", may_lack=may_lack)
    kind, _ = PLANNERS[content["stage"]]
    names = [field.name for field in fields(kind)]
    stored: Json = {name: content.get(name, getattr(kind, name, None)) for name in names}
    return kind(**stored)


def stored_plan(path: Path, *, may_lack: int = 1) -> Json:
    """Return what a plan.json of format 1 holds.

    DamagedFile unless its values have the plan's types; any may be absent, and down to level `may_lack` also
    parts of them.
    """
    content: Json = {"stage": path.parent.name, **read_json(path, remedy=REMEDY)}
    check_content(content, Staged, path, remedy=REMEDY)
    kind, _ = PLANNERS[content["stage"]]
    check_content(content, as_stored(kind), path, remedy=REMEDY, may_lack=may_lack)
    if may_lack == 1:  # it will be built
        try:
            for name in TARGETS & content.keys():
                check_target(content[name], path=name)
        except ValueError as error:
            raise DamagedFile(f"{path} is damaged ({error}); {REMEDY}") from error
    return content


@cache
def as_stored(kind: type[Plan]) -> Any:
    """Return the type of a plan's JSON."""
    hints = get_type_hints(kind)
    types = {field.name: hints[field.name] for field in fields(kind)} | dict.fromkeys(FIGURES, dict | None)
    return typed_dict(kind.__name__, types)


def total(plans: Sequence[Plan]) -> tuple[float | None, float | None]:
    """Return hours and dollars of all stages; None where one of them is unknown, or nobody bills."""
    return (
        sum_of_known([plan.hours["total_hours"] for plan in plans]),
        sum_of_known([plan.cost and plan.cost["dollars"] for plan in plans]),
    )


def sum_of_known(parts: Sequence[float | None]) -> float | None:
    known = [part for part in parts if part is not None]
    return sum(known) if len(known) == len(parts) else None


def check_cost(planned: Planned) -> str | None:
    """Raise ValueError if the jobs together pass `max_cost`, or might; return a note if it is ignored."""
    job, plans = planned[0][0], [plan for _, plans in planned for plan in plans.values()]
    limit, cluster = job["max_cost"], job["cluster"]
    if limit is None:
        return None
    if all(plan.cost is None for plan in plans):
        return f"max_cost={limit:g} is ignored: cluster={cluster['name']} has no prices (conf/prices.yaml)"
    _, dollars = total(plans)
    what = f"{len(planned)} jobs" if len(planned) > 1 else job["run"]
    if dollars is None:
        unknown = next(plan for plan in plans if plan.cost is None or plan.cost["dollars"] is None)
        raise ValueError(unknown_cost(job, unknown))
    if dollars > limit:
        raise ValueError(
            f"{what} would cost about ${dollars:,.2f} on cluster={cluster['name']}, above max_cost={limit:g};"
            " raise it, or choose something cheaper: python -m nanolit.plan cluster=all … compares clusters"
        )
    return None


def notes(planned: Planned) -> list[str]:
    """Return remarks on the jobs before they begin; ValueError if together they pass `max_cost`, or might."""
    job = planned[0][0]
    over = [] if job["max_cost"] is None else [check_cost(planned)]
    mixed = [mixture_note(word, job) for word in job["overrides"] if word.startswith(SFT_MIXTURE)]
    return [note for note in (*over, *mixed[:1]) if note]


def mixture_note(typed: str, job: Job) -> str | None:
    """Return a remark on a typed `mixture=` if it may surprise which stage learns from it."""
    if "sft" not in job["stages"]:
        return f"{typed} is ignored: only sft uses it, and this job has {', '.join(job['stages'])}"
    if "mid" in job["stages"]:
        return f"{typed} applies to sft; mid keeps the recipe's mixture, which stage.mid.mixture=… changes"
    return None


def unknown_cost(job: Job, plan: Plan) -> str:
    """Return the error for a stage whose price or duration is not known."""
    missing, remedy = "duration", ""
    if plan.cost is None or plan.cost["dollars_per_hour"] is None:
        missing, remedy = "price", "add it to conf/prices.yaml, or "
    elif getattr(plan, "expected_steps", 1) is None:
        remedy = f"give stage.{plan.stage}.max_steps=N, or "
    return (
        f"max_cost={job['max_cost']:g} cannot be checked: the {missing} of {plan.stage} on "
        f"{job['cluster']['gpu']} is not known; {remedy}leave max_cost out to run without a limit"
    )
