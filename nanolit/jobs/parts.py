"""What a training stage is made of, built from a job and its plan: model, data, phase, evaluations.

The worker fits these parts; the benchmarks time the same ones.
"""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from nanolit.callbacks import checkpoint
from nanolit.callbacks.checkpoint import Checkpoint
from nanolit.config.build import build
from nanolit.config.schema import Job
from nanolit.data.conversations import ConversationStream, ValidationConversations
from nanolit.data.pretrain import make_pretraining
from nanolit.data.prompts import PromptStream
from nanolit.data.stream import PretrainStream
from nanolit.data.validation import ValidationRows
from nanolit.jobs.origin import Origin, origin
from nanolit.machine.device import keyed_generator, pick_device
from nanolit.machine.paths import read_json, stage_folder, tokenizers_folder
from nanolit.model.gpt import GPT
from nanolit.model.release import load_release, load_weights
from nanolit.phases.base import Base
from nanolit.phases.core import Phase
from nanolit.phases.mid import Mid
from nanolit.phases.rl import ReinforcementLearning
from nanolit.phases.sft import Sft
from nanolit.planning.derivation import BasePlan, FinetunePlan, RLPlan, TrainingPlan
from nanolit.tasks.task import Task
from nanolit.tokenizer.bpe import Tokenizer

Stream = PretrainStream | ConversationStream | PromptStream
Validation = ValidationRows | ValidationConversations
PHASES: dict[str, type[Phase]] = {"base": Base, "mid": Mid, "sft": Sft, "rl": ReinforcementLearning}
FAST_DEV_PROBLEMS = 2

# Of activations and embeddings; None: what suits the device
DTYPES = {None: None, "bf16": torch.bfloat16, "fp8": torch.bfloat16, "fp32": torch.float32}


@dataclass
class Parts:
    """`validation` is None for rl, which has a `validation_task` instead; `chat_tasks` is empty for base."""

    plan: TrainingPlan
    folder: Path
    tokenizer: Tokenizer
    tokenizer_folder: Path
    device: torch.device
    phase: Phase
    stream: Any  # a Stream, or what a benchmark puts in its place
    validation: Validation | None
    validation_task: Task | None
    chat_tasks: list[Task]
    resumed: Checkpoint | None
    origin: Origin | None


def launched_rank() -> int:
    """The rank that torchrun gave: known before there is a process group."""
    return int(os.environ.get("RANK", "0"))


def build_parts(job: Job, plan: TrainingPlan) -> Parts:
    """Build everything; from the stage's newest whole checkpoint where there is one, else from its origin."""
    stage = plan.stage
    folder = stage_folder(job["root"], job["run"], stage)
    begins = origin(job, stage)
    tokenizer_folder = tokenizers_folder(job["root"]) / plan.tokenizer
    if begins:
        tokenizer_folder = begins.release / "tokenizer"
    tokenizer = Tokenizer.load(tokenizer_folder, encoder=job["stage"]["tokenizer"]["encoder"])
    check_vocabulary(tokenizer, tokenizer_folder, plan)
    resumed = checkpoint.latest(folder / "checkpoints")
    task, validation_task = None, None
    validation: Validation | None = None
    stream: Stream
    where: dict[str, Any] = {"rank": launched_rank(), "world": plan.ranks}
    if isinstance(plan, BasePlan):
        corpus = build(job["data"]).prepare(Path(job["root"]), num_shards=plan.shards)
        stream, validation = make_pretraining(
            corpus,
            tokenizer,
            **row_settings(plan, job),
            packing=plan.packing,
            validation_tokens=plan.eval_rows * plan.gpt["context"],
            **where,
        )
        num_steps = plan.num_steps
    elif isinstance(plan, RLPlan):
        task, validation_task = build(plan.task), build(plan.validation)
        stream = PromptStream(
            task,
            tokenizer,
            prompts=plan.questions,
            max_prompt_tokens=plan.gpt["context"],
            seed=job["seed"],
            max_steps=plan.num_steps,
            **where,
        )
        num_steps = stream.num_steps
    else:
        stages: Any = job["stage"]
        mixture = stages[stage]["mixture"]
        stream = ConversationStream(
            [build(source) for source in mixture["sources"]],
            tokenizer,
            **row_settings(plan, job),
            packing=plan.packing,
            max_steps=plan.num_steps,
            **where,
        )
        validation = ValidationConversations(
            [build(source) for source in mixture["validation"]],
            tokenizer,
            context=plan.gpt["context"],
            micro_batch=plan.micro_batch,
            packing=plan.packing,
            num_rows=plan.eval_rows,
            **where,
        )
        num_steps = stream.num_steps
    device = pick_device()
    precision = precision_of(job, stage)
    gpt, restore = load_gpt(job, plan, device, resumed, begins, precision, first=launched_rank() == 0)
    if resumed:
        stream.load_position(resumed.positions())
    rl_settings = {}
    if isinstance(plan, RLPlan):
        names = ("samples", "temperature", "top_k", "max_new_tokens", "micro_batch")
        rl_settings = {"task": task, "tokenizer": tokenizer, "seed": job["seed"]}
        rl_settings |= {name: getattr(plan, name) for name in names}
    phase = PHASES[stage](
        gpt,
        groups=plan.groups,
        optimizer=optimizer_settings(job),
        schedule=build(plan.schedule),
        num_steps=num_steps,
        finished_steps=resumed.step if resumed else 0,
        compile=compiled(job, plan, device),
        restore=restore,
        **rl_settings,
    )
    chat_tasks = [build(node) for node in job["chat_tasks"]["tasks"]] if plan.chats else []
    return Parts(
        plan=plan,
        folder=folder,
        tokenizer=tokenizer,
        tokenizer_folder=tokenizer_folder,
        device=device,
        phase=phase,
        stream=stream,
        validation=validation,
        validation_task=validation_task,
        chat_tasks=chat_tasks,
        resumed=resumed,
        origin=begins,
    )


def row_settings(plan: BasePlan | FinetunePlan, job: Job) -> dict[str, Any]:
    return {
        "context": plan.gpt["context"],
        "rows": plan.rows,
        "micro_batch": plan.micro_batch,
        "seed": job["seed"],
    }


def optimizer_settings(job: Job) -> dict[str, Any]:
    """The recipe's; its updates are compiled on a GPU unless compile=false."""
    settings = {name: value for name, value in job["recipe"]["optimizer"].items() if name != "_target_"}
    return {"compile": False if job["compile"] is False else None, **settings}


def compiled(job: Job, plan: TrainingPlan, device: torch.device) -> bool:
    """On a GPU unless told otherwise; never where the rows of every step have other lengths."""
    if not plan.equal_rows:
        return False
    return device.type == "cuda" if job["compile"] is None else job["compile"]


def precision_of(job: Job, stage: str) -> str | None:
    """The job's; but rl samples in bf16, and has to score what was sampled by the same numbers."""
    return "bf16" if stage == "rl" and job["precision"] == "fp8" else job["precision"]


def check_vocabulary(tokenizer: Tokenizer, folder: Path, plan: TrainingPlan) -> None:
    if tokenizer.vocab_size != plan.gpt["vocab_size"]:
        raise ValueError(
            f"the tokenizer {folder} has {tokenizer.vocab_size:,} tokens, the model "
            f"{plan.gpt['vocab_size']:,}; give stage.tokenizer.vocab_size={tokenizer.vocab_size}"
        )


def load_gpt(
    job: Job,
    plan: TrainingPlan,
    device: torch.device,
    resumed: Checkpoint | None,
    begins: Origin | None,
    precision: str | None,
    *,
    first: bool,
) -> tuple[GPT, Any]:
    """The model with its weights, and what gives a fresh optimizer its state (None: nothing does)."""
    source = resumed
    if not resumed and begins:
        check_same_model(plan.gpt, begins)
        source = checkpoint.latest(begins.checkpoints) if begins.checkpoints else None
        if source is None:
            if first:
                print(
                    f"beginning from the release {begins.release}, without the optimizer's state", flush=True
                )
            gpt = load_release(begins.release, device=device, dtype=DTYPES[precision])[0].train()
            if precision == "fp8":
                gpt.use_fp8()
            return gpt, None
    gpt = build_gpt(plan.gpt, device, seed=job["seed"], precision=precision)
    if not source:
        return gpt, None
    load_weights(gpt, source.model_state(), origin=str(source.folder))
    keeps = resumed is not None or plan.warm_start
    return gpt, source.restore_optimizer if keeps else None


def check_same_model(gpt: dict[str, Any], begins: Origin) -> None:
    """ValueError with the difference, when the job asks for another model than the one it begins from."""
    has = {key: value for key, value in read_json(begins.release / "gpt.json").items() if key != "format"}
    if differences := [
        f"{key} is {has.get(key)}, the job says {gpt[key]}" for key in gpt if has.get(key) != gpt[key]
    ]:
        raise ValueError(
            f"{begins.name} is another model: {', '.join(differences)}; give the choices that it was made "
            f"with (model.depth={has['depth']} …)"
        )


def build_gpt(
    hyperparameters: dict[str, Any], device: torch.device, *, seed: int, precision: str | None = None
) -> GPT:
    """A GPT with its initial weights, equal on all ranks; built without ever holding it twice."""
    with torch.device("meta"):
        gpt = GPT(**hyperparameters)
    gpt.to_empty(device=device)
    gpt.initialize(keyed_generator(seed, "initial weights", device=device), dtype=DTYPES[precision])
    if precision == "fp8":
        gpt.use_fp8()
    return gpt
