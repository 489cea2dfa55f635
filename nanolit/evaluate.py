"""Evaluate a finished stage again as the pipeline did, or any model by CORE.

    nanolit evaluate run=demo                      the run's last stage: its own validation, then chat tasks
    nanolit evaluate run=demo/base                 bits per byte of the rows that the stage was scored on
    nanolit evaluate run=demo/sft max_per_task=20  a fixed random part of each chat task
    nanolit evaluate run=demo tasks=none           the validation alone
    nanolit evaluate run=d12/base tasks=core       the 22 tasks of CORE, with an error bar each
    nanolit evaluate release=FOLDER tasks=core     of a release, nanochat's converted ones too
    nanolit evaluate run=demo show=GSM8K wrong=true     what it answered, and got wrong

base, mid and sft are validated by bits per byte, rl by pass@k. What was answered to every item goes to
evaluation/ in the stage's folder, where an interrupted evaluation resumes. The last line is JSON.
"""

import json
import sys
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from typing import TYPE_CHECKING, cast

from nanolit.config.build import build
from nanolit.config.compose import named, options
from nanolit.config.schema import ChatTasks, Job, Node
from nanolit.config.stored import read_job
from nanolit.jobs.processes import under_torchrun
from nanolit.machine.arguments import Root, choose, read, setting
from nanolit.machine.exit import command
from nanolit.machine.locks import held
from nanolit.machine.paths import read_json, write_json
from nanolit.planning.plans import BasePlan, FinetunePlan, TrainingPlan, read_plan
from nanolit.tasks.bundle import LABELS, open_bundle, sha256_of_file

if TYPE_CHECKING:  # these import torch
    from nanolit.evaluation.evaluators import BitsPerByte, Evaluator
    from nanolit.tokenizer.bpe import Tokenizer

Scores = dict[str, object]
UNIGRAM_CHARACTERS = 5_000_000  # of training text, whose tokens are counted


@dataclass(frozen=True, kw_only=True)
class Settings(Root):
    """Which stage to evaluate, and on what."""

    run: str | None = setting("a run below root (nanolit runs lists them)", None, value="RUN[/STAGE]")
    release: Path | None = setting("a release, in place of a run", None)
    tasks: str | None = setting(
        "core, none, or a name in conf/chat_evaluation (default: the run's own)", None, value="NAME"
    )
    show: str | None = setting(
        "print what the model answered to this task, and ask nothing", None, value="TASK"
    )
    wrong: bool = setting("with show: the wrong answers alone", False)
    max_per_task: int | None = setting("at most N problems of each task (default: all)", None, least=1)
    crop: int | None = setting(
        "cut CORE's prompts from the left to N tokens (default: none is cut)", None, least=2
    )
    bundle: Path | None = setting("CORE's questions (default: root/eval/core, fetched when missing)", None)
    offline: bool = setting("fetch nothing", False)


@command
def main(words: Sequence[str]) -> None:
    settings = read(Settings, words, about=__doc__)
    check(settings)
    if under_torchrun():
        raise ValueError("evaluate runs on one device; start it without torchrun")
    from nanolit.language_model import find_release  # imports torch: a misspelt name was refused before

    release = find_release(settings.release or settings.run or "", root=settings.root)
    if settings.show is not None:
        return show(settings, release)
    folder = release.parent / "evaluation"
    is_stage = (release.parent / "job.yaml").is_file()
    with held(folder / ".lock", busy=f"{folder} is written to") if is_stage else nullcontext():
        print(json.dumps(evaluate(settings, release)))


def evaluate(settings: Settings, release: Path) -> Scores:
    """Return the scores by name, printed as they come."""
    from nanolit.evaluation.chat_tasks import evaluate_tasks
    from nanolit.evaluation.evaluators import BitsPerByte
    from nanolit.inference.engine import Engine
    from nanolit.language_model import load_language_model

    if settings.tasks == "core":
        return evaluate_core(settings, release)
    job, plan = stored_stage(release)
    chat_tasks = tasks_of(settings, job, plan)
    model = load_language_model(release, root=settings.root, device=None)
    engine = Engine(model.model, model.tokenizer)
    scores: Scores = {"run": job["run"], "stage": plan.stage}

    def tell(name: str, value: float) -> None:
        scores[name] = value
        print(f"  {name:<28} {value:.4f}", flush=True)

    evaluator = evaluator_of(job, plan, model.tokenizer, root=settings.home)
    if isinstance(evaluator, BitsPerByte):
        scores["val_rows"] = evaluator.rows
        print(f"  {evaluator.about}", flush=True)
    for name, value in evaluator.evaluate(engine).items():
        tell(name, value)
    if isinstance(plan, BasePlan) and isinstance(evaluator, BitsPerByte):
        tell("val_bpb of token unigrams", unigrams(job, evaluator, model.tokenizer, root=settings.home))
    if chat_tasks:
        tasks = [build(task) for task in chat_tasks["tasks"]]
        for name, value in evaluate_tasks(
            engine,
            tasks,
            max_problems=settings.max_per_task,
            max_tokens=chat_tasks["max_tokens"],
            folder=release.parent / "evaluation",
            about=identity(release, model.tokenizer),
        ):
            tell(name, value)
    return scores


def check(settings: Settings) -> None:
    """ValueError for settings that don't go together, and, with the nearest spelling, for unknown tasks."""
    if (settings.run is None) == (settings.release is None):
        raise ValueError("which model? give run=RUN[/STAGE] or release=FOLDER, one of the two")
    name = settings.tasks
    if name is not None and not name.endswith((".yaml", ".yml")):
        choose(name, [*options("chat_evaluation"), "core", "none"], kind="tasks")
    if settings.wrong and settings.show is None:
        raise ValueError("wrong= is a setting of show=TASK; add that, or leave it out")
    for key in ("crop", "bundle"):
        if name != "core" and getattr(settings, key) is not None:
            raise ValueError(f"{key}= is a setting of tasks=core; add that, or leave it out")


def evaluate_core(settings: Settings, release: Path) -> Scores:
    """Ask CORE; the scores are kept beside the items, where the report finds them."""
    from nanolit.evaluation import core
    from nanolit.evaluation.scores import mean_centered
    from nanolit.inference.decode import Decoder
    from nanolit.language_model import load_language_model

    bundle = settings.bundle or open_bundle(settings.home / "eval" / "core", offline=settings.offline)
    model = load_language_model(release, root=settings.root, device=None)
    stage = release.parent if (release.parent / "job.yaml").is_file() else None
    folder = stage / "evaluation" if stage else None
    scored = []
    for name, score in core.evaluate_core(
        Decoder(model.model, plain=True),  # its kernels are for single steps
        model.tokenizer,
        bundle,
        LABELS,
        max_per_task=settings.max_per_task,
        crop=settings.crop,
        folder=folder and folder / "core",
        about=identity(release, model.tokenizer),
    ):
        scored.append(score)
        print(f"  {name:<32} {core.in_words(score)}", flush=True)
    value, error = mean_centered(scored)
    others = core.replaced(bundle, LABELS)
    mean = core.name_of_mean(max_per_task=settings.max_per_task, crop=settings.crop, others=others)
    path = folder and folder / "core.json"
    older = read_json(path)["metrics"] if path and path.is_file() else {}
    found: Scores = {
        "metrics": {mean: value, f"{mean}, standard error": error},
        "tasks": {score.task: {"accuracy": score.accuracy, "error": score.error} for score in scored},
        "max_per_task": settings.max_per_task,
        "crop": settings.crop,
        "other_questions": others,
    }
    if path:  # other parts of CORE stay in the report
        metrics = older | {mean: value, f"{mean}, standard error": error}
        write_json(path, {"format": 1, **found, "metrics": metrics})
    print(f"  {'CORE':<32} {value:.4f} ± {error:.4f}; runs of one recipe differ by 0.006 (sd) besides")
    if others:
        print(f"  not CORE as published: {', '.join(others)} have other questions than the originals")
    return {"model": settings.run or str(settings.release), **found}


def identity(release: Path, tokenizer: "Tokenizer") -> dict[str, str]:
    """Return what items on disk are of: another model's are not taken for this one's."""
    return {"weights": sha256_of_file(release / "model.safetensors"), "tokenizer": tokenizer.hash}


def show(settings: Settings, release: Path) -> None:
    """Print what the model answered to a task, from the items on disk."""
    from nanolit.evaluation.scores import read_items

    stored_stage(release)
    folder, task = release.parent / "evaluation", settings.show
    files = {path.stem: path for path in [*folder.glob("*.jsonl"), *folder.glob("core/*.jsonl")]}
    if not files:
        raise ValueError(f"{folder} holds no items yet; evaluate the run first, without show=")
    _, items = read_items(files[choose(task or "", files, kind="evaluated task")])
    for item in items:
        if settings.wrong and item["right"]:
            continue
        question = item.get("question", "")
        print(f"{'right' if item['right'] else 'wrong'}  item {item['index']}")
        print(readable(question if isinstance(question, str) else json.dumps(question, ensure_ascii=False)))
        for reply, extracted in zip_longest(item.get("replies", []), item.get("extracted", [])):
            print(
                readable(reply)
                if extracted in (None, reply)
                else f"{readable(reply)}\n  → {readable(str(extracted))}"
            )
        if "expected" in item:
            print(f"  expected: {readable(str(item['expected'])).lstrip()}")
        if item.get("losses"):
            losses = item["losses"].items() if isinstance(item["losses"], dict) else enumerate(item["losses"])
            print("  losses: " + ", ".join(f"{name} {loss:.4f}" for name, loss in losses if loss is not None))


def readable(text: str) -> str:
    """Indent a reply; control characters, which a terminal would obey, are written out."""
    shown = "".join(char if char.isprintable() or char == "\n" else repr(char)[1:-1] for char in text)
    return "  " + shown.replace("\n", "\n  ")


def stored_stage(release: Path) -> tuple[Job, TrainingPlan]:
    """Return the job and the plan of the stage that a release is of; ValueError for a release alone."""
    folder = release.parent
    if not (folder / "job.yaml").is_file():
        raise ValueError(
            f"{release} is a release alone: give run=NAME for a stage's own validation, or tasks=core"
        )
    plan = read_plan(folder)
    assert isinstance(plan, TrainingPlan)
    return read_job(folder / "job.yaml"), plan


def tasks_of(settings: Settings, job: Job, plan: TrainingPlan) -> ChatTasks | None:
    """Return the chat tasks to ask, if any; ValueError for a setting of chat tasks where none are asked."""
    asked = plan.chats and settings.tasks != "none"
    if asked:
        mirror = job["recipe"]["mirror"]
        chosen = settings.tasks and named("chat_evaluation", settings.tasks, key="tasks", mirror=mirror)
        return chosen or job["chat_tasks"]
    ignored = (
        "max_per_task" if settings.max_per_task else "tasks" if settings.tasks not in (None, "none") else None
    )
    if ignored:
        why = "tasks=none asks none" if plan.chats else f"{job['run']}/{plan.stage} is not a chat model"
        raise ValueError(f"{ignored}= is a setting of the chat tasks, and {why}; leave it out")
    return None


def evaluator_of(job: Job, plan: TrainingPlan, tokenizer: "Tokenizer", *, root: Path) -> "Evaluator":
    """Return what scored the stage while it trained, on the same rows or problems."""
    from nanolit.data.conversations import ValidationConversations
    from nanolit.data.pretrain import validation_rows
    from nanolit.evaluation.evaluators import BitsPerByte, Passes
    from nanolit.phases.rl import MAX_PASSES

    if not isinstance(plan, BasePlan | FinetunePlan):
        return Passes(
            build(plan.validation),
            num_samples=min(plan.samples, MAX_PASSES),
            temperature=plan.temperature,
            top_k=plan.top_k,
            max_tokens=plan.max_new_tokens,
        )
    context = plan.gpt["context"]
    if isinstance(plan, BasePlan):
        validation = validation_rows(
            build(job["data"]).open_corpus(root, num_shards=1),
            tokenizer,
            context=context,
            micro_batch=1,
            packing=plan.packing,
            num_tokens=plan.eval_rows * context,
        )
    else:
        stages = cast(Node, job["stage"])
        validation = ValidationConversations(
            [build(source) for source in stages[plan.stage]["mixture"]["validation"]],
            tokenizer,
            context=context,
            micro_batch=1,
            packing=plan.packing,
            num_rows=plan.eval_rows,
            rank=0,
            world=1,
        )
    return BitsPerByte(validation, rows=validation.identity, token_bytes=tokenizer.token_bytes())


def unigrams(job: Job, evaluator: "BitsPerByte", tokenizer: "Tokenizer", *, root: Path) -> float:
    """Return the bits per byte of a model that knows only how frequent each token is."""
    from nanolit.data.pretrain import training_texts
    from nanolit.evaluation.bits_per_byte import unigram_bits_per_byte

    corpus = build(job["data"]).open_corpus(root, num_shards=1)
    texts = list(training_texts(corpus, max_characters=UNIGRAM_CHARACTERS))
    train_ids = tokenizer.encode_batch(texts, bos=True)
    return unigram_bits_per_byte(train_ids, evaluator.batches, evaluator.token_bytes)


if __name__ == "__main__":
    sys.exit(main())
