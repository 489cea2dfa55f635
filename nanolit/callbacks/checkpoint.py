"""Checkpoints: a directory per step, keyed by parameter name, readable on any number of ranks.

    step_000120/model.safetensors                     every parameter, by canonical name (rank 0)
                optimizer-00000-of-00002.safetensors  each rank's flat slices of the optimizer's buffers
                data-00000-of-00002.json              each rank's position in the data
                progress.json                         step, tokens, seconds
                manifest.json                         sizes and hashes of all of the above, written last

A directory without a manifest, or with a file that doesn't match it, is not a checkpoint: it is skipped, and
removed once a run has resumed from one below it. What has another name is nobody's business here.
"""

import json
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, NotRequired

import torch
from pydantic import Field
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor
from typing_extensions import TypedDict

from nanolit.evaluation.scores import Gradients, ValRows
from nanolit.machine.device import gathered, rank, world_size
from nanolit.machine.paths import (
    DamagedFile,
    Json,
    as_null,
    by_step,
    check_content,
    file_hash,
    read_json,
    remove,
    step_of,
    sync,
    write_json,
)
from nanolit.model.release import TensorFile
from nanolit.optim.muon_adamw import MuonAdamW
from nanolit.phases.core import Phase

FORMAT = 1
Count = Annotated[int, Field(ge=0, lt=1 << 60)]  # even times a token's four bytes it still fits an address
Seconds = Annotated[float, Field(ge=0)]
REMEDY = "delete its folder to resume from the previous checkpoint"


class Progress(TypedDict):
    """Fields read from a progress.json; callbacks add more."""

    step: Count
    tokens: NotRequired[Count]
    processed_tokens: NotRequired[Count]
    seconds: NotRequired[Seconds]
    wall_seconds: NotRequired[Seconds]
    val_bpb: NotRequired[float | None]
    best_val_bpb: NotRequired[float | None]
    val_rows: NotRequired[ValRows]
    pass_at_1: NotRequired[float | None]
    pass_at_k: NotRequired[float | None]
    metrics: NotRequired[dict[str, Any]]
    gradients: NotRequired[Gradients]
    settings: NotRequired[dict[str, Any]]  # that decide the stage's result


class Lane(TypedDict):
    """The position of one lane of the pretraining stream."""

    next: Count
    documents: list[Count]
    starts: NotRequired[list[Count]]
    offset: NotRequired[Count]
    overlap: NotRequired[Any]
    num_kept: Count
    num_cropped: Count


class Position(TypedDict):
    """Fields read from a rank's position in the data, whatever the stream."""

    format: int
    step: Count
    identity: NotRequired[dict[str, Any]]
    lanes: NotRequired[dict[str, Lane]]


class Entry(TypedDict):
    bytes: int
    sha256: str


class Manifest(TypedDict):
    format: int
    files: dict[str, Entry]


class Checkpoint:
    """A whole checkpoint on disk."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.files = sorted(read_json(folder / "manifest.json", Manifest)["files"])
        self.progress: Json = self._read("progress.json", Progress)
        self.step: int = self.progress["step"]

    def _read(self, name: str, kind: Any) -> Json:
        content = read_json(self.folder / name, kind, remedy=REMEDY, constant=as_null)
        if content["step"] != step_of(self.folder):
            raise DamagedFile(f"{self.folder / name} is of step {content['step']:,}; {REMEDY}")
        return content

    def model_state(self) -> TensorFile:
        return TensorFile(self.folder / "model.safetensors", remedy=REMEDY)

    def positions(self) -> list[Json]:
        """The positions of all ranks that wrote it, in rank order."""
        return [self._read(name, Position) for name in self.files if name.startswith("data-")]

    def restore_optimizer(self, optimizer: MuonAdamW) -> None:
        """Load this rank's share of the state, whatever the number of ranks was when it was written."""
        names = [name for name in self.files if name.startswith("optimizer-")]
        if not names:
            raise ValueError(f"{self.folder} has no optimizer state; delete it")
        pieces: dict[str, list[tuple[int, int, TensorFile]]] = {}
        for name in names:
            file, starts = open_slices(self.folder / name)
            for key, start in starts.items():
                pieces.setdefault(key, []).append((start, start + file.shapes[key][0], file))

        def read(key: str, start: int, stop: int) -> Tensor | None:
            if key not in pieces:
                return None
            parts = []
            for begin, end, file in sorted(pieces[key], key=lambda piece: piece[:2]):
                low, high = max(start, begin), min(stop, end)
                if low < high and (not parts or low == start + sum(map(len, parts))):
                    parts.append(file.part(key, low - begin, high - begin))
            found = torch.cat(parts) if parts else torch.empty(0)
            if len(found) != stop - start:
                raise DamagedFile(f"{self.folder} lacks part of the optimizer's {key}; {REMEDY}")
            return found

        optimizer.load_state_slices(read)


def open_slices(path: Path) -> tuple[TensorFile, dict[str, int]]:
    """Open a rank's file of the optimizer; return it, and where in the flat tensor each slice begins."""
    file = TensorFile(path, remedy=REMEDY)
    try:
        starts = json.loads(file.metadata.get("starts", "null"))
    except (ValueError, RecursionError) as error:
        raise DamagedFile(f"{path} is damaged ({error}); {REMEDY}") from error
    if (
        not isinstance(starts, dict)
        or starts.keys() != file.shapes.keys()
        or not all(
            type(start) is int and start >= 0 and len(file.shapes[key]) == 1 for key, start in starts.items()
        )
    ):
        raise DamagedFile(f"{path} is damaged (its slices don't match their starts); {REMEDY}")
    return file, starts


def is_whole(folder: Path) -> bool:
    """Return True if every file of the manifest is there with its size and hash.

    ValueError where that cannot be told: another version's format, a file that may not be read.
    """
    path = folder / "manifest.json"
    try:
        manifest = read_json(path)
        if manifest.get("format") not in (None, FORMAT):
            raise ValueError(
                f"{folder} has checkpoint format {manifest['format']!r}, this version reads {FORMAT}; resume "
                "with the version that wrote it"
            )
        check_content(manifest, Manifest, path, remedy="")
        if manifest.get("step", step_of(folder)) != step_of(folder):
            return False  # renamed, or copied
        stated: dict[str, Entry] = manifest["files"]
        ranks = ("optimizer-*-of-*.safetensors", "data-*-of-*.json")
        there = {file.name for pattern in ranks for file in folder.glob(pattern)}
        there |= {"model.safetensors", "progress.json"}
        return (
            there - stated.keys() <= {"progress.json"}
            and (folder / "progress.json").is_file()
            and all(is_same(folder / name, entry) for name, entry in stated.items())
        )
    except (DamagedFile, FileNotFoundError, NotADirectoryError, IsADirectoryError):
        return False
    except OSError as error:
        raise ValueError(
            f"{error.filename} cannot be read ({error.strerror}); make it readable, or delete {folder} to "
            "resume from the previous checkpoint"
        ) from error


def is_same(path: Path, entry: Entry) -> bool:
    """Compare a file with its entry in a manifest; only one of the right size is read."""
    return path.stat().st_size == entry["bytes"] and path.is_file() and file_hash(path) == entry["sha256"]


def latest(folder: Path) -> Checkpoint | None:
    """Return the newest whole checkpoint in `folder`; warnings name the broken ones above it."""
    candidates = by_step(folder)
    for candidate in reversed(candidates):
        if is_whole(candidate):
            return Checkpoint(candidate)
        warnings.warn(f"{candidate} is not a complete checkpoint: skipped", stacklevel=2)
    if candidates:
        warnings.warn(f"no complete checkpoint is left in {folder}: starting at step 1", stacklevel=2)
    return None


def of_step(folder: Path, step: int) -> Checkpoint | None:
    """Return the checkpoint of that very step, None if it is not there or not whole."""
    found = next((path for path in by_step(folder) if step_of(path) == step), None)
    return Checkpoint(found) if found and is_whole(found) else None


def prune(folder: Path, *, newest: Path, keep: int) -> None:
    """Remove all but the `keep` newest whole checkpoints up to `newest`, which was just written."""
    others = [path for path in by_step(folder) if step_of(path) < step_of(newest)]
    there = [path for path in others if (path / "manifest.json").exists()]
    for path in set(others) - set(there[max(len(there) - keep + 1, 0) :]):
        remove(path)


def remove_above(folder: Path, step: int) -> None:
    """Remove what lies above the checkpoint that a run resumes from: it was looked at and is broken."""
    for path in by_step(folder):
        if step_of(path) > step:
            remove(path)


def write(folder: Path, phase: Phase, progress: Json) -> Path:
    """Write a checkpoint below `folder`; collective: each rank writes its files, rank 0 the manifest last.

    Raises OSError on every rank when a file could not be written on one (a full disk, say); what was written
    of it is removed, for it takes the room that the next attempt needs.
    """
    target = folder / f"step_{progress['step']:06d}"
    problems = on_rank_zero(lambda: make_anew(target))
    everyone = [] if problems else gathered(own_files(target, phase, progress))
    problems = problems or [text for _, text in everyone if text]
    problems = problems or on_rank_zero(lambda: finish(target, progress, [files for files, _ in everyone]))
    if problems:
        if rank() == 0:
            remove(target)
        raise OSError(
            f"could not write the checkpoint {target}: {problems[0]}; earlier checkpoints are untouched: fix "
            "this, and the same command resumes from the newest one"
        )
    return target


def on_rank_zero(work: Callable[[], None]) -> list[str]:
    """Let rank 0 do it, and tell every rank what was in its way."""
    problem = ""
    if rank() == 0:
        try:
            work()
        except OSError as error:
            problem = str(error)
    return [text for text in gathered(problem) if text]


def make_anew(target: Path) -> None:
    remove(target)
    target.mkdir(parents=True)


def finish(target: Path, progress: Json, parts: list[Json]) -> None:
    files = {name: entry for part in parts for name, entry in part.items()}
    write_json(target / "manifest.json", {"format": FORMAT, "step": progress["step"], "files": files})
    for folder in (target.parent, target.parent.parent):  # the first of a stage makes both
        sync(folder)


def own_files(target: Path, phase: Phase, progress: Json) -> tuple[Json, str]:
    """Write this rank's files; return their manifest entries, or what was in the way."""
    suffix = f"{rank():05d}-of-{world_size():05d}"
    slices = phase.optimizer.state_slices()
    names = [f"optimizer-{suffix}.safetensors", f"data-{suffix}.json"]
    try:
        save_file(
            {key: on_cpu(piece.tensor) for key, piece in slices.items()},
            target / names[0],
            metadata={"starts": json.dumps({key: piece.start for key, piece in slices.items()})},
        )
        write_json(target / names[1], phase.position)
        if rank() == 0:
            state = {name: on_cpu(tensor) for name, tensor in phase.gpt.named_parameters()}
            save_file(state, target / "model.safetensors")
            write_json(target / "progress.json", progress)
            names += ["model.safetensors", "progress.json"]
        for name in names:
            sync(target / name)
        return {name: entry_of(target / name) for name in names}, ""
    except (OSError, SafetensorError) as error:  # the latter where safetensors finds the disk full
        return {}, str(error)


def on_cpu(tensor: Tensor) -> Tensor:
    return tensor.detach().cpu().contiguous()


def entry_of(path: Path) -> Entry:
    return {"bytes": path.stat().st_size, "sha256": file_hash(path)}
