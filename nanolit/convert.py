"""`python -m nanolit.convert`: models and tokenizers of other programs into ours.

    python -m nanolit.convert nanochat DIR RELEASE [--source base|mid|chatsft|chatrl] [--tag d20] [--step 650]
    python -m nanolit.convert nanochat-tokenizer DIR OUT

DIR is a nanochat base directory (by default ~/.cache/nanochat there). Checkpoints of October 2025 and of July
2026 are read, the recipes classic and modern.
"""

import argparse
import pickle
import re
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from nanolit.machine.paths import read_json

SOURCES = {"base": "base", "mid": "mid", "chatsft": "sft", "chatrl": "rl"}  # nanochat's name: our stage

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


def generation(names: set[str]) -> str:
    """The recipe whose program wrote a checkpoint with these parameters; ValueError for those between."""
    found = MODERN_ONLY & names
    has_tables = any(name.startswith("value_embeds.") for name in names)
    if not found and not has_tables:
        return "classic"
    if found == MODERN_ONLY and has_tables:
        return "modern"
    lacks = sorted(MODERN_ONLY - found) or ["value_embeds"]
    raise ValueError(
        f"this checkpoint lacks {', '.join(lacks)}: it was written between the two generations that can be read, "
        "October 2025 and July 2026; load and save it with nanochat of July 2026 first"
    )


def constructor_arguments(model_config: Mapping[str, Any], recipe: str) -> dict[str, Any]:
    """GPT's arguments from a checkpoint's model_config and what its generation has built in."""
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
    return arguments


def find_checkpoint(folder: Path, *, source: str, tag: str | None, step: int | None) -> tuple[Path, Path]:
    """The model and meta file of one checkpoint below a nanochat base directory."""
    parent = folder / f"{source}_checkpoints"
    if not parent.is_dir():
        present = [name for name in SOURCES if (folder / f"{name}_checkpoints").is_dir()]
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
    steps = {int(path.stem.removeprefix("model_")): path for path in (parent / tag).glob("model_*.pt")}
    if not steps:
        raise ValueError(
            f"{parent / tag} has no model_*.pt; copy the checkpoint there, or choose another --tag"
        )
    step = max(steps) if step is None else step
    if step not in steps:
        raise ValueError(f"{parent / tag} has no step {step}; it has {', '.join(map(str, sorted(steps)))}")
    meta = steps[step].with_name(steps[step].stem.replace("model_", "meta_") + ".json")
    if not meta.is_file():
        raise ValueError(f"{meta} is missing; it says the model's sizes: copy it beside {steps[step].name}")
    return steps[step], meta


def read_checkpoint(path: Path) -> dict[str, Any]:
    """Tensors by canonical name. Only tensors are read: a pickle that holds anything else is refused."""
    import torch

    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError, OSError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(f"{path} is not a readable checkpoint ({reason}); copy it again") from error
    if not isinstance(state, dict) or not all(isinstance(value, torch.Tensor) for value in state.values()):
        raise ValueError(f"{path} holds more than named tensors; give a model_*.pt that nanochat saved")
    return {name.removeprefix("_orig_mod."): tensor for name, tensor in state.items()}


def build_model(state: Mapping[str, Any], model_config: Mapping[str, Any], *, origin: str) -> tuple[Any, str]:
    """A GPT on the CPU with a nanochat checkpoint's weights, embeddings in the dtype they were saved in; its recipe."""
    import torch

    from nanolit.model.gpt import GPT
    from nanolit.model.release import load_weights

    recipe = generation(set(state))
    tensors = {canonical_name(name): tensor for name, tensor in state.items()}
    with torch.device("meta"):
        model = GPT(**constructor_arguments(model_config, recipe))
    model.to_empty(device="cpu")
    model.prepare(dtype=tensors["embedding.weight"].dtype if "embedding.weight" in tensors else None)
    load_weights(model, tensors, origin=origin)
    return model, recipe


def convert_nanochat(
    folder: Path, release: Path, *, source: str = "base", tag: str | None = None, step: int | None = None
) -> str:
    """Write a checkpoint below a nanochat base directory as a release; gives one line that says what it is."""
    from nanolit.model.release import save_release
    from nanolit.tokenizer.nanochat import read_tokenizer

    _refuse_existing(release)
    model_file, meta_file = find_checkpoint(folder, source=source, tag=tag, step=step)
    tokenizer = read_tokenizer(folder / "tokenizer")
    content = read_json(meta_file)
    model, recipe = build_model(
        read_checkpoint(model_file), content.get("model_config", {}), origin=str(model_file)
    )
    if tokenizer.vocab_size != model.vocab_size:
        raise ValueError(
            f"the tokenizer in {folder / 'tokenizer'} has {tokenizer.vocab_size:,} tokens, the model "
            f"{model.vocab_size:,}; put the tokenizer there that the model was trained with"
        )
    done = content.get("step", int(model_file.stem.removeprefix("model_")))
    batch = content.get("total_batch_size")
    meta = {
        "run": model_file.parent.name,
        "stage": SOURCES[source],
        "step": done,
        "tokens": done * batch if batch else None,
        "bpb": content.get("val_bpb"),
        "recipe": recipe,
        "origin": f"nanochat {model_file.relative_to(folder)}",
    }
    with tempfile.TemporaryDirectory() as temporary:
        tokenizer.save(Path(temporary))
        save_release(
            release, model, tokenizer_folder=Path(temporary), tokenizer_hash=tokenizer.hash, meta=meta
        )
    parameters = sum(parameter.numel() for parameter in model.parameters())
    return f"{release}: {model_file.parent.name} ({recipe}, {meta['stage']}, step {done:,}), {parameters:,} parameters"


def convert_nanochat_tokenizer(folder: Path, out: Path) -> str:
    """Write nanochat's tokenizer as ours; `folder` holds tokenizer.pkl, or is the base directory above it."""
    from nanolit.tokenizer.nanochat import read_tokenizer

    _refuse_existing(out)
    tokenizer = read_tokenizer(folder / "tokenizer" if (folder / "tokenizer").is_dir() else folder)
    tokenizer.save(out)
    return f"{out}: tokenizer of {tokenizer.vocab_size:,} tokens, hash {tokenizer.hash[:8]}"


def _refuse_existing(path: Path) -> None:
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise ValueError(f"{path} exists already; remove it or give another name")


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m nanolit.convert", description="Models and tokenizers of other programs into ours."
    )
    kinds = parser.add_subparsers(dest="kind", required=True, metavar="nanochat | nanochat-tokenizer")
    model = kinds.add_parser("nanochat", help="a nanochat checkpoint and its tokenizer into a release")
    model.add_argument("folder", type=Path, metavar="DIR", help="nanochat's base directory")
    model.add_argument("release", type=Path, metavar="RELEASE", help="the folder to write")
    model.add_argument(
        "--source", choices=SOURCES, default="base", help="which stage's model (default: base)"
    )
    model.add_argument("--tag", help="which model, such as d20; needed when there are several")
    model.add_argument("--step", type=int, help="which step (default: the last)")
    tokenizer = kinds.add_parser("nanochat-tokenizer", help="a nanochat tokenizer alone")
    tokenizer.add_argument(
        "folder", type=Path, metavar="DIR", help="its folder, or nanochat's base directory"
    )
    tokenizer.add_argument("out", type=Path, metavar="OUT", help="the folder to write")
    chosen = vars(parser.parse_args(arguments))
    convert = {"nanochat": convert_nanochat, "nanochat-tokenizer": convert_nanochat_tokenizer}[
        chosen.pop("kind")
    ]
    try:
        print(convert(**chosen))
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
