"""Evaluate a finished stage again, exactly as in training, or any model on CORE.

    nanolit evaluate demo                        the run's last stage: its own validation, then chat tasks
    nanolit evaluate demo/base                   bits per byte on the stage's own validation rows
    nanolit evaluate demo/sft max_per_task=20    a fixed random part of each chat task
    nanolit evaluate demo tasks=none             only the validation
    nanolit evaluate d12/base tasks=core         CORE's 22 tasks, each with an error bar
    nanolit evaluate release=FOLDER tasks=core   any release, including one converted from nanochat
    nanolit evaluate hf=FOLDER tasks=core        a transformers model
    nanolit evaluate demo show=GSM8K wrong=true  the answers it got wrong

base, mid and sft are validated by bits per byte, rl by pass@k. All answers are stored in evaluation/
in the stage's folder, or in root/eval/models for any other model; an interrupted evaluation resumes there.
GPT-2's scores are shown next to the published ones. The last line is JSON.
"""

import json
import sys
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from nanolit.config.build import build
from nanolit.config.compose import allow_weak_sandbox, named
from nanolit.config.schema import ChatTasks, Job
from nanolit.config.stored import read_job
from nanolit.config.words import options
from nanolit.jobs.inputs import hub_forbidden
from nanolit.machine.arguments import Root, choose, read, setting
from nanolit.machine.exit import command, sigterm_interrupts
from nanolit.machine.locks import held
from nanolit.machine.paths import core_folder, file_hash
from nanolit.machine.system import under_torchrun
from nanolit.planning.plans import BasePlan, FinetunePlan, TrainingPlan, read_plan
from nanolit.tasks.bundle import open_bundle
from nanolit.tasks.task import check_names

if TYPE_CHECKING:  # these import torch
    from nanolit.evaluation.evaluators import BitsPerByte, Evaluator
    from nanolit.tokenizer.bpe import Tokenizer

Scores = dict[str, object]
READ_OF_PLAN = ("gpt", "packing", "eval_rows", "tokenizer", "validation", "samples", "max_new_tokens")
UNIGRAM_CHARACTERS = 5_000_000  # of training text, whose tokens are counted


@dataclass(frozen=True, kw_only=True)
class Settings(Root):
    """Settings: which stage to evaluate, and on what."""

    run: str | None = setting(
        "a run in the root folder (nanolit runs lists them)", None, value="RUN[/STAGE]", positional=True
    )
    release: Path | None = setting("a release instead of a run", None)
    hf: Path | None = setting("a transformers model folder instead of a run (tasks=core only)", None)
    tasks: str | None = setting(
        "core, or a name in conf/chat_evaluation (default: the run's own)", None, value="NAME"
    )
    show: str | None = setting("print the stored answers for this task", None, value="TASK")
    wrong: bool = setting("with show: only the wrong answers", False)
    max_per_task: int | None = setting("at most N problems per task (default: all)", None, least=1)
    crop: int | None = setting(
        "crop CORE's prompts from the left to N tokens (default: no crop; with hf, the model's context)",
        None,
        least=2,
    )
    sandbox: Literal["strong", "weak"] = setting(
        "weak: run model-written programs even if only Python's own hook confines them", "strong"
    )
    bundle: Path | None = setting("CORE's questions (default: root/eval/core, downloaded if missing)", None)
    offline: bool = setting("download nothing", False)


@command
def main(words: Sequence[str]) -> int | None:
    settings = read(Settings, words, about=__doc__)
    check(settings)
    if under_torchrun():
        raise ValueError("evaluate runs on one device; start it without torchrun")
    from nanolit.language_model import find_release  # imports torch: a misspelt name was refused before

    model = settings.hf or find_release(settings.release or settings.run or "", root=settings.root)
    if settings.show is not None:
        from nanolit.evaluation.answers import tell_answers

        for line in tell_answers(
            folder_of_items(model, root=settings.home), settings.show, wrong=settings.wrong
        ):
            print(line)
        return 0
    try:
        with sigterm_interrupts():
            print(json.dumps(evaluate(settings, model)))
    except KeyboardInterrupt:
        kept = folder_of_items(model, root=settings.home)
        print(f"\ninterrupted; the same command resumes with the answers in {kept}", file=sys.stderr)
        return 130
    return 0


def evaluate(settings: Settings, model: Path) -> Scores:
    """Return the scores of a release, or of a Hugging Face folder, by name; they are printed as they come."""
    from nanolit.evaluation.items import identity

    ask = evaluate_core if settings.tasks == "core" else evaluate_stage
    if ask == evaluate_stage:
        stored_stage(model)  # a release alone is refused
    folder = folder_of_items(model, root=settings.home)
    hub = hub_forbidden() if settings.offline else nullcontext()
    with hub, held(folder / ".lock", busy=f"{folder} is being written"):
        return ask(settings, model, folder, identity(model))


def folder_of_items(model: Path, *, root: Path) -> Path:
    """Return where the items of a stage's release, a release alone or a Hugging Face folder lie."""
    from nanolit.evaluation.items import identity

    if (model.parent / "job.yaml").is_file():
        return model.parent / "evaluation"
    return root / "eval" / "models" / f"{model.resolve().name}-{identity(model)['weights'][:8]}"


def evaluate_core(settings: Settings, folder: Path, kept: Path, about: dict[str, str]) -> Scores:
    """Ask the model in `folder` CORE; `kept` gets the scores and the items, where the report finds them."""
    from nanolit.evaluation import core, foreign
    from nanolit.evaluation.spans import OwnScorer
    from nanolit.language_model import load_language_model

    bundle = settings.bundle or core_folder(settings.home)
    if settings.bundle is None:
        with held(bundle / ".lock", wait=True):
            open_bundle(bundle, offline=settings.offline)
    asked = {"max_per_task": settings.max_per_task, "folder": kept, "about": about}
    if settings.hf is None:
        model = load_language_model(folder, root=settings.root, device=None, stage=None)
        scorer = OwnScorer(model.model)
        scores = core.score_core(scorer, model.tokenizer, bundle, crop=settings.crop, **asked)
    else:
        scorer = foreign.open_foreign(folder)
        crop = {"crop": settings.crop} if settings.crop else {}
        scores = core.fitting(core.score_core, scorer, scorer, bundle, **asked, **crop)
        foreign.compare_with_published(folder.resolve().name, bundle, scores)
    return {"model": settings.run or str(folder), **scores}


def evaluate_stage(settings: Settings, release: Path, kept: Path, about: dict[str, str]) -> Scores:
    """Return the scores by name, printed as they come."""
    from nanolit.evaluation.chat_tasks import evaluate_tasks
    from nanolit.evaluation.evaluators import BitsPerByte
    from nanolit.inference.engine import Engine
    from nanolit.language_model import load_language_model
    from nanolit.model.release import tell_origin

    job, plan = stored_stage(release)
    chat_tasks = tasks_of(settings, job, plan)
    tasks = [build(task) for task in chat_tasks["tasks"]] if chat_tasks else []
    check_names(task.name for task in tasks)
    model = load_language_model(release, root=settings.root, device=None, stage=None)
    tell_origin(model.meta, f"{job['run']}/{plan.stage}")
    for name, stated in model.meta.get("made_with", {}).items():
        if (path := release.parent / name).is_file() and file_hash(path) != stated:
            print(
                f"{path} has changed since the model was trained; its current settings are used", flush=True
            )
    engine = Engine(model.model, model.tokenizer)
    scores: Scores = {"run": job["run"], "stage": plan.stage}

    def tell(name: str, value: float) -> None:
        scores[name] = value
        print(f"  {name:<28} {value:.4f}", flush=True)

    job["root"] = str(settings.home)  # the run may have been made elsewhere
    evaluator = evaluator_of(job, plan, model.tokenizer)
    if isinstance(evaluator, BitsPerByte):
        scores["val_rows"] = evaluator.rows
        print(f"  {evaluator.about}", flush=True)
    for name, value in evaluator.evaluate(engine).items():
        tell(name, value)
    if isinstance(plan, BasePlan) and isinstance(evaluator, BitsPerByte):
        tell("val_bpb of token unigrams", unigrams(job, evaluator, model.tokenizer))
    if chat_tasks:
        for task in tasks:
            if task.conditions:
                scores[f"{task.name}, conditions"] = task.conditions
                print(f"  {task.name}: {task.conditions}", flush=True)
        for name, value in evaluate_tasks(
            engine,
            tasks,
            max_per_task=settings.max_per_task or chat_tasks.get("max_per_task"),
            max_tokens=chat_tasks["max_tokens"],
            folder=kept,
            about=about,
        ):
            tell(name, value)
    return scores


def check(settings: Settings) -> None:
    """ValueError for settings that don't go together, and, with the nearest spelling, for unknown tasks."""
    if sum(value is not None for value in (settings.run, settings.release, settings.hf)) != 1:
        raise ValueError("which model? give one of run=RUN[/STAGE], release=FOLDER and hf=FOLDER")
    name = settings.tasks
    if settings.hf is not None and name != "core" and settings.show is None:
        raise ValueError(
            "hf= works only with CORE: give tasks=core (for other tasks use lm-eval's own hf model)"
        )
    if name is not None and not name.endswith((".yaml", ".yml")):
        choose(name, [*options("chat_evaluation"), "core"], kind="set of tasks")
    if settings.wrong and settings.show is None:
        raise ValueError("wrong= needs show=TASK; add that, or leave out wrong=")
    for key in ("crop", "bundle"):
        if name != "core" and getattr(settings, key) is not None:
            raise ValueError(f"{key}= needs tasks=core; add that, or leave it out")


def stored_stage(release: Path) -> tuple[Job, TrainingPlan]:
    """Return the job and the plan of the stage that a release is of; ValueError for a release alone."""
    folder = release.parent
    if not (folder / "job.yaml").is_file():
        raise ValueError(
            f"{release} is only a release: give run=NAME for a stage's own validation, or tasks=core"
        )
    plan = read_plan(folder)
    if lacking := [name for name in READ_OF_PLAN if getattr(plan, name, "") is None]:
        raise ValueError(f"{folder / 'plan.json'} lacks {', '.join(lacking)}; restore it")
    if not isinstance(plan, TrainingPlan):
        raise ValueError(f"{folder / 'plan.json'} belongs to the stage {plan.stage}; restore the right one")
    return read_job(folder / "job.yaml"), plan


def tasks_of(settings: Settings, job: Job, plan: TrainingPlan) -> ChatTasks | None:
    """Return the chat tasks to ask, if any; ValueError for a setting of chat tasks where none are asked."""
    asked = plan.chats and settings.tasks != "none"
    if asked:
        mirror = job["recipe"]["mirror"]
        chosen = settings.tasks and named("chat_evaluation", settings.tasks, key="tasks", mirror=mirror)
        chosen = chosen or job["chat_tasks"]
        if settings.sandbox == "weak":
            allow_weak_sandbox(chosen)
        return chosen
    ignored = (
        "max_per_task" if settings.max_per_task else "tasks" if settings.tasks not in (None, "none") else None
    )
    if ignored:
        why = (
            "tasks=none asks no questions" if plan.chats else f"{job['run']}/{plan.stage} is not a chat model"
        )
        raise ValueError(f"{ignored}= is for chat tasks, but {why}; leave it out")
    return None


def evaluator_of(job: Job, plan: TrainingPlan, tokenizer: "Tokenizer") -> "Evaluator":
    """Return what scored the stage while it trained, on the same rows or problems."""
    from nanolit.phases.base import base_evaluator
    from nanolit.phases.finetune import finetune_evaluator
    from nanolit.phases.rl import rl_evaluator

    if isinstance(plan, BasePlan):
        return base_evaluator(job, plan, tokenizer, micro_batch=1)
    if isinstance(plan, FinetunePlan):
        return finetune_evaluator(job, plan, tokenizer, micro_batch=1)
    return rl_evaluator(plan)


def unigrams(job: Job, evaluator: "BitsPerByte", tokenizer: "Tokenizer") -> float:
    """Return the bits per byte of a model that knows only how frequent each token is."""
    from nanolit.data.parquet import training_texts
    from nanolit.evaluation.bits_per_byte import unigram_bits_per_byte

    corpus = build(job["data"]).open_corpus(Path(job["root"]), num_shards=1)
    texts = list(training_texts(corpus, max_characters=UNIGRAM_CHARACTERS))
    train_ids = tokenizer.encode_batch(texts, bos=True)
    return unigram_bits_per_byte(train_ids, evaluator.batches, evaluator.token_bytes)


if __name__ == "__main__":
    sys.exit(main())
