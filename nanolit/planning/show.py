"""A plan as a table for people: what is about to be trained, and what it takes."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from nanolit.machine.terminal import bold, say
from nanolit.optim.scaling import GroupSettings
from nanolit.planning.costs import Cost, Hours, Memory
from nanolit.planning.plans import (
    BasePlan,
    FinetunePlan,
    Plan,
    Planned,
    RLPlan,
    TokenizerPlan,
    TrainingPlan,
    notes,
    total,
)
from nanolit.planning.sizes import TextPlan

Rows = list[tuple[str, str]]  # a name and its text


def show_plans(planned: Planned) -> None:
    """Print the plans of the jobs, with hours and dollars; ValueError if together they pass max_cost.

    Launchers call this before they submit anything.
    """
    for job, plans in planned:
        stages = list(plans.values())
        tables = [
            plan_table(plan, known=before) for before, plan in zip([None, *stages], stages, strict=False)
        ]
        say("\n\n".join(tables))
        if len(stages) > 1:
            say(f"\n{total_line(job['run'], stages)}")
    for note in notes(planned):
        say(note)


def outline(run: str, plans: Sequence[Plan], *, done: Mapping[str, int] | None = None) -> str:
    """Return a line for the job and one for each stage, to be shown before anything begins.

    `done` maps a stage to the steps that an earlier start has trained; times are of the remaining steps.
    """
    done = done or {}
    plans = [rest_of(plan, after=done.get(plan.stage, 0)) for plan in plans]
    width, where = max(len(plan.stage) for plan in plans), place(plans[-1].hours)
    times = [amount(plan.hours["total_hours"]) for plan in plans]
    lines = [
        f"  {plan.stage:<{width}}  {time:<13}  {stage_work(plan, done=done.get(plan.stage, 0))}"
        for plan, time in zip(plans, times, strict=True)
    ]
    return "\n".join([bold(f"{total_line(run, plans)} on {where}"), *lines])


def rest_of(plan: Plan, *, after: int) -> Plan:
    """Return the plan with the time and the dollars of what is left after a step, where they are known."""
    steps = getattr(plan, "num_steps", None) or getattr(plan, "expected_steps", None)
    whole, start = plan.hours["total_hours"], plan.hours.get("start_hours", 0.0)
    if not (after and steps and whole):
        return plan
    left = max(0.0, 1 - after / steps)
    hours: Hours = {**plan.hours, "total_hours": start + (whole - start) * left}
    if evaluating := plan.hours.get("evaluation_hours"):
        hours["evaluation_hours"] = evaluating * left
    cost: Cost | None = plan.cost
    if cost and cost["dollars"]:
        cost = {**cost, "dollars": cost["dollars"] * (start + (whole - start) * left) / whole}
    return replace(plan, hours=hours, cost=cost)


def stage_work(plan: Plan, *, done: int = 0) -> str:
    """Return what a stage does, in a few words; `done` of its steps are done."""
    if isinstance(plan, TokenizerPlan):
        work = f"vocabulary of {plan.vocab_size:,} from {plan.data}"
    else:
        work = steps_text(plan) + " steps" * bool(plan.num_steps) + f", {done:,} already done" * bool(done)
    if isinstance(plan, BasePlan):
        work += f", {plan.tokens:,} tokens of {plan.data}"
    if isinstance(plan, TokenizerPlan | BasePlan) and plan.download_gigabytes is not None:
        work += f", about {plan.download_gigabytes:,} GB to download"
    return work


def plan_table(plan: Plan, *, known: Plan | None = None, done: int = 0) -> str:
    """Return the lines of one stage's plan; time and cost are of what is left after `done` steps.

    `known` is the plan of a stage shown before: a model that is the same isn't described again.
    """
    rows: Rows = []
    plan = rest_of(plan, after=done)
    if not isinstance(plan, TokenizerPlan) and getattr(known, "gpt", None) != plan.gpt:
        rows += model_rows(plan)
    if isinstance(plan, TextPlan):
        parts = f"{plan.ranks} (devices) × {plan.accumulation} (accumulation) × {plan.micro_batch} rows"
        rows.append(("batch", f"{plan.total_batch:,} tokens = {parts} of {plan.gpt['context']:,}"))
    rows += horizon_rows(plan, done) + cost_rows(plan)
    if isinstance(plan, TextPlan) and plan.memory:
        rows += memory_rows(plan.memory)
    if isinstance(plan, RLPlan):
        answers = f"{plan.questions} questions × {plan.samples} answers of up to {plan.max_new_tokens} tokens"
        rows.append(("step", f"{answers}, temperature {plan.temperature}, top-k {plan.top_k or 'all'}"))
    if not isinstance(plan, TokenizerPlan):
        rows += group_rows(plan.groups)
    if isinstance(plan, TextPlan):
        rows += watching_rows(plan)
    rows += data_rows(plan)
    return "\n".join([bold(f"{plan.run} · {plan.stage}"), *(f"  {name:<19}{text}" for name, text in rows)])


def model_rows(plan: TrainingPlan) -> Rows:
    gpt = plan.gpt
    heads = f"heads {gpt['heads']} × {gpt['width'] // gpt['heads']}, key-value heads {gpt['kv_heads']}"
    shape = f"depth {gpt['depth']}, width {gpt['width']:,}, {heads}"
    return [
        ("model", f"{shape}, context {gpt['context']:,}, vocabulary {gpt['vocab_size']:,}"),
        ("parameters", f"{plan.num_parameters:,}"),
        *((f"  {role}", f"{count:>16,}") for role, count in plan.parameters.items()),
    ]


def horizon_rows(plan: Plan, done: int) -> Rows:
    rows = []
    if not isinstance(plan, TokenizerPlan):
        rows.append(("steps", steps_text(plan) + f", {done:,} already done" * bool(done)))
    if isinstance(plan, BasePlan):
        ratio = f"{plan.tokens_per_parameter:.2f} for each of {plan.counted_parameters:,} counted parameters"
        rows.append(("tokens", f"{plan.tokens:,} ({ratio})"))
    if isinstance(plan, BasePlan | FinetunePlan) and plan.flops:
        rows.append(("FLOPs", f"{plan.flops:.6e} ({plan.flops_per_token:.6e} per token)"))
    return [*rows, ("time left" if done else "time", time_text(plan.hours))]


def steps_text(plan: TrainingPlan) -> str:
    if plan.num_steps:
        return f"{plan.num_steps:,}"
    expected = None if isinstance(plan, BasePlan) else plan.expected_steps
    count = f"about {expected:,}" if expected else "length not known before the stage starts"
    return f"one epoch, {count}"


def time_text(hours: Hours) -> str:
    """`2.02 hours on 8 × H100 at an MFU of 48.5 %`, of which evaluation and start where there are any."""
    if hours["total_hours"] is None:
        speed = "" if hours["gpu"] == "cpu" else f"the speed of {hours['gpu']} or "
        return f"unknown: {speed}the number of steps (set stage.NAME.max_steps) is not known"
    mfu, evaluating = hours.get("mfu"), hours.get("evaluation_hours")
    evaluation = f", including {amount(evaluating)} of evaluation" if evaluating else ""
    if hours["gpu"] == "cpu":
        return f"about {amount(hours['total_hours'])} on {place(hours)}{evaluation}"
    speed = f"at an MFU of {mfu:.1%}" if mfu else "by nanochat's published time"
    return f"{amount(hours['total_hours'])} on {place(hours)} {speed}{evaluation}"


def place(hours: Hours) -> str:
    return "two CPU cores" if hours["gpu"] == "cpu" else f"{hours.get('devices')} × {hours['gpu']}"


def amount(hours: float | None) -> str:
    if hours is None:
        return "unknown time"
    if hours < 1 / 60:
        seconds = max(1, round(hours * 3600))
        return f"{seconds} second{'s' * (seconds > 1)}"
    if hours < 1:
        return f"{hours * 60:.1f} minutes"
    return f"{hours:,.2f} hours" if hours < 100 else f"{hours / 24:,.0f} days"


def cost_rows(plan: Plan) -> Rows:
    """`$71.12 at $35.15 per hour`; nothing where nobody bills."""
    cost = plan.cost
    if not cost:
        return []
    if cost["dollars_per_hour"] is None:
        return [("cost", f"unknown: conf/prices.yaml has no price for {plan.hours['gpu']}")]
    rate = f"${cost['dollars_per_hour']:,.2f} per hour, prices of {cost['prices']}"
    return [("cost", f"{money(cost['dollars'])} at {rate}")]


def money(dollars: float | None) -> str:
    return "unknown" if dollars is None else f"${dollars:,.2f}"


def memory_rows(memory: Memory) -> Rows:
    """Return the peak of one GPU, what it is made of, and what would fit others."""
    gib, available = memory["gib"], memory["gpu_gib"]
    of = f" of {available:.0f}" if available else ""
    verdict = {True: "", False: ": does not fit", None: ""}[memory["fits"]]
    names = ("parameters", "gradients", "optimizer", "activations", "head")
    parts = ", ".join(f"{name} {gib[name]:.1f}" for name in names)
    rows = ", ".join(f"{gpu} {most or '–'}" for gpu, most in memory["largest_micro_batch"].items())
    return [
        ("memory", f"about {gib['peak']:.1f}{of} GiB per GPU{verdict}"),
        ("  parts", parts),
        ("  rows that fit", rows),
    ]


def group_rows(groups: Mapping[str, GroupSettings]) -> Rows:
    lines = [
        (f"  {role}", f"{group['kind']:<6} lr {group['lr']:.4g}, weight decay {group['weight_decay']:.4g}")
        for role, group in groups.items()
    ]
    return [("learning rates", ""), *lines]


def watching_rows(plan: TextPlan) -> Rows:
    every = f"save every {plan.save_every:,}, sample every {plan.sample_every:,}"
    on = f"{plan.eval_rows:,} rows"
    if few := plan.held_out_rows:
        on = f"about {few:,} row{'s' * (few > 1)} (all that is held out)"
    rows = [("intervals", f"evaluate every {plan.eval_every:,} steps on {on}, {every}")]
    if isinstance(plan, BasePlan) and plan.core_every:
        often = "" if plan.core_every == "end" else f"a subset every {plan.core_every:,} steps, "
        rows.append(("CORE", f"{often}all of it at the end; its questions are downloaded once (162 MB)"))
    return rows


def data_rows(plan: Plan) -> Rows:
    rows = []
    if isinstance(plan, TokenizerPlan):
        rows.append(("vocabulary", f"{plan.vocab_size:,}, from at most {plan.max_chars:,} characters"))
        rows.append(("documents", f"first {plan.doc_cap:,} characters of each"))
    if isinstance(plan, TokenizerPlan | BasePlan):
        shards = f", {plan.shards:,} shard{'s' * (plan.shards != 1)}"
        if plan.download_gigabytes is not None:
            shards += f" and the held-out one, about {plan.download_gigabytes:,} GB to download"
        rows.append(("data", f"{plan.data}{shards}"))
    return [*rows, ("tokenizer", plan.tokenizer)]


def total_line(run: str, plans: Sequence[Plan]) -> str:
    """Return a line with the hours and dollars of all stages of a job."""
    hours, dollars = total(plans)
    billed = any(plan.cost for plan in plans)
    stages = "1 stage" if len(plans) == 1 else f"{len(plans)} stages"
    return f"{run} · {stages}: {amount(hours)}" + (f", {money(dollars)}" if billed else "")


def clusters_table(found: Mapping[str, dict[str, Any]]) -> str:
    """Return a line for every cluster: hours, dollars, micro-batch, memory, whether it fits; or why not."""
    head = f"  {'cluster':<15}{'GPUs':<20}{'hours':>8}{'dollars':>11}{'micro-batch':>13}  memory per GPU"
    lines = []
    for name, summary in found.items():
        if "error" in summary:
            lines.append(f"  {name:<15}{summary['error']}")
            continue
        hours = "unknown" if summary["hours"] is None else f"{summary['hours']:,.2f}"
        dollars = money(summary["dollars"]) if summary["billed"] else "–"
        rows, memory = str(summary["micro_batch"] or "–"), fitting_text(summary["memory"])
        lines.append(f"  {name:<15}{summary['gpus']:<20}{hours:>8}{dollars:>11}{rows:>13}  {memory}")
    return "\n".join([head, *lines])


def fitting_text(memory: Memory | None) -> str:
    if memory is None:
        return "–"
    if memory["fits"] is None:
        return f"{memory['gib']['peak']:.1f} GiB"
    verdict = "fits" if memory["fits"] else "does not fit"
    return f"{memory['gib']['peak']:.1f} of {memory['gpu_gib']:.0f} GiB, {verdict}"
