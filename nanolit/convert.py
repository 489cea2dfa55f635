"""Convert nanochat's models and tokenizers into ours.

    nanolit convert nanochat DIR RELEASE [source=base|mid|chatsft|chatrl] [tag=d20] [step=650]
    nanolit convert nanochat-tokenizer DIR OUT

DIR is a nanochat base directory (nanochat's default: ~/.cache/nanochat); nanochat-tokenizer also takes the
tokenizer's own folder. Reads checkpoints of October 2025 (recipe classic) and of July 2026 (modern).
"""

import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from nanolit.machine.arguments import choose, read, setting
from nanolit.machine.exit import command
from nanolit.machine.paths import read_json


@dataclass(frozen=True)
class ModelSettings:
    """A nanochat checkpoint and its tokenizer into a release."""

    folder: Path = setting("nanochat's base directory", value="DIR", positional=True)
    release: Path = setting("the folder to write", value="RELEASE", positional=True)
    source: Literal["base", "mid", "chatsft", "chatrl"] = setting("which stage's model", "base")
    tag: str | None = setting("which model, such as d20; needed if there are several", None)
    step: int | None = setting("which step (default: the last)", None)


@dataclass(frozen=True)
class TokenizerSettings:
    """A nanochat tokenizer alone."""

    folder: Path = setting("its folder, or nanochat's base directory", value="DIR", positional=True)
    out: Path = setting("the folder to write", value="OUT", positional=True)


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
        raise ValueError(f"{meta_file} has no model_config, which has the model's sizes; copy it again")
    model, recipe = build_model(read_checkpoint(model_file), content["model_config"], origin=str(model_file))
    if tokenizer.vocab_size != model.vocab_size:
        raise ValueError(
            f"the tokenizer in {folder / 'tokenizer'} has {tokenizer.vocab_size:,} tokens, the model "
            f"{model.vocab_size:,}; use the tokenizer the model was trained with"
        )
    done = content.get("step", int(model_file.stem.removeprefix("model_")))
    batch = content.get("total_batch_size")
    if type(done) is not int or not isinstance(batch, int | None):
        raise ValueError(
            f"{meta_file} has step {done!r}, total_batch_size {batch!r}; both must be whole numbers"
        )
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
        f"warning: {folder} has a pickle, tokenizer.pkl. It was read once, by an unpickler that accepts only "
        "tiktoken's Encoding; the output is JSON, never a pickle",
        file=sys.stderr,
    )


def _refuse_existing(path: Path) -> None:
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise ValueError(f"{path} already exists; remove it or give another name")


@command
def main(words: Sequence[str]) -> None:
    kinds = {
        "nanochat": (ModelSettings, convert_nanochat),
        "nanochat-tokenizer": (TokenizerSettings, convert_nanochat_tokenizer),
    }
    if not words or words[0] in ("-h", "--help"):
        print((__doc__ or "").strip())
        return
    settings, convert = kinds[choose(words[0], kinds, kind="kind of conversion")]
    print(convert(**vars(read(settings, words[1:], about=__doc__))))


if __name__ == "__main__":
    sys.exit(main())
