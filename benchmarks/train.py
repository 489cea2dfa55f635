"""Measure training speed: `python -m benchmarks train model=d12 micro_batch=32`, on random tokens by default.

Runs the same Trainer, model and optimizer as training. `overhead=true` compares the Trainer with a bare loop
over the same parts instead. Also takes the settings of nanolit train.
"""

import time

BEGUN = time.perf_counter()  # before torch and lightning are imported

import statistics  # noqa: E402
from collections.abc import Callable, Iterator  # noqa: E402
from dataclasses import dataclass  # noqa: E402
from typing import Any, Literal  # noqa: E402

import lightning as L  # noqa: E402
import torch  # noqa: E402
from torch.profiler import ProfilerActivity  # noqa: E402

from benchmarks import results  # noqa: E402
from benchmarks.communication import communication  # noqa: E402
from benchmarks.parts import fill_gradients, parts_of, trace_of  # noqa: E402
from nanolit.callbacks.progress import Clock  # noqa: E402
from nanolit.callbacks.throughput import Recorder, Throughput  # noqa: E402
from nanolit.data.stream import Step  # noqa: E402
from nanolit.jobs.parts import Parts  # noqa: E402
from nanolit.jobs.worker import build_trainer, quieten_libraries  # noqa: E402
from nanolit.machine.arguments import read_some, setting  # noqa: E402
from nanolit.machine.device import world_size  # noqa: E402
from nanolit.machine.system import launched_rank  # noqa: E402
from nanolit.model.accounting import peak_bf16_flops  # noqa: E402
from nanolit.phases.core import Phase  # noqa: E402
from nanolit.planning.plans import BasePlan  # noqa: E402


@dataclass(frozen=True, kw_only=True)
class Settings(results.Kept):
    """Settings of the training benchmark."""

    steps: int = setting("timed steps; the median counts", 20, least=1)
    warmup: int = setting("untimed steps before them, at least 2", 5, least=2)
    tokens: Literal["random", "real"] = setting("random tokens or the job's data", "random")
    overhead: bool = setting("compare the Trainer with a bare loop, in alternating rounds", False)
    rounds: int = setting("rounds of that comparison", 5, least=1)
    clock: Literal["wall", "cpu"] = setting(
        "cpu: processor time of this thread, which is less affected by other programs", "wall"
    )


def main(arguments: list[str]) -> int:
    """Measure, print a table and a line of JSON, keep both."""
    settings, overrides = read_some(Settings, arguments, about=__doc__)
    steps, warmup = settings.steps, settings.warmup
    quieten_libraries()
    _, parts = parts_of(overrides, tokens=settings.tokens, num_steps=steps + warmup)
    if settings.overhead:
        measured = compare_with_bare_loop(
            parts, steps=steps, warmup=warmup, rounds=settings.rounds, clock=settings.clock
        )
    else:
        measured = measure_training(parts, warmup=warmup)
    if launched_rank() == 0:
        entry = {"command": results.command_line("train", arguments), **about(parts), **measured}
        results.print_entry(entry, results.save(entry, settings, device=device_name(parts.device)))
    return 0


def about(parts: Parts) -> dict[str, Any]:
    """Return the device, model and batch that were measured."""
    plan = parts.plan
    assert isinstance(plan, BasePlan)
    return {
        "device": device_name(parts.device),
        "torch": torch.__version__,
        "attention": parts.phase.gpt.attention_backend,
        "depth": plan.gpt["depth"],
        "context": plan.gpt["context"],
        "vocab_size": plan.gpt["vocab_size"],
        "micro_batch": plan.micro_batch,
        "accumulation": plan.accumulation,
        "ranks": plan.ranks,
        "tokens_per_step": plan.total_batch,
    }


def device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else results.processor()


class Marks(L.Callback):
    """Marks the end of every step: on CUDA by an event, which costs no wait; elsewhere by the clock."""

    def __init__(self, device: torch.device, *, clock: str = "wall") -> None:
        self.device, self.clock = device, clock
        self.marks: list[Any] = []
        self.fit_begun = self.first_step_end = 0.0  # compilation is between

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.fit_begun = time.perf_counter()

    def on_train_batch_end(self, *_: Any) -> None:
        if not self.marks:
            synchronize(self.device)
            self.first_step_end = time.perf_counter()
        self.add()

    def add(self) -> None:
        self.marks.append(time.thread_time() if self.clock == "cpu" else mark(self.device))

    def milliseconds(self, warmup: int) -> list[float]:
        """Return the milliseconds of every step after the first `warmup`."""
        synchronize(self.device)
        return [between(a, b) for a, b in zip(self.marks[warmup - 1 :], self.marks[warmup:], strict=False)]


class TimedStream:
    """The same steps; `waits` has the milliseconds spent waiting for each."""

    def __init__(self, stream: Any) -> None:
        self.stream, self.waits = stream, []

    def __len__(self) -> int:
        return len(self.stream)

    def __iter__(self) -> Iterator[Step]:
        steps = iter(self.stream)
        while True:
            begun = time.perf_counter()
            step = next(steps)
            self.waits.append(1000 * (time.perf_counter() - begun))
            yield step


def measure_training(parts: Parts, *, warmup: int) -> dict[str, Any]:
    """Measure the Trainer's median step, then a step's parts alone, with the same model and optimizer."""
    plan, device = parts.plan, parts.device
    assert isinstance(plan, BasePlan)
    stream, marks = TimedStream(parts.stream), Marks(device)
    fit(parts, stream, [throughput(parts), marks])
    step_ms = statistics.median(marks.milliseconds(warmup))
    first_step_seconds = marks.first_step_end - marks.fit_begun
    peak_memory = torch.cuda.max_memory_allocated(device) / 2**30 if device.type == "cuda" else None
    tokens_per_second = plan.total_batch / step_ms * 1000
    measured: dict[str, Any] = {
        "step_ms": step_ms,
        "tokens_per_second": tokens_per_second,
        **time_parts(back_on_device(parts), next(iter(parts.stream)), device),
        **time_communication(parts.phase, device),
        "data_wait_ms": statistics.median(stream.waits[warmup:]),
        "data_wait_fraction": sum(stream.waits[warmup:]) / sum(marks.milliseconds(warmup)),
        "first_step_seconds": first_step_seconds,
        "compile_seconds": first_step_seconds - step_ms / 1000,
        "process_to_first_step_seconds": marks.first_step_end - BEGUN,
    }
    if peak_memory is not None:
        measured["peak_memory_gib"] = peak_memory
        peak = peak_bf16_flops(torch.cuda.get_device_name(device))
        if peak:
            achieved = tokens_per_second * plan.flops_per_token / plan.ranks
            measured["mfu"] = achieved / peak
            measured["mfu_formula"] = "model.accounting.flops_per_token, dense bf16 peak"
    return measured


def fit(parts: Parts, stream: Any, callbacks: list[L.Callback]) -> None:
    trainer = build_trainer(parts, callbacks=callbacks)
    trainer.fit(parts.phase, stream)


def throughput(parts: Parts) -> Throughput:
    """Return the callback that training has, which reads the loss as often; it prints nothing."""
    return Throughput(
        recorder=Recorder(parts.folder / "metrics.csv", finished_steps=0, enabled=launched_rank() == 0),
        clock=Clock(),
        log_every=parts.phase.log_every,
        flops_per_token=parts.plan.flops_per_token,
        peak_flops=None,
    )


def back_on_device(parts: Parts) -> Phase:
    """Return the phase on its device, with a new optimizer: Lightning moves it to the CPU after fit."""
    parts.phase.to(parts.device)
    parts.phase.configure_optimizers()
    return parts.phase


def time_parts(phase: Phase, step: Step, device: torch.device, *, repeats: int = 10) -> dict[str, float]:
    """Return the median milliseconds of a micro-batch's two passes and of the optimizer's step."""
    ids_BT, targets_BT = (tensor.to(device) for tensor in step.micro_batches[0])
    found: dict[str, list[float]] = {"forward_ms": [], "backward_ms": [], "optimizer_ms": []}
    rounds = []
    for _ in range(repeats):  # without waiting for the device in between, as training doesn't
        marks = [mark(device)]
        loss = phase.loss(ids_BT, targets_BT) / step.num_tokens
        marks.append(mark(device))
        loss.backward()
        marks.append(mark(device))
        phase.optimizer.step()
        marks.append(mark(device))
        phase.optimizer.zero_grad(set_to_none=True)
        rounds.append(marks)
    synchronize(device)
    for marks in rounds:
        for name, first, last in zip(found, marks, marks[1:], strict=False):
            found[name].append(between(first, last))
    medians = {name: statistics.median(values) for name, values in found.items()}
    return {"forward_backward_ms": medians["forward_ms"] + medians["backward_ms"], **medians}


def time_communication(phase: Phase, device: torch.device, *, repeats: int = 3) -> dict[str, float]:
    """Return the milliseconds an optimizer step spends communicating; {} on fewer than two GPUs.

    Waiting for other ranks is included. Collective.
    """
    if device.type != "cuda" or world_size() == 1:
        return {}
    fill_gradients(phase)
    trace = trace_of(phase.optimizer.step, repeats=repeats, activities=[ProfilerActivity.CUDA])
    whole, exposed = (1e-3 * spent / repeats for spent in communication(trace["traceEvents"]))
    return {"communication_ms": whole, "exposed_communication_ms": exposed}


def compare_with_bare_loop(
    parts: Parts, *, steps: int, warmup: int, rounds: int, clock: str
) -> dict[str, Any]:
    """Measure the median step of the Trainer and of a bare loop over the same parts, in alternating rounds.

    Each round's medians are compared with each other, so that a busy machine slows both.
    """
    ways: dict[str, Callable[[Marks], None]] = {
        "trainer": lambda marks: fit(parts, parts.stream, [throughput(parts), marks]),
        "bare": lambda marks: bare_loop(parts, marks, num_steps=steps + warmup),
    }
    medians: dict[str, list[float]] = {name: [] for name in ways}
    for number in range(rounds):
        for name in list(ways) if number % 2 else list(reversed(ways)):
            parts.phase.finished_steps = 0
            marks = Marks(parts.device, clock=clock)
            ways[name](marks)
            medians[name].append(statistics.median(marks.milliseconds(warmup)))
    differences = [trainer - bare for trainer, bare in zip(medians["trainer"], medians["bare"], strict=True)]
    bare = statistics.median(medians["bare"])
    return {
        "clock": clock,
        "trainer_ms": statistics.median(medians["trainer"]),
        "bare_ms": bare,
        "overhead_ms": statistics.median(differences),
        "overhead_fraction": statistics.median(differences) / bare,
        "overhead_ms_by_round": [round(difference, 4) for difference in differences],
    }


def bare_loop(parts: Parts, marks: Marks, *, num_steps: int) -> None:
    """Train the same in the fewest lines: no Trainer, no callback but the marks."""
    phase = back_on_device(parts)
    for number, step in enumerate(parts.stream):
        if number == num_steps:
            return
        bare_step(phase, step, number)
        marks.add()


def bare_step(phase: Phase, step: Step, number: int) -> torch.Tensor:
    """Take one optimizer step and return its mean loss; `number` counts from 0, for the schedule."""
    set_rates(phase, number)
    total = torch.zeros((), device=phase.gpt.device)
    for micro_batch in step.micro_batches:
        ids_BT, targets_BT = (tensor.to(phase.gpt.device, non_blocking=True) for tensor in micro_batch)
        loss = phase.loss(ids_BT, targets_BT) / step.num_tokens
        loss.backward()
        total = total + loss.detach()
    phase.optimizer.step()
    phase.optimizer.zero_grad(set_to_none=True)
    return total


def set_rates(phase: Phase, number: int) -> None:
    """Give the optimizer the rates of a step by its number; the phase's own count of steps stays."""
    now = phase.schedule.at(number, phase.num_steps)
    phase.optimizer.set_multipliers(lr=now.lr, momentum=now.momentum, weight_decay=now.weight_decay)


def mark(device: torch.device) -> Any:
    """Return the current time on the device's own time line."""
    if device.type != "cuda":
        return time.perf_counter()
    event = torch.cuda.Event(enable_timing=True)
    event.record()
    return event


def between(first: Any, last: Any) -> float:
    """Return the milliseconds from one mark to another; the device must be done with both."""
    return 1000 * (last - first) if isinstance(first, float) else first.elapsed_time(last)


def synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
