"""`python -m nanolit.convert`: models and tokenizers of other programs into ours.

    python -m nanolit.convert nanochat DIR RELEASE [--source base|mid|chatsft|chatrl] [--tag d20] [--step 650]
    python -m nanolit.convert nanochat-tokenizer DIR OUT

DIR is a nanochat base directory (by default ~/.cache/nanochat there). Checkpoints of October 2025 and of July
2026 are read, the recipes classic and modern.
"""

import argparse
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from nanolit.machine.paths import read_json

SOURCES = ("base", "mid", "chatsft", "chatrl")  # the stages, in nanochat's names


def convert_nanochat(
    folder: Path, release: Path, *, source: str = "base", tag: str | None = None, step: int | None = None
) -> str:
    """Write a checkpoint of a nanochat base directory as a release; gives one line that says what it is."""
    from nanolit.model.nanochat import STAGES, build_model, find_checkpoint, read_checkpoint
    from nanolit.model.release import save_release
    from nanolit.tokenizer.nanochat import read_tokenizer

    _refuse_existing(release)
    model_file, meta_file = find_checkpoint(folder, source=source, tag=tag, step=step)
    tokenizer = read_tokenizer(folder / "tokenizer")
    _warn_of_pickle(folder / "tokenizer")
    content = read_json(meta_file)
    if not isinstance(content, dict) or not isinstance(content.get("model_config"), dict):
        raise ValueError(f"{meta_file} has no model_config, which says the model's sizes; copy it again")
    model, recipe = build_model(read_checkpoint(model_file), content["model_config"], origin=str(model_file))
    if tokenizer.vocab_size != model.vocab_size:
        raise ValueError(
            f"the tokenizer in {folder / 'tokenizer'} has {tokenizer.vocab_size:,} tokens, the model "
            f"{model.vocab_size:,}; put the tokenizer there that the model was trained with"
        )
    done = content.get("step", int(model_file.stem.removeprefix("model_")))
    batch = content.get("total_batch_size")
    if type(done) is not int or not isinstance(batch, int | None):
        raise ValueError(f"{meta_file} has step {done!r}, total_batch_size {batch!r}; both are whole numbers")
    meta = {
        "run": model_file.parent.name,
        "stage": STAGES[source],
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
    name = f"{meta['run']} ({recipe}, {meta['stage']}, step {done:,})"
    return f"{release}: {name}, {parameters:,} parameters"


def convert_nanochat_tokenizer(folder: Path, out: Path) -> str:
    """Write nanochat's tokenizer as ours; `folder` holds tokenizer.pkl, or is the base directory above it."""
    from nanolit.tokenizer.nanochat import read_tokenizer

    _refuse_existing(out)
    folder = folder / "tokenizer" if (folder / "tokenizer").is_dir() else folder
    tokenizer = read_tokenizer(folder)
    _warn_of_pickle(folder)
    tokenizer.save(out)
    return f"{out}: tokenizer of {tokenizer.vocab_size:,} tokens, hash {tokenizer.hash[:8]}"


def _warn_of_pickle(folder: Path) -> None:
    print(
        f"warning: {folder} holds a pickle, tokenizer.pkl: read this once, through an unpickler that admits "
        "only tiktoken's Encoding; what is written here is JSON, never a pickle",
        file=sys.stderr,
    )


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
    convert = convert_nanochat if chosen.pop("kind") == "nanochat" else convert_nanochat_tokenizer
    try:
        print(convert(**chosen))
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
