"""Run one stage on one rank: build it from the job and its plan, fit, leave result.json.

`python -m nanolit.jobs.worker FOLDER` is what jobs/ranks.py starts on every device: the folder holds job.yaml
and plan.json. One device runs in process.
"""

import logging
import os
import signal
import sys
import threading
import time
import traceback
import warnings
from contextlib import nullcontext
from datetime import timedelta
from pathlib import Path

import lightning as L
import torch
from lightning.pytorch.loggers import WandbLogger

from nanolit.callbacks import saving
from nanolit.config.schema import Job
from nanolit.config.stored import read_job
from nanolit.jobs.ending import ask_core, attach_report, leave_release, summarize
from nanolit.jobs.parts import Parts, build_parts, build_trainer
from nanolit.jobs.processes import GRACE_SECONDS
from nanolit.jobs.ranks import LEFT, WAIT_SECONDS
from nanolit.jobs.tokenizer import train_tokenizer
from nanolit.jobs.trial import out_of_memory
from nanolit.jobs.watch import Watch
from nanolit.machine.device import make_deterministic
from nanolit.machine.exit import MORE_MEMORY, handlers_kept, ignore_ctrl_c, lacks_memory
from nanolit.machine.paths import PACKAGE, Json, stage_folder, write_json
from nanolit.machine.system import launched_rank
from nanolit.machine.terminal import at_terminal, one_line, print_anything, printable, say, train_command
from nanolit.phases.core import Phase, StoppedInStep
from nanolit.planning.plans import BasePlan, Plan, TokenizerPlan, TrainingPlan, read_plan
from nanolit.report import gradients
from nanolit.report.folders import Stage

FORMAT_WARNING = warnings.formatwarning  # Python's own: see plain_warning


def run(job: Job, plan: Plan) -> Json:
    """Run one stage of a job by its plan on this rank; the result is also in the stage's result.json.

    What a user can put right (ValueError, OSError) comes back as {"status": "failed", "error": …}.
    """
    with handlers_kept():
        try:
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
        text = f"another rank is gone, or silent for {minutes} ({reason}); {resumption(job, plan)}"
        return {"error": text, "left": True}
    if lacks_memory(error):
        return {"error": f"{plan.stage} ran {MORE_MEMORY}"}
    traceback.print_exception(error)
    return {"error": f"{type(error).__name__}: {one_line(error)}"}


def resumption(job: Job, plan: Plan) -> str:
    """Say what the same command does next; a tokenizer has no checkpoints."""
    if isinstance(plan, TokenizerPlan):
        return "the same command begins it anew"
    return Stage(plan.stage, stage_folder(job["root"], job["run"], plan.stage)).resumption


def others_are_gone(error: Exception) -> bool:
    """Return True for the errors of gloo and NCCL when a rank does not answer; gloo has no class for it."""
    if not torch.distributed.is_initialized():
        return False
    return isinstance(error, torch.distributed.DistError) or "gloo" in str(error)


def write_result(job: Job, stage: str, result: Json) -> Json:
    result = {"format": 1, "stage": stage, "run": job["run"], **result}
    if launched_rank() == 0:
        write_json(stage_folder(job["root"], job["run"], stage) / "result.json", result)
    return result


def train(job: Job, plan: TrainingPlan) -> Json:
    """Fit one stage from its newest checkpoint, or from where it begins; leave a release."""
    begun = time.perf_counter()
    quieten_libraries()
    if job["deterministic"]:
        make_deterministic()
    torch.set_float32_matmul_precision(job["recipe"]["matmul_precision"])
    parts = build_parts(job, plan)
    watch = Watch(job, parts, begun=begun)
    announce(plan.stage, parts, watch.gradients)
    trainer = build_trainer(parts, job=job, stage=plan.stage, callbacks=watch.callbacks)
    if parts.phase.finished_steps < parts.phase.num_steps:
        fit(trainer, parts, watch)
    return conclude(trainer, job, parts, watch)


def conclude(trainer: L.Trainer, job: Job, parts: Parts, watch: Watch) -> Json:
    """Return the result of a stage that was fitted; with all its steps, leave a release and ask CORE."""
    result, phase, plan, stage = watch.state(), parts.phase, parts.plan, parts.plan.stage
    if phase.finished_steps < phase.num_steps:
        return {"status": "interrupted", "error": interruption(job, stage, phase), **result}
    release = parts.folder / "release"
    if launched_rank() == 0:
        leave_release(release, job, parts, result)
        summarize(stage, result, release)
    stop = watch.checkpoints.stop  # then no other stage begins
    if isinstance(plan, BasePlan) and plan.core_every:
        try:
            if stop:
                raise KeyboardInterrupt
            result["metrics"], columns = ask_core(job, parts, release)
        except KeyboardInterrupt:
            again = train_command(job["overrides"])
            error = f"{stage} is trained, CORE was interrupted; continue with: {again}"
            return {"status": "interrupted", "error": error, **result}
        watch.recorder.record(trainer, {"step": phase.finished_steps, **columns})
        result["wall_seconds"] = watch.state()["wall_seconds"]
    result = {"status": "done", "release": str(release), **result, "asked_to_stop": stop}
    if launched_rank() == 0 and isinstance(trainer.logger, WandbLogger):
        write_result(job, stage, result)  # what the report reads
        attach_report(job, trainer.logger)
    return result


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


def announce(stage: str, parts: Parts, trained: Json) -> None:
    """Say where the stage begins, which of its steps had right gradients, and what data it leaves out."""
    phase = parts.phase
    if parts.resumed:
        say(f"{stage}: continuing after step {phase.finished_steps:,} of {phase.num_steps:,}")
        if remark := gradients.remark(trained):
            say(f"{stage}: {remark}")
    elif parts.origin:
        say(f"{stage}: {phase.num_steps:,} steps from {parts.origin.name}")
    if parts.device.type == "cuda":
        gpu = torch.cuda.get_device_name(parts.device)
        say(f"{stage}: attention by {phase.gpt.attention_backend} on {gpu}")
    if parts.left_out:
        say(f"{stage}: {parts.left_out}")


def interruption(job: Job, stage: str, phase: Phase) -> str:
    again = train_command(job["overrides"])
    return f"{stage} stopped after step {phase.finished_steps} of {phase.num_steps}; continue with: {again}"


def quieten_libraries() -> None:
    """Lightning's advice and warnings about what we do on purpose."""
    for name in ("lightning.pytorch", "lightning.fabric", "lightning"):
        logging.getLogger(name).setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module=r"lightning(\..*)?")
    warnings.filterwarnings("ignore", message=".*does not have many workers.*")
    warnings.formatwarning = plain_warning


def plain_warning(
    message: Warning | str, category: type[Warning], filename: str, lineno: int, line: str | None = None
) -> str:
    """Our own warnings are for whoever runs the job, and say no line of source."""
    if Path(filename).is_relative_to(PACKAGE):
        return f"{printable(str(message))}\n"
    return FORMAT_WARNING(message, category, filename, lineno, line)


def main() -> None:
    """`python -m nanolit.jobs.worker FOLDER`, on every rank of a stage: jobs/ranks.py starts it."""
    folder = Path(sys.argv[1])
    print_anything()
    end_with(int(os.environ["NANOLIT_PARENT"]))
    join_ranks()
    result = run(read_job(folder / "job.yaml"), read_plan(folder))
    failed = result["status"] not in ("done", "interrupted")
    if failed and launched_rank() and "left" not in result:  # rank 0's reason is in result.json
        print(f"rank {launched_rank()}: {result['error']}", file=sys.stderr, flush=True)
    if torch.distributed.is_initialized():
        if failed:  # an end in good order would wait for ranks that may be gone
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(LEFT if "left" in result else 1)
        torch.distributed.destroy_process_group()
    sys.exit(1 if failed else 0)


def end_with(parent: int) -> None:
    """Ask this process to stop as soon as the one at the other end of a pipe is gone."""

    def watch() -> None:
        os.read(parent, 1)
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(GRACE_SECONDS)  # for a checkpoint; a rank that waits for a silent one never ends its step
        os._exit(1)

    threading.Thread(target=watch, name="parent", daemon=True).start()


def join_ranks() -> None:
    """Meet the other ranks before Lightning would, whose store listens on every interface."""
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
    backend = "nccl" if torch.cuda.is_available() else "gloo"
    torch.distributed.init_process_group(
        backend, store=store, rank=rank, world_size=world, timeout=saving.SILENCE
    )


if __name__ == "__main__":
    main()
