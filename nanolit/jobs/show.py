"""A plan as a table for people: what is about to be trained, and what it takes."""

from typing import Any


def plan_table(plan: dict[str, Any], *, known: dict[str, Any] | None = None) -> str:
    """The lines of one stage's plan; a part that the stage doesn't have is left out.

    `known` is the plan of a stage shown before: a model that is the same isn't described again.
    """
    parts = (model_rows, step_rows, horizon_rows, rl_rows, group_rows, watching_rows, data_rows)
    same = known is not None and known.get("gpt") == plan.get("gpt")
    rows = [row for part in parts if not (same and part is model_rows) for row in part(plan)]
    return "\n".join([f"{plan['run']} · {plan['stage']}", *(f"  {name:<19}{text}" for name, text in rows)])


def model_rows(plan: dict[str, Any]) -> list[tuple[str, str]]:
    if "gpt" not in plan:
        return []
    gpt = plan["gpt"]
    heads = f"heads {gpt['heads']} × {gpt['width'] // gpt['heads']}, key-value heads {gpt['kv_heads']}"
    shape = f"depth {gpt['depth']}, width {gpt['width']:,}, {heads}"
    return [
        ("model", f"{shape}, context {gpt['context']:,}, vocabulary {gpt['vocab_size']:,}"),
        ("parameters", f"{plan['num_parameters']:,}"),
        *((f"  {role}", f"{count:>16,}") for role, count in plan["parameters"].items()),
    ]


def step_rows(plan: dict[str, Any]) -> list[tuple[str, str]]:
    if "total_batch" not in plan:
        return []
    rows = f"{plan['ranks']} (devices) × {plan['accumulation']} (accumulation) × {plan['micro_batch']} rows"
    return [("batch", f"{plan['total_batch']:,} tokens = {rows} of {plan['gpt']['context']:,}")]


def horizon_rows(plan: dict[str, Any]) -> list[tuple[str, str]]:
    rows = []
    if plan.get("num_steps"):
        rows.append(("steps", f"{plan['num_steps']:,}"))
    elif "expected_steps" in plan:
        expected = plan["expected_steps"]
        rows.append(("steps", "one epoch" + (f", about {expected:,}" if expected else "")))
    if "tokens" in plan:
        ratio = f"{plan['tokens_per_parameter']:.2f} for each of {plan['counted_parameters']:,} parameters"
        rows.append(("tokens", f"{plan['tokens']:,} ({ratio})"))
    if plan.get("flops"):
        rows.append(("FLOPs", f"{plan['flops']:.6e} ({plan['flops_per_token']:.6e} a token)"))
    if plan.get("hours"):
        rows.append(("time", time_text(plan["hours"])))
    return rows


def time_text(hours: dict[str, Any]) -> str:
    """`2.02 hours on 8 × H100 at an MFU of 48.5 %`."""
    if hours["hours"] is None:
        return f"unknown: the peak FLOP/s of {hours['gpu']} is not in our table"
    if hours["gpu"] == "cpu":
        return f"about {amount(hours['hours'])} on two CPU cores at 0.11 TFLOP/s"
    return f"{amount(hours['hours'])} on {hours['devices']} × {hours['gpu']} at an MFU of {hours['mfu']:.1%}"


def amount(hours: float) -> str:
    if hours < 1 / 60:
        return f"{hours * 3600:.0f} seconds"
    return f"{hours * 60:.1f} minutes" if hours < 1 else f"{hours:,.2f} hours"


def rl_rows(plan: dict[str, Any]) -> list[tuple[str, str]]:
    if "questions" not in plan:
        return []
    answers = f"{plan['questions']} questions × {plan['samples']} answers of {plan['max_new_tokens']} tokens"
    return [("step", f"{answers}, temperature {plan['temperature']}, top-k {plan['top_k']}")]


def group_rows(plan: dict[str, Any]) -> list[tuple[str, str]]:
    lines = [
        (f"  {role}", f"{group['kind']:<6} lr {group['lr']:.4g}, weight decay {group['weight_decay']:.4g}")
        for role, group in plan.get("groups", {}).items()
    ]
    return [("learning rates", ""), *lines] if lines else []


def watching_rows(plan: dict[str, Any]) -> list[tuple[str, str]]:
    if "eval_rows" not in plan:
        return []
    every = ", ".join(
        f"{word} {plan[key]:,}" for word, key in (("save", "save_every"), ("sample", "sample_every"))
    )
    return [("every", f"evaluate {plan['eval_every']:,} steps on {plan['eval_rows']:,} rows, {every}")]


def data_rows(plan: dict[str, Any]) -> list[tuple[str, str]]:
    rows = []
    if "vocab_size" in plan:
        rows.append(("vocabulary", f"{plan['vocab_size']:,}, from at most {plan['max_chars']:,} characters"))
        rows.append(("documents", f"cut at {plan['doc_cap']:,} characters"))
    shards = f", {plan['shards']:,} shard(s)" if "shards" in plan else ""
    if "download_gigabytes" in plan:
        shards += f" and the held-out one, about {plan['download_gigabytes']:,} GB to download"
    return [*rows, ("data", f"{plan['data']}{shards}"), ("tokenizer", plan["tokenizer"])]
