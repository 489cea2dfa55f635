"""Read nanochat's checkpoints: a base directory of either generation becomes a GPT with its weights.

The generations are October 2025 (recipe classic) and July 2026 (modern). Only tensors are unpickled.
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from nanolit.model.gpt import GPT, GPTConfig
from nanolit.model.release import check_shapes, described, load_weights

STAGES = {"base": "base", "mid": "mid", "chatsft": "sft", "chatrl": "rl"}  # nanochat's name: our stage

# What each generation's program has built in and its checkpoints do not say.
GENERATIONS: dict[str, dict[str, Any]] = {
    "classic": {
        "rope_base": 10_000.0,
        "window_pattern": "L",
        "value_embeddings": False,
        "residual_scalars": False,
        "smear": False,
        "backout": False,
        "qk_scale": 1.0,
        "softcap": 15.0,
        "initialization": "classic",
        "vocab_multiple": 1,
        "rope_dtype": "bfloat16",
        "softcap_dtype": "compute",
    },
    "modern": {
        "rope_base": 100_000.0,
        "window_pattern": "SSSL",
        "value_embeddings": True,
        "residual_scalars": True,
        "smear": True,
        "backout": True,
        "qk_scale": 1.2,
        "softcap": 15.0,
        "initialization": "modern",
        "vocab_multiple": 64,
        "rope_dtype": "compute",
        "softcap_dtype": "float32",
    },
}

MODERN_ONLY = {"resid_lambdas", "x0_lambdas", "smear_gate.weight", "smear_lambda", "backout_lambda"}

PARTS = {
    "transformer.wte": "embedding",
    "lm_head": "unembedding",
    "transformer.h": "blocks",
    "attn.c_q": "attention.query",
    "attn.c_k": "attention.key",
    "attn.c_v": "attention.value",
    "attn.c_proj": "attention.output",
    "attn.ve_gate": "attention.value_gate",
    "mlp.c_fc": "mlp.expand",
    "mlp.c_proj": "mlp.contract",
    "value_embeds": "value_embeddings",
    "resid_lambdas": "residual_scalars",
    "x0_lambdas": "x0_scalars",
    "smear_lambda": "smear_scale",
    "backout_lambda": "backout_scale",
}


def canonical_name(name: str) -> str:
    """Our name of a nanochat parameter; one that we do not know keeps its name."""
    name = name.removeprefix("_orig_mod.")  # what torch.compile puts in front
    for theirs, ours in PARTS.items():
        name = re.sub(rf"(^|\.){re.escape(theirs)}(?=\.|$)", rf"\g<1>{ours}", name)
    return name


def generation(names: set[str], *, origin: str = "this checkpoint") -> str:
    """The recipe whose program wrote a checkpoint with these parameters; ValueError for those between."""
    found = MODERN_ONLY & names
    has_tables = any(name.startswith("value_embeds.") for name in names)
    if not found and not has_tables:
        return "classic"
    if found == MODERN_ONLY and has_tables:
        return "modern"
    lacks = sorted(MODERN_ONLY - found) or ["value_embeds"]
    raise ValueError(
        f"{origin} lacks {', '.join(lacks)}: it was saved between October 2025 and July 2026, the two "
        "versions that can be read; load and save it with nanochat of July 2026 first"
    )


def config_of(model_config: Mapping[str, Any], recipe: str) -> GPTConfig:
    """Return our config from a checkpoint's model_config and what its generation has built in."""
    try:
        sizes = {
            "depth": model_config["n_layer"],
            "width": model_config["n_embd"],
            "heads": model_config["n_head"],
            "kv_heads": model_config["n_kv_head"],
            "vocab_size": model_config["vocab_size"],
            "context": model_config["sequence_len"],
        }
    except KeyError as error:
        raise ValueError(f"model_config in the checkpoint's meta file has no {error}") from error
    arguments = GENERATIONS[recipe] | sizes
    if recipe == "modern":
        arguments["window_pattern"] = model_config.get("window_pattern", "SSSL").upper()
    return GPTConfig(**arguments)


def find_checkpoint(folder: Path, *, source: str, tag: str | None, step: int | None) -> tuple[Path, Path]:
    """The model and meta file of one checkpoint below a nanochat base directory."""
    parent = folder / f"{source}_checkpoints"
    if not parent.is_dir():
        present = [name for name in STAGES if (folder / f"{name}_checkpoints").is_dir()]
        hint = (
            f"give --source {' or '.join(present)}"
            if present
            else "give the folder that holds base_checkpoints"
        )
        raise ValueError(f"{folder} has no {parent.name}; {hint}")
    tags = sorted(path.name for path in parent.iterdir() if path.is_dir())
    if tag is None and len(tags) != 1:
        raise ValueError(f"{parent} has {len(tags)} models ({', '.join(tags)}); choose one with --tag")
    tag = tag or tags[0]
    if tag not in tags:
        raise ValueError(f"{parent} has no model {tag}; it has {', '.join(tags)}")
    steps = {
        int(path.stem.removeprefix("model_")): path for path in (parent / tag).glob("model_[0-9]*[0-9].pt")
    }
    if not steps:
        raise ValueError(
            f"{parent / tag} has no model_*.pt; copy the checkpoint there, or choose another --tag"
        )
    step = max(steps) if step is None else step
    if step not in steps:
        raise ValueError(f"{parent / tag} has no step {step}; it has {', '.join(map(str, sorted(steps)))}")
    meta = steps[step].with_name(steps[step].stem.replace("model_", "meta_") + ".json")
    if not meta.is_file():
        raise ValueError(f"{meta} is missing; it has the model's sizes: copy it next to {steps[step].name}")
    return steps[step], meta


def read_checkpoint(path: Path) -> dict[str, Any]:
    """Tensors by canonical name. Only tensors are read: a pickle that holds anything else is refused."""
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # whatever damaged bytes make of torch's reader
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise ValueError(f"{path} is not a readable checkpoint ({reason}); copy it again") from error
    if not isinstance(state, dict) or not all(isinstance(value, torch.Tensor) for value in state.values()):
        raise ValueError(f"{path} holds more than named tensors; give a model_*.pt saved by nanochat")
    return {name.removeprefix("_orig_mod."): tensor for name, tensor in state.items()}


def build_model(state: Mapping[str, Any], model_config: Mapping[str, Any], *, origin: str) -> tuple[GPT, str]:
    """A GPT on the CPU with a checkpoint's weights, embeddings in their saved dtype; and its recipe."""
    recipe = generation(set(state), origin=origin)
    tensors = {canonical_name(name): tensor for name, tensor in state.items()}
    try:
        model = described(config_of(model_config, recipe), tensors)
    except (ValueError, TypeError, AttributeError) as error:
        raise ValueError(
            f"the model_config of {origin} describes no model ({error}); copy it again"
        ) from error
    check_shapes(model, {name: tuple(tensor.shape) for name, tensor in tensors.items()}, origin=origin)
    model.to_empty(device="cpu")
    model.prepare(dtype=tensors["embedding.weight"].dtype if "embedding.weight" in tensors else None)
    load_weights(model, tensors, origin=origin)
    return model, recipe
