"""The parts of a training stage, built from a job and its plan: tokenizer, model, data, phase.

The worker fits these parts; the benchmarks time the same ones.
"""

import json
import os
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import torch

from nanolit.callbacks import checkpoint
from nanolit.callbacks.checkpoint import Checkpoint
from nanolit.config.build import build
from nanolit.config.names import decisive_settings, flatten
from nanolit.config.schema import Job
from nanolit.jobs.inputs import Origin, check_same_model, origin
from nanolit.machine.device import compute_dtype, derived_seed, pick_device
from nanolit.machine.paths import Json, as_null, read_json, stage_folder, tokenizers_folder
from nanolit.machine.system import launched_rank
from nanolit.model.accounting import Hyperparameters
from nanolit.model.gpt import GPT, GPTConfig
from nanolit.model.release import AGAIN, Meta, load_release, load_weights, tell_origin
from nanolit.phases.base import build_base
from nanolit.phases.core import Inputs, Restore, Training
from nanolit.phases.finetune import build_finetune
from nanolit.phases.rl import build_rl
from nanolit.planning.plans import BasePlan, FinetunePlan, RLPlan, TrainingPlan
from nanolit.tasks.task import Task
from nanolit.tokenizer.bpe import Tokenizer

PHASES: dict[type[TrainingPlan], Callable[..., Training]] = {
    BasePlan: build_base,
    FinetunePlan: build_finetune,
    RLPlan: build_rl,
}
# The fields of a plan that decide a stage's result: a checkpoint with other values is of another run
DECIDING = ("tokenizer", "gpt", "total_batch", "rows", "num_steps", "packing", "schedule", "groups")
DECIDING += ("lr_scale", "warm_start", "task", "questions", "samples", "temperature", "top_k")
DECIDING += ("max_new_tokens",)
# Of activations and embeddings; None: what suits the device
DTYPES = {None: None, "bf16": torch.bfloat16, "fp8": torch.bfloat16, "fp32": torch.float32}


@dataclass(kw_only=True)
class Parts(Training):
    """All that a stage is trained with: what its phase builds, and more; `chat_tasks` is empty for base."""

    job: Job
    plan: TrainingPlan
    folder: Path
    tokenizer: Tokenizer
    tokenizer_folder: Path
    device: torch.device
    chat_tasks: list[Task]
    resumed: Checkpoint | None
    origin: Origin | None
    # All that decides the stage's result: a checkpoint with other settings is of another run
    settings: Json = field(default_factory=dict)


def build_parts(job: Job, plan: TrainingPlan) -> Parts:
    """Build everything; from the stage's newest whole checkpoint where there is one, else from its origin."""
    folder, begins = stage_folder(job["root"], job["run"], plan.stage), origin(job, plan.stage)
    tokenizer_folder = (
        begins.release / "tokenizer" if begins else tokenizers_folder(job["root"]) / plan.tokenizer
    )
    tokenizer = load_tokenizer(tokenizer_folder, vocab_size=plan.gpt["vocab_size"])
    settings = settings_of(job, plan, begins)
    saved = folder / "checkpoints"
    resumed = newest_checkpoint(saved, settings) if os.path.lexists(saved) else None
    device = pick_device()
    gpt, restore = load_gpt(job, plan, device, resumed=resumed, begins=begins)
    inputs = Inputs(
        gpt=gpt,
        tokenizer=tokenizer,
        compile=compiled(job, plan, device),
        finished_steps=resumed.step if resumed else 0,
        restore=restore,
        rank=launched_rank(),
    )
    training = PHASES[type(plan)](job, plan, inputs)
    if resumed:
        training.stream.load_position(resumed.positions())
    return Parts(
        **vars(training),
        job=job,
        plan=plan,
        folder=folder,
        tokenizer=tokenizer,
        tokenizer_folder=tokenizer_folder,
        device=device,
        chat_tasks=[build(node) for node in job["chat_tasks"]["tasks"]] if plan.chats else [],
        resumed=resumed,
        origin=begins,
        settings=settings,
    )


def load_tokenizer(folder: Path, *, vocab_size: int) -> Tokenizer:
    """Load a stage's tokenizer; ValueError unless it has as many tokens as the model."""
    tokenizer = Tokenizer.load(folder)
    if tokenizer.vocab_size != vocab_size:
        raise ValueError(
            f"the tokenizer {folder} has {tokenizer.vocab_size:,} tokens, the model {vocab_size:,}; "
            f"give stage.tokenizer.vocab_size={tokenizer.vocab_size}"
        )
    return tokenizer


def newest_checkpoint(folder: Path, settings: Json) -> Checkpoint | None:
    """Return the newest whole checkpoint, if any; what lies above it is removed, as it is written again."""
    resumed = checkpoint.latest(folder)
    if resumed:
        check_same_run(resumed, settings)
    if launched_rank() == 0:
        checkpoint.remove_above(folder, resumed.step if resumed else 0)
    return resumed


def settings_of(job: Job, plan: TrainingPlan, begins: Origin | None) -> Json:
    """Return all that decides the stage's result, as JSON holds it, the weights it begins from included."""
    weights = None
    if begins:
        meta = read_json(begins.release / "meta.json", Meta, remedy=AGAIN, constant=as_null)
        weights = meta.get("weights_hash")
    planned = {"plan": {name: getattr(plan, name) for name in DECIDING if hasattr(plan, name)}}
    if plan.chats:  # whose tokenizer is that of the weights; older plans named one after the job's corpus
        del planned["plan"]["tokenizer"]
    settings = decisive_settings(job, plan.stage) | flatten(planned) | {"stage": plan.stage, "from": weights}
    return json.loads(json.dumps(settings))


def check_same_run(resumed: Checkpoint, settings: Json) -> None:
    """ValueError with the difference, when a checkpoint came here from another run or another stage.

    Keys that only one of the two versions stores are ignored.
    """
    stored = resumed.progress.get("settings", {})
    if changes := [
        f"{key} was {stored[key]!r}, is {settings[key]!r}"
        for key in sorted(stored.keys() & settings.keys())
        if stored[key] != settings[key]
    ]:
        raise ValueError(
            f"{resumed.folder} belongs to another run: {', '.join(changes)}; move it away, and the same "
            "command resumes from the run's own"
        )


def load_gpt(
    job: Job, plan: TrainingPlan, device: torch.device, *, resumed: Checkpoint | None, begins: Origin | None
) -> tuple[GPT, Restore | None]:
    """Return the model with its weights, and what gives a fresh optimizer its state (None: nothing does).

    A stage begins with the weights of the release before it, whatever became of that stage's checkpoints.
    """
    precision = "bf16" if job["precision"] == "fp8" and not plan.allows_fp8 else job["precision"]
    if begins and not resumed:
        return load_origin(begins, plan, device, precision=precision)
    gpt = build_gpt(plan.gpt, device, seed=job["seed"], precision=precision)
    if resumed:
        load_weights(gpt, resumed.model_state(), origin=str(resumed.folder))
    return gpt, resumed.restore_optimizer if resumed else None


def load_origin(
    begins: Origin, plan: TrainingPlan, device: torch.device, *, precision: str | None
) -> tuple[GPT, Restore | None]:
    """Return the model of the release that a stage begins from, and what gives its optimizer that state."""
    gpt, meta = load_release(begins.release, device=device, dtype=DTYPES[precision])
    check_same_model(plan.gpt, gpt.hyperparameters, begins)
    if begins.checkpoints and launched_rank() == 0:
        tell_origin(meta, begins.name)
    if precision == "fp8":
        gpt.use_fp8()
    return gpt.train(), moments(begins, meta, wanted=plan.warm_start)


def moments(begins: Origin, meta: Json, *, wanted: bool) -> Restore | None:
    """Return the optimizer's state of the very step of a release; None where it is not wanted, or gone."""
    step, source = meta.get("step"), None
    if begins.checkpoints and not wanted:
        return None
    if begins.checkpoints and isinstance(step, int):
        source = checkpoint.of_step(begins.checkpoints, step)
    if source is None and launched_rank() == 0:
        lost = (
            f" ({begins.checkpoints} has no complete checkpoint of step {step})" if begins.checkpoints else ""
        )
        print(f"starting from the release {begins.release}, without the optimizer state{lost}", flush=True)
    return source.restore_optimizer if source else None


def build_gpt(
    hyperparameters: Hyperparameters, device: torch.device, *, seed: int, precision: str | None = None
) -> GPT:
    """Return a GPT with its initial weights, equal on all ranks, without ever holding it twice."""
    generator = torch.Generator(device=device).manual_seed(derived_seed(seed, "initial weights"))
    dtype = DTYPES[precision] or compute_dtype(device)
    with torch.device("meta"):
        gpt = GPT(GPTConfig(**hyperparameters))
    gpt.to_empty(device=device)
    gpt.initialize(generator, dtype=dtype)
    if precision == "fp8":
        gpt.use_fp8()
    return gpt


def compiled(job: Job, plan: TrainingPlan, device: torch.device) -> bool:
    """Return True to compile the model: by default on a GPU, and never if rows differ in length."""
    wish = device.type == "cuda" if job["compile"] is None else job["compile"]
    return wish and plan.equal_rows
