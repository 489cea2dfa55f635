"""What one rank runs: build the stage from the job, fit, leave result.json.

`python -m nanolit.jobs.worker job.yaml STAGE` is what torchrun starts; one device runs in process.
"""

import hashlib
import importlib.metadata
import logging
import netrc
import os
import subprocess
import sys
import time
import traceback
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning as L
import torch
import yaml

from nanolit.callbacks import checkpoint
from nanolit.callbacks.checkpoint import Checkpoint, Checkpoints
from nanolit.callbacks.evaluate import EvaluateBitsPerByte
from nanolit.callbacks.sample import WriteSamples
from nanolit.callbacks.throughput import Clock, Recorder, Throughput, duration, say
from nanolit.data.pretrain import training_texts
from nanolit.data.stream import PretrainStream
from nanolit.data.validation import ValidationRows
from nanolit.jobs.build import build
from nanolit.machine.device import keyed_generator, pick_device
from nanolit.machine.paths import PACKAGE, read_json, stage_folder, tokenizers_folder, write_json
from nanolit.model.accounting import peak_bf16_flops
from nanolit.model.gpt import GPT
from nanolit.model.release import save_release
from nanolit.phases.base import Base
from nanolit.phases.core import Phase, ShardedOptimizerStrategy
from nanolit.phases.job import Job
from nanolit.tokenizer.bpe import Tokenizer

KEPT_CHECKPOINTS = 2  # the newest, and the one before it in case the newest is broken
SAMPLE_TOKENS = 32
LOG_EVERY = 10  # steps between two readings of the loss: each one waits for the device


def run(job: Job, stage: str) -> dict[str, Any]:
    """Run one stage of a resolved job on this rank; the result is also in the stage's result.json.

    What a user can put right (ValueError, OSError) comes back as {"status": "failed", "error": …}.
    """
    try:
        result = train_tokenizer(job) if stage == "tokenizer" else train(job, stage)
    except KeyboardInterrupt:
        result = {"status": "interrupted", "error": "stopped at once, without a new checkpoint"}
    except (ValueError, OSError) as error:
        result = {"status": "failed", "error": str(error)}
    except Exception as error:
        traceback.print_exc()
        result = {"status": "failed", "error": f"{type(error).__name__}: {error}"}
    result = {"format": 1, "stage": stage, "run": job["run"], **result}
    if launched_rank() == 0:
        write_json(stage_folder(job["root"], job["run"], stage) / "result.json", result)
    return result


def launched_rank() -> int:
    """The rank that torchrun gave: known before there is a process group."""
    return int(os.environ.get("RANK", "0"))


def train_tokenizer(job: Job) -> dict[str, Any]:
    """Train the tokenizer of the job, or find the one that an equal job has made."""
    settings = job["stage"]["tokenizer"]
    plan = read_json(stage_folder(job["root"], job["run"], "tokenizer") / "plan.json")
    folder = tokenizers_folder(job["root"]) / plan["tokenizer"]
    begun = time.perf_counter()
    if folder.exists():
        tokenizer = Tokenizer.load(folder)
        say(f"tokenizer: {folder.name} is there already")
    else:
        corpus = build(job["data"]).prepare(Path(job["root"]))
        texts = training_texts(
            corpus, max_characters=settings["max_chars"], max_document_characters=settings["doc_cap"]
        )
        say(f"tokenizer: learning {settings['vocab_size']:,} tokens from {corpus.name}")
        tokenizer = Tokenizer.train(texts, vocab_size=settings["vocab_size"])
        tokenizer.save(folder)
        say(f"tokenizer: {folder.name} in {duration(time.perf_counter() - begun)}")
    return {
        "status": "done",
        "wall_seconds": time.perf_counter() - begun,
        "tokenizer": str(folder),
        "hash": tokenizer.hash,
        "vocab_size": tokenizer.vocab_size,
    }


@dataclass
class Parts:
    """What a training stage is made of, built from a job and its plan; the benchmarks use the same."""

    plan: dict[str, Any]
    folder: Path
    tokenizer: Tokenizer
    tokenizer_folder: Path
    device: torch.device
    phase: Phase
    stream: PretrainStream
    validation: ValidationRows
    resumed: Checkpoint | None


def prepare(job: Job, stage: str) -> Parts:
    """Build the model, the data and the phase; from the newest whole checkpoint where there is one."""
    folder = stage_folder(job["root"], job["run"], stage)
    plan = read_json(folder / "plan.json")
    tokenizer_folder = tokenizers_folder(job["root"]) / plan["tokenizer"]
    tokenizer = Tokenizer.load(tokenizer_folder)
    if tokenizer.vocab_size != plan["gpt"]["vocab_size"]:
        raise ValueError(
            f"the tokenizer {tokenizer_folder} has {tokenizer.vocab_size:,} tokens, the model "
            f"{plan['gpt']['vocab_size']:,}; give stage.tokenizer.vocab_size={tokenizer.vocab_size}"
        )
    device = pick_device()
    resumed = checkpoint.latest(folder / "checkpoints")
    corpus = build(job["data"]).prepare(Path(job["root"]), num_shards=plan["shards"])
    where = {"rank": launched_rank(), "world": plan["ranks"]}
    stream = PretrainStream(
        corpus,
        tokenizer,
        context=plan["gpt"]["context"],
        rows=plan["rows"],
        micro_batch=plan["micro_batch"],
        seed=job["seed"],
        packing=job["recipe"]["packing"],
        **where,
    )
    validation = ValidationRows(
        corpus,
        tokenizer,
        context=plan["gpt"]["context"],
        num_tokens=plan["eval_rows"] * plan["gpt"]["context"],
        micro_batch=plan["micro_batch"],
        packing=job["recipe"]["packing"],
        **where,
    )
    gpt = build_gpt(plan["gpt"], device, seed=job["seed"])
    if resumed:
        gpt.load_state_dict(resumed.model_state())
        stream.load_position(resumed.positions())
    phase = Base(
        gpt,
        groups=plan["groups"],
        optimizer={name: value for name, value in job["recipe"]["optimizer"].items() if name != "_target_"},
        schedule=build(job["recipe"]["schedule"]),
        num_steps=plan["num_steps"],
        finished_steps=resumed.step if resumed else 0,
        compile=device.type == "cuda" if job["compile"] is None else job["compile"],
        restore=resumed.restore_optimizer if resumed else None,
    )
    return Parts(plan, folder, tokenizer, tokenizer_folder, device, phase, stream, validation, resumed)


def build_gpt(hyperparameters: dict[str, Any], device: torch.device, *, seed: int) -> GPT:
    """A GPT with its initial weights, equal on all ranks; built without ever holding it twice."""
    with torch.device("meta"):
        gpt = GPT(**hyperparameters)
    gpt.to_empty(device=device)
    gpt.initialize(keyed_generator(seed, "initial weights", device=device))
    return gpt


def train(job: Job, stage: str) -> dict[str, Any]:
    """Fit one stage from its newest checkpoint, or from the start; leave a release."""
    begun = time.perf_counter()
    quieten_libraries()
    torch.set_float32_matmul_precision("high" if job["recipe"]["name"] == "classic" else "highest")
    parts = prepare(job, stage)
    plan, phase, progress = parts.plan, parts.phase, parts.resumed.progress if parts.resumed else {}
    first = launched_rank() == 0
    if parts.resumed and first:
        say(f"{stage}: continuing after step {parts.resumed.step} of {plan['num_steps']}")
    clock = Clock(progress.get("seconds", 0.0))

    def wall_seconds() -> float:
        return progress.get("wall_seconds", 0.0) + time.perf_counter() - begun

    recorder = Recorder(parts.folder / "metrics.csv", finished_steps=phase.finished_steps, enabled=first)
    peak = peak_bf16_flops(torch.cuda.get_device_name()) if parts.device.type == "cuda" else None
    throughput = Throughput(
        recorder=recorder,
        clock=clock,
        log_every=1 if plan["num_steps"] <= 40 else LOG_EVERY,
        flops_per_token=plan["flops_per_token"],
        peak_flops=peak,
        tokens=progress.get("tokens", 0),
        enabled=first,
    )
    evaluation = EvaluateBitsPerByte(
        parts.validation,
        token_bytes=parts.tokenizer.token_bytes(),
        eval_every=plan["eval_every"],
        recorder=recorder,
        clock=clock,
    )
    evaluation.best = progress.get("best_val_bpb") or evaluation.best
    checkpoints = Checkpoints(
        parts.folder / "checkpoints",
        save_every=plan["save_every"],
        keep=KEPT_CHECKPOINTS,
        throughput=throughput,
        clock=clock,
        progress=lambda: {
            "step": phase.finished_steps,
            "tokens": throughput.tokens,
            "seconds": clock.seconds,
            "wall_seconds": wall_seconds(),
            "val_bpb": evaluation.value,
            "best_val_bpb": evaluation.best,
        },
        on_divergence=job["on_divergence"],
    )
    samples = WriteSamples(
        parts.folder / "samples.md",
        tokenizer=parts.tokenizer,
        sample_every=plan["sample_every"],
        max_tokens=SAMPLE_TOKENS,
        clock=clock,
    )
    trainer = build_trainer(
        parts,
        job=job,
        stage=stage,
        callbacks=[throughput, evaluation, samples, checkpoints],
    )
    if phase.finished_steps < phase.num_steps:
        trainer.fit(phase, parts.stream)
    result = {
        "step": phase.finished_steps,
        "num_steps": phase.num_steps,
        "tokens": throughput.tokens,
        "seconds": clock.seconds if trainer.global_step else progress.get("seconds", 0.0),
        "wall_seconds": wall_seconds(),
        "tokens_per_second": throughput.tokens_per_second(),
        "loss": throughput.loss,
        "val_bpb": evaluation.value,
        "best_val_bpb": evaluation.best,
    }
    if checkpoints.interrupted:
        return {"status": "interrupted", "error": interruption(job, stage, phase), **result}
    if first:
        release = parts.folder / "release"
        meta = {"run": job["run"], "stage": stage, "recipe": job["recipe"]["name"], "seed": job["seed"]}
        save_release(
            release,
            phase.gpt,
            tokenizer_folder=parts.tokenizer_folder,
            tokenizer_hash=parts.tokenizer.hash,
            meta={**meta, **result, "code": code_version()},
        )
        summarize(stage, result, release)
    return {"status": "done", "release": str(parts.folder / "release"), **result}


def build_trainer(parts: Parts, *, job: Job, stage: str, callbacks: list[L.Callback]) -> L.Trainer:
    """Lightning's Trainer, without what we do ourselves: checkpoints, progress, gradients over ranks."""
    ranks = parts.plan["ranks"]
    accelerator = {"cuda": "gpu"}.get(parts.device.type, parts.device.type)
    return L.Trainer(
        accelerator=accelerator,
        devices=int(os.environ.get("LOCAL_WORLD_SIZE", "1")),
        num_nodes=ranks // int(os.environ.get("LOCAL_WORLD_SIZE", "1")),
        strategy=ShardedOptimizerStrategy() if ranks > 1 else "auto",
        precision="32-true",  # the model manages its own dtypes
        max_epochs=-1,
        max_steps=max(parts.phase.num_steps - parts.phase.finished_steps, 0),
        callbacks=callbacks,
        logger=build_logger(job, stage, parts) if launched_rank() == 0 else False,
        use_distributed_sampler=False,
        limit_val_batches=0,
        num_sanity_val_steps=0,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=parts.folder,
    )


def build_logger(job: Job, stage: str, parts: Parts) -> Any:
    """The job's Lightning logger, or False; W&B continues one run per stage, offline without a key."""
    settings = job["logger"]
    if not settings["_target_"]:
        return False
    if not settings["_target_"].endswith("WandbLogger"):
        return build(settings, save_dir=str(parts.folder))
    offline = job["offline"] or not wandb_key()
    identity = hashlib.sha256(f"{job['root']}:{job['run']}:{stage}".encode()).hexdigest()[:12]
    logger = build(
        settings,
        name=f"{job['run']}-{stage}",
        group=job["run"],
        job_type=stage,
        id=f"{stage}-{identity}",
        resume="allow",
        offline=offline,
        save_dir=str(parts.folder),
        config={"job": dict(job), "plan": parts.plan},
    )
    if offline:
        say(
            f"W&B: no key, writing offline; send it later with: wandb sync {parts.folder}/wandb/offline-run-*"
        )
    return logger


def wandb_key() -> bool:
    """Whether W&B is logged in here: by the environment or by `wandb login`."""
    if os.environ.get("WANDB_API_KEY") or os.environ.get("WANDB_MODE") == "online":
        return True
    try:
        return netrc.netrc().authenticators("api.wandb.ai") is not None
    except (OSError, netrc.NetrcParseError):
        return False


def interruption(job: Job, stage: str, phase: Phase) -> str:
    again = " ".join(["python -m nanolit.train", *job["overrides"]])
    return f"{stage} stopped after step {phase.finished_steps} of {phase.num_steps}; continue with: {again}"


def summarize(stage: str, result: dict[str, Any], release: Path) -> None:
    """The lines at the end of a stage."""
    say(
        f"{stage}: {result['step']:,} steps, {result['tokens']:,} tokens in {duration(result['seconds'])} "
        f"({result['tokens_per_second']:,.0f} tokens/s); validation {result['val_bpb']:.4f} bits per byte"
    )
    say(f"{stage}: release in {release}")


def code_version() -> str:
    """nanolit's version, with the commit where the code is a checkout."""
    version = importlib.metadata.version("nanolit") if installed() else "0"
    try:
        command = ["git", "-C", str(PACKAGE.parent), "rev-parse", "--short", "HEAD"]
        found = subprocess.run(command, capture_output=True, text=True, check=False, timeout=10)
    except OSError:
        return version
    inside = (PACKAGE.parent / "hatch_build.py").exists() and found.returncode == 0
    return f"{version}+{found.stdout.strip()}" if inside else version


def installed() -> bool:
    try:
        importlib.metadata.version("nanolit")
    except importlib.metadata.PackageNotFoundError:
        return False
    return True


def quieten_libraries() -> None:
    """Lightning's advice and warnings about what we do on purpose."""
    for name in ("lightning.pytorch", "lightning.fabric", "lightning"):
        logging.getLogger(name).setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module=r"lightning(\..*)?")
    warnings.filterwarnings("ignore", message=".*does not have many workers.*")


def main() -> None:
    """`python -m nanolit.jobs.worker job.yaml STAGE`, on every rank of torchrun."""
    path, stage = sys.argv[1:]
    job = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    result = run(job, stage)
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
    sys.exit(0 if result["status"] in ("done", "interrupted") else 1)


if __name__ == "__main__":
    main()
