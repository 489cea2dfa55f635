"""Run one stage on one rank: build it from the job and its plan, fit, leave result.json.

`python -m nanolit.jobs.worker FOLDER` is what jobs/ranks.py starts on every device: the folder holds job.yaml
and plan.json. One device runs in process.
"""

import atexit
import hashlib
import json
import logging
import os
import re
import signal
import sys
import threading
import time
import traceback
import warnings
from collections.abc import Callable
from contextlib import nullcontext
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Literal

import lightning as L
import torch
from lightning.fabric.plugins.environments.lightning import LightningEnvironment
from lightning.pytorch.loggers import Logger

from nanolit.callbacks import saving
from nanolit.config.build import build
from nanolit.config.names import difference, flatten
from nanolit.config.schema import Job
from nanolit.config.stored import read_job
from nanolit.jobs.ending import conclude, write_result
from nanolit.jobs.parts import Parts, build_parts
from nanolit.jobs.processes import GRACE_SECONDS
from nanolit.jobs.ranks import LEFT, WAIT_SECONDS
from nanolit.jobs.tokenizer import train_tokenizer
from nanolit.jobs.trial import out_of_memory
from nanolit.jobs.watch import Watch
from nanolit.machine.device import make_deterministic
from nanolit.machine.exit import MORE_MEMORY, handlers_kept, ignore_ctrl_c, lacks_memory, open_streams
from nanolit.machine.paths import PACKAGE, Json, stage_folder, write_json
from nanolit.machine.system import code_version, launched_here, launched_rank, under_torchrun, wandb_key
from nanolit.machine.terminal import at_terminal, one_line, printable, say
from nanolit.phases.core import ShardedOptimizerStrategy, StoppedInStep
from nanolit.planning.plans import Plan, TokenizerPlan, TrainingPlan, as_json, read_plan
from nanolit.report import gradients
from nanolit.report.folders import Stage

# gloo's errors have no class; most name its source file, of others only the text is known (torch 2.11)
GLOO = re.compile("gloo|pair closure|closed by peer|Timed out waiting")
# What may differ between the machines of a job; of micro-batches, rank 0's are taken
MACHINES_OWN = re.compile(r"(root|overrides|logger|offline|cluster\.gpu)\b|.*\.micro_batch$")
FORMAT_WARNING = warnings.formatwarning  # Python's own: see plain_warning


def run(job: Job, plan: Plan, *, join: Callable[[Job, Plan], Plan] | None = None) -> Json:
    """Run one stage of a job by its plan on this rank; the result is also in the stage's result.json.

    `join` meets the other ranks and returns the plan of all. What a user can put right (ValueError, OSError)
    comes back as {"status": "failed", "error": …}.
    """
    with handlers_kept():
        try:
            plan = join(job, plan) if join else plan
            result = train_tokenizer(job, plan) if isinstance(plan, TokenizerPlan) else train(job, plan)
        except KeyboardInterrupt:
            ignore_ctrl_c()
            result = {
                "status": "interrupted",
                "error": f"{plan.stage} stopped at once; {resumption(job, plan)}",
            }
        except Exception as error:
            result = {"status": "failed", **failure(job, plan, error)}
        return write_result(job, plan.stage, result)


def failure(job: Job, plan: Plan, error: Exception) -> Json:
    """Return the line for an error, and "left" where it is another rank's; a fault of ours is printed."""
    if isinstance(error, ValueError | OSError):
        return {"error": one_line(error)}
    if isinstance(error, torch.OutOfMemoryError):
        assert not isinstance(plan, TokenizerPlan)
        return {"error": out_of_memory(job, plan)}
    if others_are_gone(error):
        reason = one_line(error)
        minutes = f"{saving.SILENCE.total_seconds() / 60:g} minutes"
        text = f"another rank has died, or was silent for {minutes} ({reason}); {resumption(job, plan)}"
        return {"error": text, "left": True}
    if lacks_memory(error):
        return {"error": f"{plan.stage} ran {MORE_MEMORY}"}
    traceback.print_exception(error)
    return {"error": f"{type(error).__name__}: {one_line(error)}"}


def resumption(job: Job, plan: Plan) -> str:
    """Say what the same command does next; a tokenizer has no checkpoints."""
    if isinstance(plan, TokenizerPlan):
        return "the same command starts it again"
    return Stage(plan.stage, stage_folder(job["root"], job["run"], plan.stage)).resumption


def others_are_gone(error: Exception) -> bool:
    """Return True for the errors of gloo and NCCL when a rank does not answer; gloo has no class for it."""
    if not torch.distributed.is_initialized():
        return False
    return isinstance(error, torch.distributed.DistError) or bool(GLOO.search(str(error)))


def train(job: Job, plan: TrainingPlan) -> Json:
    """Fit one stage from its newest checkpoint, or from where it begins; leave a release."""
    begun = time.perf_counter()
    quieten_libraries()
    if job["deterministic"]:
        make_deterministic()
    torch.set_float32_matmul_precision(job["recipe"]["matmul_precision"])
    parts = build_parts(job, plan)
    watch = Watch(parts, begun=begun)
    announce(parts, watch.gradients)
    trainer = build_trainer(parts, callbacks=watch.callbacks)
    if parts.phase.finished_steps < parts.phase.num_steps:
        fit(trainer, parts, watch)
    return conclude(trainer, parts, watch)


def build_trainer(parts: Parts, *, callbacks: list[L.Callback]) -> L.Trainer:
    """Return Lightning's Trainer without what we do ourselves: checkpoints, progress, sums over ranks."""
    ranks, here = parts.plan.ranks, launched_here()
    accelerator = {"cuda": "gpu"}.get(parts.device.type, parts.device.type)
    return L.Trainer(
        accelerator=accelerator,
        devices=here,
        num_nodes=ranks // here,
        # Else Lightning would refuse some allocations of SLURM, and answer SIGUSR1 with its own checkpoint
        plugins=[] if under_torchrun() else [LightningEnvironment()],
        strategy=ShardedOptimizerStrategy() if ranks > 1 else "auto",
        precision="32-true",  # the model manages its own dtypes
        max_epochs=-1,
        max_steps=max(parts.phase.num_steps - parts.phase.finished_steps, 0),
        callbacks=callbacks,
        logger=build_logger(parts) if launched_rank() == 0 else False,
        use_distributed_sampler=False,
        limit_val_batches=0,
        num_sanity_val_steps=0,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=parts.folder,
    )


def build_logger(parts: Parts) -> Logger | Literal[False]:
    """Return the job's Lightning logger, or False."""
    settings = parts.job["logger"]
    if not settings["_target_"]:
        return False
    if settings["_target_"].endswith("WandbLogger"):
        return build_wandb(parts)
    return build(settings, save_dir=str(parts.folder))


def build_wandb(parts: Parts) -> Logger:
    """Return W&B's logger, which continues one run per stage, offline without a key."""
    job, stage = parts.job, parts.plan.stage
    offline = job["offline"] or not wandb_key()
    identity = hashlib.sha256(f"{job['root']}:{job['run']}:{stage}".encode()).hexdigest()[:12]
    logger = build(
        job["logger"],
        name=f"{job['run']}-{stage}",
        group=job["run"],
        job_type=stage,
        id=f"{stage}-{identity}",
        resume="allow",
        offline=offline,
        save_dir=str(parts.folder),
        config={"job": dict(job), "plan": as_json(parts.plan)},
    )
    if offline:
        later = f"wandb sync {parts.folder}/wandb/offline-run-*"
        print(f"W&B: no key, logging offline; upload it later with: {later}", flush=True)
    return logger


def fit(trainer: L.Trainer, parts: Parts, watch: Watch) -> None:
    """Train the steps that are left, or up to an interruption; KeyboardInterrupt after a second Ctrl-C."""
    try:
        with watch.progress.shown() if watch.progress and at_terminal() else nullcontext():
            trainer.fit(parts.phase, parts.stream)
    except StoppedInStep:
        watch.checkpoints.teardown(trainer, parts.phase, "fit")
    except SystemExit as error:  # Lightning's answer to KeyboardInterrupt
        watch.checkpoints.teardown(trainer, parts.phase, "fit")
        raise KeyboardInterrupt from error


def announce(parts: Parts, trained: Json) -> None:
    """Say where the stage begins, which of its steps had right gradients, and what data it leaves out."""
    stage, phase = parts.plan.stage, parts.phase
    if parts.resumed:
        say(f"{stage}: resuming after step {phase.finished_steps:,} of {phase.num_steps:,}")
        if remark := gradients.remark(trained):
            say(f"{stage}: {remark}")
    elif parts.origin:
        say(f"{stage}: {phase.num_steps:,} steps from {parts.origin.name}")
    if parts.device.type == "cuda":
        gpu = torch.cuda.get_device_name(parts.device)
        say(f"{stage}: attention by {phase.gpt.attention_backend} on {gpu}")
    if parts.left_out:
        say(f"{stage}: {parts.left_out}")


def quieten_libraries() -> None:
    """Silence Lightning's advice and warnings about what we do on purpose."""
    for name in ("lightning.pytorch", "lightning.fabric", "lightning"):
        logging.getLogger(name).setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module=r"lightning(\..*)?")
    warnings.filterwarnings("ignore", message=".*does not have many workers.*")
    warnings.formatwarning = plain_warning


def plain_warning(
    message: Warning | str, category: type[Warning], filename: str, lineno: int, line: str | None = None
) -> str:
    """Return our own warnings without the line of source: they are for whoever runs the job."""
    if Path(filename).is_relative_to(PACKAGE):
        return f"{printable(str(message))}\n"
    return FORMAT_WARNING(message, category, filename, lineno, line)


def main() -> None:
    """`python -m nanolit.jobs.worker FOLDER`, on every rank of a stage: jobs/ranks.py starts it."""
    folder = Path(sys.argv[1])
    open_streams()
    end_with(int(os.environ["NANOLIT_PARENT"]))
    result = run(read_job(folder / "job.yaml"), read_plan(folder), join=partial(join_ranks, folder=folder))
    failed = result["status"] not in ("done", "interrupted")
    if failed and launched_rank() and "left" not in result:  # rank 0's reason is in result.json
        print(f"rank {launched_rank()}: {result['error']}", file=sys.stderr, flush=True)
    if torch.distributed.is_initialized():
        if not failed:  # otherwise this would wait for ranks that may be gone
            torch.distributed.destroy_process_group()
            atexit._run_exitfuncs()  # W&B sends the rest of its run in one of them
        sys.stdout.flush()
        sys.stderr.flush()
        # Without the interpreter's own shutdown, in which gloo aborts about one process in 200 (torch 2.11)
        os._exit(0 if not failed else LEFT if "left" in result else 1)
    sys.exit(1 if failed else 0)


def end_with(parent: int) -> None:
    """Ask this process to stop as soon as the one at the other end of a pipe is gone."""

    def watch() -> None:
        os.read(parent, 1)
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(GRACE_SECONDS)  # for a checkpoint; a rank that waits for a silent one never ends its step
        os._exit(1)

    threading.Thread(target=watch, name="parent", daemon=True).start()


def join_ranks(job: Job, plan: Plan, *, folder: Path) -> Plan:
    """Meet the other ranks before Lightning would, whose store listens on every interface.

    Return rank 0's plan: another machine can't know what micro-batch the first one has found. ValueError
    where the machines were given different jobs; all ranks raise it.
    """
    rank, world = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    listener = os.environ.pop("NANOLIT_STORE", None)
    store = torch.distributed.TCPStore(  # pyright: ignore[reportPrivateImportUsage]
        os.environ["MASTER_ADDR"],
        int(os.environ["MASTER_PORT"]),
        world,
        is_master=rank == 0,
        timeout=timedelta(seconds=WAIT_SECONDS),
        master_listen_fd=None if listener is None else int(listener),
    )
    given = {key: value for key, value in flatten(job).items() if not MACHINES_OWN.match(key)}
    store.set(f"rank {rank}", json.dumps([{"code": code_version(), **given}, as_json(plan)]))
    (first, planned), *others = (json.loads(store.get(f"rank {number}")) for number in range(world))
    store.set(f"rank {rank} has read", "")
    if rank == 0:  # its error would end the store
        store.wait([f"rank {number} has read" for number in range(world)], timedelta(minutes=1))
    for number, (theirs, _) in enumerate(others, start=1):
        for name, (here, there) in difference(first, theirs).items():
            raise ValueError(
                f"the machines were given different jobs: {name} is {here} for rank 0 and {there} for rank "
                f"{number}; run the same command, with the same code, on every machine"
            )
    backend = "nccl" if torch.cuda.is_available() else "gloo"
    torch.distributed.init_process_group(
        backend, store=store, rank=rank, world_size=world, timeout=saving.SILENCE
    )
    if planned == json.loads(json.dumps(as_json(plan))):
        return plan
    write_json(folder / "plan.json", planned)  # a folder of this machine's own: only the first has the run's
    return read_plan(folder)


if __name__ == "__main__":
    main()
