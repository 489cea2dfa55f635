"""What a training stage is made of, built from a job and its plan: model, data, phase, evaluations.

The worker fits these parts; the benchmarks time the same ones.
"""

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from nanolit.callbacks import checkpoint
from nanolit.callbacks.checkpoint import Checkpoint
from nanolit.config.build import build
from nanolit.config.schema import Job
from nanolit.evaluation.evaluators import Evaluator
from nanolit.jobs.origin import Origin, origin
from nanolit.machine.device import keyed_generator, pick_device
from nanolit.machine.paths import read_json, stage_folder, tokenizers_folder
from nanolit.model.gpt import GPT, GPTConfig
from nanolit.model.release import load_release, load_weights
from nanolit.phases.base import build_base
from nanolit.phases.core import Phase
from nanolit.phases.finetune import build_finetune
from nanolit.phases.rl import build_rl
from nanolit.phases.stage import Inputs, Training
from nanolit.planning.derivation import BasePlan, FinetunePlan, RLPlan, TrainingPlan
from nanolit.tasks.task import Task
from nanolit.tokenizer.bpe import Tokenizer

PHASES: dict[type[TrainingPlan], Callable[..., Training]] = {
    BasePlan: build_base,
    FinetunePlan: build_finetune,
    RLPlan: build_rl,
}
FAST_DEV_PROBLEMS = 2

# Of activations and embeddings; None: what suits the device
DTYPES = {None: None, "bf16": torch.bfloat16, "fp8": torch.bfloat16, "fp32": torch.float32}


@dataclass
class Parts:
    """The phase's file builds `phase`, `stream`, `evaluator`, `left_out`; `chat_tasks` is empty for base."""

    plan: TrainingPlan
    folder: Path
    tokenizer: Tokenizer
    tokenizer_folder: Path
    device: torch.device
    phase: Phase
    stream: Any  # the phase's, or what a benchmark puts in its place
    evaluator: Evaluator
    chat_tasks: list[Task]
    left_out: str
    resumed: Checkpoint | None
    origin: Origin | None


def launched_rank() -> int:
    """The rank that torchrun gave: known before there is a process group."""
    return int(os.environ.get("RANK", "0"))


def build_parts(job: Job, plan: TrainingPlan) -> Parts:
    """Build everything; from the stage's newest whole checkpoint where there is one, else from its origin."""
    folder, begins = stage_folder(job["root"], job["run"], plan.stage), origin(job, plan.stage)
    tokenizer_folder = begins.release / "tokenizer" if begins else stored_tokenizer(job, plan)
    tokenizer = Tokenizer.load(tokenizer_folder)
    check_vocabulary(tokenizer, tokenizer_folder, plan)
    resumed, device = checkpoint.latest(folder / "checkpoints"), pick_device()
    gpt, restore = load_gpt(job, plan, device, resumed=resumed, begins=begins)
    inputs = Inputs(
        gpt=gpt,
        tokenizer=tokenizer,
        optimizer=optimizer_settings(job),
        compile=compiled(job, plan, device),
        finished_steps=resumed.step if resumed else 0,
        restore=restore,
        rank=launched_rank(),
    )
    training = PHASES[type(plan)](job, plan, inputs)
    if resumed:
        training.stream.load_position(resumed.positions())
    return Parts(
        plan=plan,
        folder=folder,
        tokenizer=tokenizer,
        tokenizer_folder=tokenizer_folder,
        device=device,
        phase=training.phase,
        stream=training.stream,
        evaluator=training.evaluator,
        chat_tasks=[build(node) for node in job["chat_tasks"]["tasks"]] if plan.chats else [],
        left_out=training.left_out,
        resumed=resumed,
        origin=begins,
    )


def stored_tokenizer(job: Job, plan: TrainingPlan) -> Path:
    return tokenizers_folder(job["root"]) / plan.tokenizer


def optimizer_settings(job: Job) -> dict[str, Any]:
    """The recipe's; its updates are compiled on a GPU unless compile=false."""
    settings = {name: value for name, value in job["recipe"]["optimizer"].items() if name != "_target_"}
    return {"compile": False if job["compile"] is False else None, **settings}


def compiled(job: Job, plan: TrainingPlan, device: torch.device) -> bool:
    """On a GPU unless told otherwise; never where the rows of every step have other lengths."""
    if not plan.equal_rows:
        return False
    return device.type == "cuda" if job["compile"] is None else job["compile"]


def precision_of(job: Job, plan: TrainingPlan) -> str | None:
    """The job's, or bf16 where the stage does without fp8."""
    return "bf16" if job["precision"] == "fp8" and not plan.allows_fp8 else job["precision"]


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
    *,
    resumed: Checkpoint | None,
    begins: Origin | None,
) -> tuple[GPT, Any]:
    """The model with its weights, and what gives a fresh optimizer its state (None: nothing does)."""
    source, precision = resumed, precision_of(job, plan)
    if not resumed and begins:
        check_same_model(plan.gpt, begins)
        source = checkpoint.latest(begins.checkpoints) if begins.checkpoints else None
        if source is None:
            if launched_rank() == 0:
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
        gpt = GPT(GPTConfig(**hyperparameters))
    gpt.to_empty(device=device)
    gpt.initialize(keyed_generator(seed, "initial weights", device=device), dtype=DTYPES[precision])
    if precision == "fp8":
        gpt.use_fp8()
    return gpt
