"""A finished model as a folder: model.safetensors, gpt.json, tokenizer/ and meta.json, whole or absent.

Nothing here runs code from the files. Of the tokenizer only its hash and its size are compared.
"""

import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NotRequired

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor
from typing_extensions import TypedDict

from nanolit.machine.paths import (
    DamagedFile,
    Json,
    as_null,
    file_hash,
    read_json,
    sync,
    write_atomically,
    write_json,
)
from nanolit.machine.terminal import one_line, printable
from nanolit.model.gpt import GPT, GPTConfig

FORMAT = 1
AGAIN = "copy or convert it again"
DTYPES = ("F64", "F32", "F16", "BF16")
FILES = ("model.safetensors", "gpt.json", "meta.json", "tokenizer/tokenizer.json")


class Meta(TypedDict):
    """Fields of a meta.json that commands read; it also holds whatever else a reader may want to know."""

    run: NotRequired[str | None]
    stage: NotRequired[str | None]
    step: NotRequired[int | None]
    tokenizer_hash: NotRequired[str | None]
    weights_hash: NotRequired[str | None]  # this and the next since December 2026
    gpt_hash: NotRequired[str | None]
    made_with: NotRequired[dict[str, str]]  # hashes of the stage's files
    questions: NotRequired[list[str]]  # that suit this model; none: what suits any


class Vocabulary(TypedDict):
    """Fields of a tokenizer.json that a release checks."""

    hash: str
    tokens: list[str]
    special_tokens: list[str]


class TensorFile(Mapping[str, Tensor]):
    """The tensors of a safetensors file by name; DamagedFile, with the remedy, where it is not whole.

    Each is read when it is asked for, and never mapped: a mapped file that shrinks, or a disk that fails,
    ends the process by SIGBUS.
    """

    def __init__(self, path: Path, *, remedy: str) -> None:
        self.path, self.remedy = path, remedy
        path.open("rb").close()  # safetensors says "no such file" of one that may not be read
        with self._refused():
            self._file = safe_open(path, "pt", backend="pread")
            self.metadata: dict[str, str] = self._file.metadata() or {}
            slices = {name: self._file.get_slice(name) for name in self._file.keys()}  # noqa: SIM118
            self.shapes = {name: tuple(part.get_shape()) for name, part in slices.items()}
            self.dtypes: dict[str, str] = {name: part.get_dtype() for name, part in slices.items()}

    def __getitem__(self, name: str) -> Tensor:
        if name not in self.shapes:
            raise KeyError(name)
        with self._refused():
            return self._file.get_tensor(name)

    def part(self, name: str, start: int, stop: int) -> Tensor:
        """Return a range of a tensor's first dimension; nothing else of the file is read."""
        with self._refused():
            return self._file.get_slice(name)[start:stop]

    def __iter__(self) -> Iterator[str]:
        return iter(self.shapes)

    def __len__(self) -> int:
        return len(self.shapes)

    @contextmanager
    def _refused(self) -> Iterator[None]:
        try:
            yield
        except (SafetensorError, OSError) as error:
            raise DamagedFile(f"{self.path} is damaged ({error}); {self.remedy}") from error


def save_release(
    folder: Path, model: GPT, *, tokenizer_folder: Path, tokenizer_hash: str, meta: Mapping[str, Any]
) -> None:
    """Write `model` with its tokenizer into `folder`, replacing a release that is there.

    `meta` is what a reader wants to know (run, stage, step, tokens, bpb, recipe, code version). ValueError if
    the tokenizer in `tokenizer_folder` is not the one with `tokenizer_hash`.
    """
    _check_tokenizer(tokenizer_folder, tokenizer_hash, origin="the model was trained with")
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    try:
        tensors = {name: tensor.contiguous().cpu() for name, tensor in model.state_dict().items()}
        weights = temporary / "model.safetensors"
        save_file(tensors, weights, metadata={"format": str(FORMAT)})
        sync(weights)
        tokenizer = (tokenizer_folder / "tokenizer.json").read_bytes()  # nothing else that may lie there
        write_atomically(temporary / "tokenizer" / "tokenizer.json", tokenizer)
        write_json(temporary / "gpt.json", {"format": FORMAT, **model.hyperparameters})
        hashes = {"weights_hash": file_hash(weights), "gpt_hash": file_hash(temporary / "gpt.json")}
        hashes["tokenizer_hash"] = tokenizer_hash
        write_json(temporary / "meta.json", {"format": FORMAT, **meta, **hashes})
        temporary.chmod(0o755)
        _replace(folder, temporary)
        sync(folder.parent)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


def load_release(
    folder: Path, *, device: torch.device | str, dtype: torch.dtype | None = None
) -> tuple[GPT, dict[str, Any]]:
    """The model, on `device` in the compute dtype there, and the release's meta; ValueError if damaged.

    `dtype` is another compute dtype. A release may come from a stranger: sizes, names and types are compared
    with the weights' own before memory is taken for them.
    """
    if missing := [name for name in FILES if not (folder / name).is_file()]:
        raise ValueError(f"{folder} is not a release: {missing[0]} is missing; it needs {', '.join(FILES)}")
    hyperparameters, meta = _read_format(folder / "gpt.json"), _read_format(folder / "meta.json", Meta)
    num_tokens = _check_tokenizer(
        folder / "tokenizer", meta.get("tokenizer_hash"), origin=f"{folder}/meta.json names"
    )
    weights = folder / "model.safetensors"
    tensors = _weights(weights)
    model = _described(hyperparameters, tensors.shapes, folder)
    if num_tokens != model.vocab_size:
        raise ValueError(
            f"the tokenizer in {folder} has {num_tokens:,} tokens, the model {model.vocab_size:,}; copy the "
            "one the model was trained with"
        )
    for path, key in ((weights, "weights_hash"), (folder / "gpt.json", "gpt_hash")):
        stated = meta.pop(key, None)
        if stated is not None and stated != file_hash(path):
            raise ValueError(f"{path} is damaged: its hash differs from the one in meta.json; {AGAIN}")
    model.to_empty(device=device)
    model.prepare(dtype=dtype)
    load_weights(model, tensors, origin=str(folder))
    return model.eval(), meta


def tell_origin(meta: Mapping[str, Any], name: str) -> None:
    """Say so if a release is of another run or stage than `name`, RUN/stage, whose folder it lies in."""
    source = f"{meta.get('run')}/{meta.get('stage')}"
    if source != name:
        print(printable(f"warning: the release in {name} says that it is {source}"), flush=True)


def _weights(path: Path) -> TensorFile:
    """Open the tensors; ValueError for odd types."""
    tensors = TensorFile(path, remedy=AGAIN)
    for name, dtype in tensors.dtypes.items():
        if dtype not in DTYPES:
            raise ValueError(f"{name} in {path} is {dtype}; weights are one of {', '.join(DTYPES)}: {AGAIN}")
    return tensors


def _described(hyperparameters: Json, header: Mapping[str, tuple[int, ...]], folder: Path) -> GPT:
    """Return the model of a gpt.json on no device, if it is that of the weights."""
    try:
        model = described(GPTConfig(**hyperparameters), header)
    except (TypeError, ValueError) as error:
        reason = one_line(error)
        raise ValueError(f"{folder}/gpt.json does not describe a model of this version ({reason})") from error
    check_shapes(model, header, origin=str(folder))
    return model


def described(config: GPTConfig, header: Mapping[str, object]) -> GPT:
    """Return a model on no device; ValueError for sizes that nothing with these tensors can have."""
    if config.depth > len(header):  # a million blocks would take long to describe
        raise ValueError(f"depth is {config.depth:,}, and there are {len(header):,} tensors")
    try:
        with torch.device("meta"):
            return GPT(config)
    except (TypeError, RuntimeError) as error:  # sizes beyond any address
        raise ValueError(one_line(error)) from error


def load_weights(model: GPT, tensors: Mapping[str, Tensor], *, origin: str) -> None:
    """Copy `tensors` by canonical name into the model's dtypes.

    ValueError unless names and shapes agree, and for weights that are not finite.
    """
    parameters = dict(model.named_parameters())
    _check_names(parameters, tensors, origin)
    with torch.no_grad():
        for name, parameter in parameters.items():
            tensor = tensors[name]  # a file's are read one by one
            _check_shape(name, parameter, tuple(tensor.shape), origin)
            if not tensor.is_floating_point():
                raise ValueError(f"{name} in {origin} holds integers, which are not weights; {AGAIN}")
            parameter.copy_(tensor)
    broken = [name for name, parameter in parameters.items() if not parameter.isfinite().all()]
    if broken:
        raise ValueError(
            f"{_few(broken)} in {origin} has NaN or infinite values: training diverged, or the file is "
            "damaged; use another checkpoint or release"
        )


def check_shapes(model: GPT, shapes: Mapping[str, tuple[int, ...]], *, origin: str) -> None:
    parameters = dict(model.named_parameters())
    _check_names(parameters, shapes, origin)
    for name, parameter in parameters.items():
        _check_shape(name, parameter, shapes[name], origin)


def _check_names(parameters: Mapping[str, object], names: Mapping[str, object], origin: str) -> None:
    missing, unknown = sorted(parameters.keys() - names.keys()), sorted(names.keys() - parameters.keys())
    if missing or unknown:
        found = [f"lacks {_few(missing)}"] if missing else []
        found += [f"has unknown {_few(unknown)}"] if unknown else []
        raise ValueError(
            f"{origin} {' and '.join(found)}: the weights and sizes belong to different models; copy it again"
        )


def _check_shape(name: str, parameter: Tensor, shape: tuple[int, ...], origin: str) -> None:
    if parameter.shape != shape:
        raise ValueError(
            f"{name} in {origin} is {shape}, but its sizes give {tuple(parameter.shape)}; copy it again"
        )


def _few(names: list[str]) -> str:
    return names[0] if len(names) == 1 else f"{names[0]} and {len(names) - 1} more"


def _check_tokenizer(folder: Path, expected: object, *, origin: str) -> int:
    """Return the size of the vocabulary; ValueError unless its hash is the expected one."""
    path = folder / "tokenizer.json"
    if not path.is_file():
        raise ValueError(f"no tokenizer in {folder}: tokenizer.json is missing")
    content = read_json(path, Vocabulary, remedy=AGAIN)
    if content["hash"] != expected:
        raise ValueError(
            f"the tokenizer in {folder} has hash {content['hash'][:8]}, {origin} {str(expected)[:8]}; use "
            "that one: other tokenizers give the ids another meaning"
        )
    return len(content["tokens"]) + len(content["special_tokens"])


def _read_format(path: Path, kind: Any = None) -> Json:
    content = read_json(path, kind, remedy=AGAIN, constant=as_null)
    found = content.pop("format", None)
    if found != FORMAT:
        raise ValueError(f"{path} has format {found!r}, this version reads {FORMAT}; update NanoLit")
    return content


def _replace(folder: Path, new: Path) -> None:
    """Put `new` in the place of `folder`, which is moved aside first and removed last."""
    if not os.path.lexists(folder):  # a link to nowhere is moved aside too
        os.rename(new, folder)
        return
    aside = Path(tempfile.mkdtemp(prefix=f".{folder.name}.old.", dir=folder.parent))
    os.rename(folder, aside / "old")
    os.rename(new, folder)
    shutil.rmtree(aside)
