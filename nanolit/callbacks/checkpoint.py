"""Checkpoints: a directory per step, keyed by parameter name, readable on any number of ranks.

    step_000120/model.safetensors                     every parameter, by canonical name (rank 0)
                optimizer-00000-of-00002.safetensors  each rank's flat slices of the optimizer's buffers
                data-00000-of-00002.json              each rank's position in the data
                progress.json                         step, tokens, seconds
                manifest.json                         sizes and hashes of all of the above, written last

A directory without a manifest, or with a file that doesn't match it, is not a checkpoint: it is skipped.
"""

import hashlib
import json
import shutil
import signal
import threading
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning as L
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from nanolit.callbacks.stuck import EndIfStuck
from nanolit.callbacks.throughput import Clock, check_finite, say
from nanolit.machine.device import rank, world_size
from nanolit.machine.paths import Json, read_json, write_json
from nanolit.optim.muon_adamw import MuonAdamW
from nanolit.phases.core import Phase

FORMAT = 1


class Checkpoint:
    """A whole checkpoint on disk."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.progress: Json = read_json(folder / "progress.json")
        self.step: int = self.progress["step"]

    def model_state(self) -> dict[str, Tensor]:
        return load_file(self.folder / "model.safetensors")

    def positions(self) -> list[Json]:
        """The positions of all ranks that wrote it, in rank order."""
        return [read_json(path) for path in sorted(self.folder.glob("data-*.json"))]

    def restore_optimizer(self, optimizer: MuonAdamW) -> None:
        """Load this rank's share of the state, whatever the number of ranks was when it was written."""
        files = [safe_open(path, "pt") for path in sorted(self.folder.glob("optimizer-*.safetensors"))]
        pieces: dict[str, list[tuple[int, int, Any]]] = {}
        for file in files:
            starts = json.loads(file.metadata()["starts"])
            for key, start in starts.items():
                size = file.get_slice(key).get_shape()[0]
                pieces.setdefault(key, []).append((start, start + size, file))

        def read(key: str, start: int, stop: int) -> Tensor | None:
            if key not in pieces:
                return None
            parts = []
            for begin, end, file in sorted(pieces[key], key=lambda piece: piece[:2]):
                low, high = max(start, begin), min(stop, end)
                if low < high and (not parts or low == start + sum(map(len, parts))):
                    parts.append(file.get_slice(key)[low - begin : high - begin])
            found = torch.cat(parts) if parts else torch.empty(0)
            assert len(found) == stop - start, (key, start, stop, len(found))
            return found

        optimizer.load_state_slices(read)


def file_hash(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def is_whole(folder: Path) -> bool:
    """Return True if every file of the manifest is there with its size and hash."""
    try:
        manifest = read_json(folder / "manifest.json")
        has = manifest["format"]
    except (OSError, ValueError, KeyError):  # absent, cut off
        return False
    if has != FORMAT:
        raise ValueError(
            f"{folder} has checkpoint format {has}, this version reads {FORMAT}; "
            "continue with the version that wrote it"
        )
    try:
        return all(
            (folder / name).stat().st_size == entry["bytes"] and file_hash(folder / name) == entry["sha256"]
            for name, entry in manifest["files"].items()
        )
    except (OSError, KeyError):
        return False


def by_step(folder: Path) -> list[Path]:
    """The folders of checkpoints, the oldest first."""
    return sorted(folder.glob("step_*"), key=lambda path: int(path.name.removeprefix("step_")))


def latest(folder: Path) -> Checkpoint | None:
    """The newest whole checkpoint in `folder`; broken ones are named in a warning and skipped."""
    for candidate in reversed(by_step(folder)):
        if is_whole(candidate):
            return Checkpoint(candidate)
        warnings.warn(f"{candidate} is not a whole checkpoint: using the one before it", stacklevel=2)
    return None


def write(folder: Path, phase: Phase, progress: Json) -> Path:
    """Write a checkpoint below `folder`; collective: each rank writes its files, rank 0 the manifest last.

    Raises OSError on every rank when a file could not be written on one (a full disk, say).
    """
    target = folder / f"step_{progress['step']:06d}"
    if rank() == 0:
        shutil.rmtree(target, ignore_errors=True)
        target.mkdir(parents=True)
    barrier()
    try:
        files, problem = _write_own_files(target, phase, progress), ""
    except (OSError, SafetensorError) as error:  # the latter where safetensors finds the disk full
        files, problem = {}, str(error)
    everyone: list[tuple[Json, str]] = gathered((files, problem))
    if problems := [text for _, text in everyone if text]:
        raise OSError(
            f"could not write the checkpoint {target}: {problems[0]}; earlier checkpoints are untouched"
        )
    if rank() == 0:
        files = {name: entry for part, _ in everyone for name, entry in part.items()}
        write_json(target / "manifest.json", {"format": FORMAT, "step": progress["step"], "files": files})
    barrier()
    return target


def _write_own_files(target: Path, phase: Phase, progress: Json) -> Json:
    suffix = f"{rank():05d}-of-{world_size():05d}"
    slices = phase.optimizer.state_slices()
    names = [f"optimizer-{suffix}.safetensors", f"data-{suffix}.json"]
    save_file(
        {key: piece.tensor.detach().cpu().contiguous() for key, piece in slices.items()},
        target / names[0],
        metadata={"starts": json.dumps({key: piece.start for key, piece in slices.items()})},
    )
    write_json(target / names[1], phase.position)
    if rank() == 0:
        state = {name: tensor.detach().cpu().contiguous() for name, tensor in phase.gpt.named_parameters()}
        save_file(state, target / "model.safetensors")
        write_json(target / "progress.json", progress)
        names += ["model.safetensors", "progress.json"]
    return {
        name: {"bytes": (target / name).stat().st_size, "sha256": file_hash(target / name)} for name in names
    }


def barrier() -> None:
    if world_size() > 1:
        torch.distributed.barrier()


def gathered(value: Any) -> list[Any]:
    """`value` of every rank, in rank order."""
    if world_size() == 1:
        return [value]
    values: list[Any] = [None] * world_size()
    torch.distributed.all_gather_object(values, value)
    return values


class Checkpoints(L.Callback):
    """Saves every `save_every` steps (None: every ten minutes), at the end, and when asked to stop.

    SIGINT and SIGTERM only raise a flag. All ranks agree on it after each step over a CPU group, so that they
    save and stop at the same step, whichever of them got the signal; a second SIGINT stops at once.
    """

    seconds_between = 600.0

    def __init__(
        self,
        folder: Path,
        *,
        save_every: int | None,
        keep: int,
        clock: Clock,
        progress: Callable[[], Json],
        on_divergence: str,
    ) -> None:
        self.folder, self.save_every, self.keep = folder, save_every, keep
        self.clock, self.progress, self.on_divergence = clock, progress, on_divergence
        self.stop = False  # a signal asked for it, and all ranks know
        self._asked = False
        self._handlers: dict[int, Any] = {}
        self._group: Any = None
        self._stuck: EndIfStuck | None = None

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._saved = time.monotonic()
        if world_size() > 1:
            self._group = torch.distributed.new_group(backend="gloo")
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._handlers[number] = signal.signal(number, self._ask)
            if world_size() > 1:
                self._stuck = EndIfStuck()

    def _ask(self, number: int, _frame: Any) -> None:
        self._asked = True
        signal.signal(signal.SIGINT, signal.default_int_handler)
        if rank() == 0:
            say("stopping after this step; Ctrl-C again stops at once, without a checkpoint")

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: object, batch: object, batch_idx: int
    ) -> None:
        assert isinstance(pl_module, Phase)
        step, last = pl_module.finished_steps, pl_module.finished_steps == pl_module.num_steps
        self.stop, save = self._agreed(self._asked, self._due(step))
        if self.stop and self._stuck:
            self._stuck.step_ended()
        if last or self.stop or save:
            with self.clock.paused():
                loss = float(trainer.strategy.reduce(pl_module.step_loss, reduce_op="sum"))
                check_finite(loss, step, on_divergence=self.on_divergence)
                write(self.folder, pl_module, self.progress())
                self._prune()
            self._saved = time.monotonic()
        if self.stop and not last:
            trainer.should_stop = True

    def _due(self, step: int) -> bool:
        if self.save_every:
            return step % self.save_every == 0
        return time.monotonic() - self._saved > self.seconds_between

    def _agreed(self, stop: bool, save: bool) -> tuple[bool, bool]:
        if self._group is None:
            return stop, save
        flags = torch.tensor([stop, save], dtype=torch.int32)
        torch.distributed.all_reduce(flags, op=torch.distributed.ReduceOp.MAX, group=self._group)
        return bool(flags[0]), bool(flags[1])

    def _prune(self) -> None:
        if rank() == 0:
            for folder in by_step(self.folder)[: -self.keep]:
                shutil.rmtree(folder, ignore_errors=True)

    def teardown(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        for number, handler in self._handlers.items():
            # Lightning has put SIGTERM back by now; what we found there was its own, which holds the model
            if signal.getsignal(number) in (self._ask, signal.default_int_handler):
                signal.signal(number, handler)
        self._handlers.clear()
        if self._stuck:
            self._stuck.close()
