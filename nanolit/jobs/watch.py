"""The callbacks of a stage, and what they know: what a checkpoint keeps and a result reports."""

import math
import time
from functools import cache, partial

import lightning as L
import torch

from nanolit.callbacks.evaluate import (
    CORE_PART,
    Evaluate,
    EvaluateChat,
    EvaluateCore,
    WriteSamples,
    sample_prompts,
)
from nanolit.callbacks.progress import Clock, Progress
from nanolit.callbacks.saving import Checkpoints
from nanolit.callbacks.throughput import Recorder, Throughput
from nanolit.config.schema import Job
from nanolit.inference.engine import Engine
from nanolit.jobs.parts import Parts
from nanolit.machine.paths import Json, core_folder
from nanolit.machine.system import launched_rank
from nanolit.machine.terminal import say
from nanolit.model.accounting import peak_bf16_flops
from nanolit.planning.plans import BasePlan, TrainingPlan, fresh_plan, total
from nanolit.report import gradients
from nanolit.report.folders import Stage

KEPT_CHECKPOINTS = 2  # the newest, and the one before it in case the newest is broken
RENTED_SAVE_SECONDS = 600.0  # between checkpoints on a machine that can be taken away at any moment
FAST_DEV_PROBLEMS = 2  # of each task
TEXT_TOKENS, REPLY_TOKENS = 32, 200  # of a sample


class Watch:
    """The callbacks of a stage, and what they know: what a checkpoint keeps and a result reports."""

    def __init__(self, parts: Parts, *, begun: float) -> None:
        job, plan, phase, first = parts.job, parts.plan, parts.phase, launched_rank() == 0
        self.begun, self.phase = begun, phase
        self.before: Json = parts.resumed.progress if parts.resumed else {}
        stage = Stage(plan.stage, parts.folder)
        self.gradients = gradients.resumed(stage, job, self.before) if parts.resumed else gradients.RIGHT
        standing = standing_of(job, plan) if first else {}
        self.clock = Clock(self.before.get("seconds", 0.0))
        self.progress = Progress(num_steps=phase.num_steps, clock=self.clock, **standing) if first else None
        log_every = 1 if phase.num_steps <= 40 else phase.log_every
        self.recorder = Recorder(
            parts.folder / "metrics.csv",
            finished_steps=phase.finished_steps,
            enabled=first,
            log_every=log_every,
            progress=self.progress,
        )
        self.throughput = Throughput(
            recorder=self.recorder,
            clock=self.clock,
            log_every=log_every,
            flops_per_token=plan.flops_per_token,
            peak_flops=peak_bf16_flops(torch.cuda.get_device_name()) if parts.device.type == "cuda" else None,
            tokens=self.before.get("tokens", 0),
            processed=self.before.get("processed_tokens", self.before.get("tokens", 0)),
            progress=self.progress,
            earlier=self.before,
            waited=(lambda: parts.stream.waited_seconds) if hasattr(parts.stream, "waited_seconds") else None,
        )
        self.watch_quality(parts)
        self.checkpoints = Checkpoints(
            parts.folder / "checkpoints",
            save_every=plan.save_every,
            save_seconds=None if job["cluster"]["kind"] == "local" else RENTED_SAVE_SECONDS,
            keep=KEPT_CHECKPOINTS,
            clock=self.clock,
            progress=lambda: {**self.state(), "settings": parts.settings},
            on_divergence=job["on_divergence"],
        )
        quality = [self.evaluation, *self.core, self.chat, self.samples]
        self.callbacks: list[L.Callback] = [self.throughput, *quality, self.checkpoints]

    def watch_quality(self, parts: Parts) -> None:
        """Build what asks the model: its evaluation, chat tasks and samples."""
        plan, tokenizer, asked = parts.plan, parts.tokenizer, parts.job["chat_tasks"]
        engine = cache(partial(Engine, parts.phase.gpt, tokenizer))  # made when it is first asked
        self.evaluation = Evaluate(
            parts.evaluator,
            engine=engine,
            eval_every=plan.eval_every,
            recorder=self.recorder,
            clock=self.clock,
        )
        if parts.resumed and (remark := parts.evaluator.load(self.before)):
            say(remark)
        self.core: list[L.Callback] = []
        if isinstance(plan, BasePlan) and plan.core_every not in ("end", None):
            self.core.append(self.watch_core(parts, plan.core_every))
        self.chat = EvaluateChat(
            engine,
            parts.chat_tasks,
            max_tokens=asked["max_tokens"],
            max_per_task=FAST_DEV_PROBLEMS if parts.job["fast_dev_run"] else asked.get("max_per_task"),
            folder=parts.folder / "evaluation",
            clock=self.clock,
        )
        self.chat.metrics = self.before.get("metrics", {})
        self.samples = WriteSamples(
            parts.folder / "samples.md",
            engine=engine,
            prompts=partial(sample_prompts, asked, chats=plan.chats),
            sample_every=plan.sample_every,
            max_tokens=min(REPLY_TOKENS, plan.gpt["context"] // 2) if plan.chats else TEXT_TOKENS,
            clock=self.clock,
        )

    def watch_core(self, parts: Parts, core_every: int) -> EvaluateCore:
        return EvaluateCore(
            parts.tokenizer,
            core_folder(parts.job["root"]),
            core_every=core_every,
            max_per_task=FAST_DEV_PROBLEMS if parts.job["fast_dev_run"] else CORE_PART,
            recorder=self.recorder,
            clock=self.clock,
        )

    def state(self) -> Json:
        wall_seconds = self.before.get("wall_seconds", 0.0) + time.perf_counter() - self.begun
        return {
            "step": self.phase.finished_steps,
            "num_steps": self.phase.num_steps,
            "tokens": self.throughput.tokens,
            "processed_tokens": self.throughput.processed,
            "seconds": self.clock.seconds,
            "wall_seconds": wall_seconds,
            "tokens_per_second": finite(self.throughput.tokens_per_second()),
            "loss": finite(self.throughput.loss),
            "epoch": finite(self.throughput.epoch),
            "cropped_fraction": finite(self.throughput.cropped_fraction),
            "data_wait_fraction": finite(self.throughput.data_wait_fraction),
            **self.evaluation.evaluator.state(),
            "metrics": self.chat.metrics,
            "conditions": {task.name: task.conditions for task in self.chat.tasks if task.conditions},
            "gradients": self.gradients,
        }


def standing_of(job: Job, plan: TrainingPlan) -> Json:
    """Return where a stage stands in its job: its place, its planned seconds, and those after it."""
    stages, planned = job["stages"], plan.hours["hours"]
    number = stages.index(plan.stage) + 1
    later, _ = total([fresh_plan(job, stage) for stage in stages[number:]])
    return {
        "place": f"{plan.stage}, stage {number} of {len(stages)}" if len(stages) > 1 else plan.stage,
        "planned_seconds": planned and planned * 3600,
        "later_seconds": later and later * 3600,
    }


def finite(value: float) -> float | None:
    """JSON has no NaN: what was never measured is null."""
    return value if math.isfinite(value) else None
