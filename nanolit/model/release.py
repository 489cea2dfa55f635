"""A finished model as a folder: model.safetensors, gpt.json, tokenizer/ and meta.json, whole or absent.

Nothing here runs code from the files. The tokenizer's own files are copied unread; only its hash is compared.
"""

import os
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from nanolit.machine.paths import read_json, write_json
from nanolit.model.gpt import GPT, GPTConfig

FORMAT = 1
FILES = ("model.safetensors", "gpt.json", "meta.json", "tokenizer/tokenizer.json")


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
        save_file(tensors, temporary / "model.safetensors", metadata={"format": str(FORMAT)})
        write_json(temporary / "gpt.json", {"format": FORMAT, **model.hyperparameters})
        write_json(temporary / "meta.json", {"format": FORMAT, **meta, "tokenizer_hash": tokenizer_hash})
        shutil.copytree(tokenizer_folder, temporary / "tokenizer")
        temporary.chmod(0o755)
        _replace(folder, temporary)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


def load_release(
    folder: Path, *, device: torch.device | str, dtype: torch.dtype | None = None
) -> tuple[GPT, dict[str, Any]]:
    """The model, on `device` in the compute dtype there, and the release's meta; ValueError if damaged.

    `dtype` is another compute dtype.
    """
    if missing := [name for name in FILES if not (folder / name).is_file()]:
        raise ValueError(f"{folder} is not a release: {missing[0]} is missing; it needs {', '.join(FILES)}")
    hyperparameters, meta = _read_format(folder / "gpt.json"), _read_format(folder / "meta.json")
    _check_tokenizer(folder / "tokenizer", meta.get("tokenizer_hash"), origin=f"{folder}/meta.json names")
    try:
        with torch.device("meta"):
            model = GPT(GPTConfig(**hyperparameters))
    except (TypeError, ValueError) as error:
        raise ValueError(f"{folder}/gpt.json does not describe a model of this version ({error})") from error
    try:
        tensors = load_file(folder / "model.safetensors")
    except SafetensorError as error:
        raise ValueError(
            f"{folder}/model.safetensors is damaged ({error}); copy or convert it again"
        ) from error
    model.to_empty(device=device)
    model.prepare(dtype=dtype)
    load_weights(model, tensors, origin=str(folder))
    return model.eval(), meta


def load_weights(model: GPT, tensors: Mapping[str, Tensor], *, origin: str) -> None:
    """Copy `tensors` by canonical name into the model's dtypes; ValueError unless names and shapes agree."""
    parameters = dict(model.named_parameters())
    missing = sorted(parameters.keys() - tensors.keys())
    unknown = sorted(tensors.keys() - parameters.keys())
    if missing or unknown:
        found = [f"lacks {_few(missing)}"] if missing else []
        found += [f"has unknown {_few(unknown)}"] if unknown else []
        raise ValueError(
            f"{origin} {' and '.join(found)}: weights and sizes are not of one model; copy it again"
        )
    for name, parameter in parameters.items():
        if parameter.shape != tensors[name].shape:
            raise ValueError(
                f"{name} in {origin} is {tuple(tensors[name].shape)}, its sizes say {tuple(parameter.shape)}"
            )
    with torch.no_grad():
        for name, parameter in parameters.items():
            parameter.copy_(tensors[name])


def _few(names: list[str]) -> str:
    return names[0] if len(names) == 1 else f"{names[0]} and {len(names) - 1} more"


def _check_tokenizer(folder: Path, expected: object, *, origin: str) -> None:
    path = folder / "tokenizer.json"
    if not path.is_file():
        raise ValueError(f"no tokenizer in {folder}: tokenizer.json is missing")
    content = read_json(path)
    found = content.get("hash") if isinstance(content, dict) else None
    if found != expected:
        raise ValueError(
            f"the tokenizer in {folder} has hash {str(found)[:8]}, {origin} {str(expected)[:8]}; "
            "use that one: with another, the ids mean other text"
        )


def _read_format(path: Path) -> dict[str, Any]:
    content = read_json(path)
    found = content.pop("format", None) if isinstance(content, dict) else None
    if found != FORMAT:
        raise ValueError(f"{path} has format {found!r}, this version reads {FORMAT}; update nanolit")
    return content


def _replace(folder: Path, new: Path) -> None:
    """Put `new` in the place of `folder`, which is moved aside first and removed last."""
    if not folder.exists():
        os.rename(new, folder)
        return
    aside = Path(tempfile.mkdtemp(prefix=f".{folder.name}.old.", dir=folder.parent))
    os.rename(folder, aside / "old")
    os.rename(new, folder)
    shutil.rmtree(aside)
