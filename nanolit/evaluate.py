"""Evaluate a finished stage again: bits per byte, then the chat tasks, as the pipeline did.

    nanolit evaluate run=demo                    the run's last stage
    nanolit evaluate run=demo/sft problems=20    only the first problems of each task
    nanolit evaluate run=demo tasks=none         bits per byte alone

The last line is JSON.
"""

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nanolit.machine.arguments import Root, read, setting
from nanolit.machine.exit import command


@dataclass(frozen=True, kw_only=True)
class Settings(Root):
    """Which stage to evaluate, and on what."""

    run: str = setting("a run below root (nanolit runs lists them)", value="RUN[/STAGE]")
    problems: int | None = setting("at most N problems of each task (default: all)", None, least=1)
    tasks: str | None = setting(
        "a name in conf/chat_evaluation, or none (default: the run's own)", None, value="NAME"
    )


@command
def main(words: Sequence[str]) -> None:
    print(json.dumps(evaluate(read(Settings, words, about=__doc__))))


def evaluate(settings: Settings) -> dict[str, Any]:
    """The scores by name, printed as they come."""
    from nanolit.config.build import build
    from nanolit.config.compose import named
    from nanolit.config.stored import read_job
    from nanolit.data.pretrain import training_texts, validation_rows
    from nanolit.evaluation.bits_per_byte import bits_per_byte, describe_rows, unigram_bits_per_byte
    from nanolit.evaluation.chat_tasks import evaluate_tasks
    from nanolit.inference.engine import Engine
    from nanolit.language_model import find_release, load_language_model
    from nanolit.machine.paths import home
    from nanolit.planning.plans import BasePlan, TrainingPlan, read_plan

    root = home(settings.root)
    release = find_release(settings.run, root=root)
    if not (release.parent / "job.yaml").is_file():
        raise ValueError(
            f"{release} is a release alone; evaluate asks a stage of a run, by its settings: give run=NAME"
        )
    job = read_job(release.parent / "job.yaml")
    plan = read_plan(release.parent)
    assert isinstance(plan, TrainingPlan)
    model = load_language_model(release, root=root, device=None)
    scores: dict[str, Any] = {"run": job["run"], "stage": plan.stage}

    def tell(name: str, value: float) -> None:
        scores[name] = value
        print(f"  {name:<28} {value:.4f}", flush=True)

    corpus = build(job["data"]).open_corpus(Path(root), num_shards=1)
    context = plan.gpt["context"]
    base = release.parent.parent / "base"
    eval_tokens = job["stage"]["base"]["eval_tokens"] or job["recipe"]["base"]["eval_tokens"]
    if (base / "plan.json").is_file():  # the very rows that the base stage was evaluated on
        base_plan = read_plan(base)
        assert isinstance(base_plan, BasePlan)
        eval_tokens = base_plan.eval_rows * context
    validation = validation_rows(
        corpus,
        model.tokenizer,
        context=context,
        micro_batch=1,
        packing=job["recipe"]["packing"],
        num_tokens=eval_tokens,
    )
    token_bytes = model.tokenizer.token_bytes()
    scores["val_rows"] = validation.identity
    print(f"  {describe_rows(validation.identity)}", flush=True)
    tell("val_bpb", bits_per_byte(model.model, validation, token_bytes))
    texts = list(training_texts(corpus, max_characters=5_000_000))
    train_ids = model.tokenizer.encode_batch(texts, bos=True)
    tell("val_bpb of token unigrams", unigram_bits_per_byte(train_ids, validation, token_bytes))
    if settings.tasks != "none" and plan.chats:
        node = job["chat_tasks"]
        if settings.tasks is not None:
            node = named("chat_evaluation", settings.tasks, key="tasks", mirror=job["recipe"]["mirror"])
        tasks = [build(task) for task in node["tasks"]]
        engine = Engine(model.model, model.tokenizer)
        for name, value in evaluate_tasks(
            engine, tasks, max_problems=settings.problems, max_tokens=node["max_tokens"]
        ):
            tell(name, value)
    return scores


if __name__ == "__main__":
    sys.exit(main())
