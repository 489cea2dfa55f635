"""Evaluate: `python -m nanolit.evaluate run=demo` asks a finished stage by hand what the pipeline asks it."""

import json
import sys
from pathlib import Path
from typing import Any

from nanolit.machine.arguments import parse
from nanolit.machine.exit import leave

USAGE = """\
Evaluate a trained model: bits per byte on the base stage's validation rows, then the chat tasks.

  python -m nanolit.evaluate run=demo                    the run's last stage
  python -m nanolit.evaluate run=demo/sft problems=20    the first problems of each task only
  python -m nanolit.evaluate run=demo tasks=none         bits per byte alone

settings:
  run=RUN[/STAGE]   a run below root
  root=FOLDER       where runs live (default: NANOLIT_HOME, else ./runs)
  problems=N        at most N problems of a task (default: all)
  tasks=NAME        a name in conf/chat_evaluation, or none (default: the run's own)

The last line is JSON.
"""


def main(arguments: list[str] | None = None) -> int:
    """Exit code 0, or 2 with one line of what was wrong."""
    words = sys.argv[1:] if arguments is None else arguments
    try:
        settings = parse(
            words, prog="nanolit.evaluate", usage=USAGE, keys=["run", "root", "problems", "tasks"]
        )
        if "run" not in settings:
            raise ValueError("say which run: python -m nanolit.evaluate run=NAME")
        print(json.dumps(evaluate(settings)))
    except ValueError as error:
        print(error, file=sys.stderr)
        return 2
    return 0


def evaluate(settings: dict[str, str]) -> dict[str, Any]:
    """The scores by name, printed as they come."""
    from nanolit.config.build import build
    from nanolit.config.compose import named
    from nanolit.data.pretrain import training_texts, validation_rows
    from nanolit.evaluation.bits_per_byte import bits_per_byte, describe_rows, unigram_bits_per_byte
    from nanolit.evaluation.chat_tasks import evaluate_tasks
    from nanolit.inference.engine import Engine
    from nanolit.jobs.execute import read_job
    from nanolit.language_model import find_release, load_language_model
    from nanolit.machine.paths import home
    from nanolit.planning.derivation import BasePlan, TrainingPlan
    from nanolit.planning.plans import read_plan

    root = home(settings.get("root"))
    release = find_release(settings["run"], root=root)
    if not (release.parent / "job.yaml").is_file():
        raise ValueError(
            f"{release} is a release alone; evaluate asks a stage of a run, by its settings: give run=NAME"
        )
    job = read_job(release.parent / "job.yaml")
    plan = read_plan(release.parent)
    assert isinstance(plan, TrainingPlan)
    problems = whole_number("problems", settings["problems"]) if "problems" in settings else None
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
    if settings.get("tasks") != "none" and plan.chats:
        node = job["chat_tasks"]
        if "tasks" in settings:
            node = named("chat_evaluation", settings["tasks"], key="tasks", mirror=job["recipe"]["mirror"])
        tasks = [build(task) for task in node["tasks"]]
        engine = Engine(model.model, model.tokenizer)
        for name, value in evaluate_tasks(
            engine, tasks, max_problems=problems, max_tokens=node["max_tokens"]
        ):
            tell(name, value)
    return scores


def whole_number(key: str, text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise ValueError(f"{key} is {text!r}; it must be a whole number, 1 or more")
    return int(text)


if __name__ == "__main__":
    leave(main)
