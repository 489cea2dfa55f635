"""The model that `nanolit.load` gives: a release with its tokenizer, ready to continue text and to chat."""

import difflib
import secrets
from pathlib import Path
from typing import Any

import torch

from nanolit.chat.dialogue import Messages, Reply, Talker, usual_max_tokens
from nanolit.config.schema import MODEL_STAGES
from nanolit.inference.engine import Engine
from nanolit.machine.arguments import choose
from nanolit.machine.device import pick_device
from nanolit.machine.paths import Json, expanded, home, run_folder
from nanolit.machine.terminal import printable
from nanolit.model.gpt import GPT
from nanolit.model.release import load_release
from nanolit.tokenizer.bpe import Tokenizer


class LanguageModel:
    """A model and its tokenizer: `model(ids_BT)` gives logits_BTV, `meta` says where it comes from."""

    def __init__(self, model: GPT, tokenizer: Tokenizer, *, meta: Json):
        self.model = model
        self.tokenizer = tokenizer
        self.meta = meta
        self.engine = Engine(model, tokenizer)

    @property
    def name(self) -> str:
        """Return the run and the stage it comes from, for a terminal: a release may be anybody's."""
        names = [str(self.meta[key]) for key in ("run", "stage") if self.meta.get(key)]
        return printable("/".join(names)) or "a model"

    @property
    def is_base(self) -> bool:
        """Tell whether it continues text and knows no roles."""
        return self.meta.get("stage") == "base"

    def __repr__(self) -> str:
        parameters = sum(parameter.numel() for parameter in self.model.parameters())
        step = f", step {self.meta['step']:,}" if isinstance(self.meta.get("step"), int) else ""
        use = "`.generate(text)`" if self.is_base else "`.chat(messages)`"
        return (
            f"<LanguageModel {self.name}{step}: {parameters:,} parameters, "
            f"context {self.model.context:,}, on {self.model.device}; {use}>"
        )

    def generate(
        self,
        text: str,
        *,
        max_tokens: int = 128,
        temperature: float = 0.8,
        top_k: int | None = 50,
        seed: int = 0,
    ) -> str:
        """Continue `text` by at most `max_tokens` tokens, fewer if the document ends; return the rest alone.

        temperature 0 always picks the most likely token; top_k None samples from all. The same seed gives the
        same text on one machine. Special tokens are left out.
        """
        tokenizer = self.tokenizer
        steps = self.engine.generate(
            [tokenizer.bos_id, *tokenizer.encode(text)],
            max_tokens=max_tokens,
            temperature=temperature,
            top_k=top_k,
            seed=seed,
        )
        first_special = tokenizer.vocab_size - len(tokenizer.special_tokens)
        return tokenizer.decode([token.id for (token,) in steps if token and token.id < first_special])

    def chat(
        self,
        messages: str | Messages,
        *,
        stream: bool = False,
        max_tokens: int | None = None,
        temperature: float = 0.6,
        top_k: int | None = 50,
        seed: int | None = None,
    ) -> Any:
        """Return the reply to a message, or to a conversation whose last message is the user's.

        It is a text; with `stream` an iterator over its pieces, as they come. A calculator call reads
        [12*3][= 36]. Without a `seed` each reply is another draw. The oldest exchanges are left out where the
        context is full.
        """
        if self.is_base:
            raise ValueError(f"{self.name} is a base model, which has no chat roles; use .generate(text)")
        conversation = [{"role": "user", "content": messages}] if isinstance(messages, str) else messages
        reply: Reply = Talker(self.engine).answer(
            conversation,
            max_tokens=max_tokens or usual_max_tokens(self.engine.context),
            temperature=temperature,
            top_k=top_k,
            seed=secrets.randbits(63) if seed is None else seed,
        )
        return iter(reply) if stream else "".join(reply)


def load_language_model(
    run_or_release: str | Path,
    *,
    stage: str | None,
    root: str | Path | None,
    device: str | torch.device | None,
) -> LanguageModel:
    """Load a run's or a release's model; see `nanolit.load`."""
    folder = find_release(f"{run_or_release}/{stage}" if stage else run_or_release, root=root)
    model, meta = load_release(folder, device=torch.device(device) if device else pick_device())
    return LanguageModel(model, Tokenizer.load(folder / "tokenizer"), meta=meta)


def find_release(run_or_release: str | Path, *, root: str | Path | None = None) -> Path:
    """Return the release folder that a path or a run's name means; ValueError says where it looked."""
    path = expanded(run_or_release)
    run, _, stage = str(run_or_release).partition("/")
    folder, places = run_folder(home(root), run), [path]
    if stage in ("", *MODEL_STAGES) and run not in ("", ".", ".."):
        places += [folder / name / "release" for name in ([stage] if stage else reversed(MODEL_STAGES))]
    # The folder of a run or of a stage, as a shell completes it
    places += [path / name / "release" for name in ("", *reversed(MODEL_STAGES))]
    for place in places:
        if (place / "gpt.json").is_file():
            return place
    if folder.is_dir() and run and stage:
        choose(stage, MODEL_STAGES, kind="stage")
    if folder.is_dir() and run:
        raise ValueError(
            f"run {run} in {folder} has no release of {stage or 'any stage'} yet; train it to the end"
        )
    runs_folder = run_folder(home(root), "any").parent
    runs = sorted({path.parent.name for name in MODEL_STAGES for path in runs_folder.glob(f"*/{name}")})
    near = difflib.get_close_matches(run, runs, n=1)
    hint = f"did you mean {near[0]}? " if near else ""
    inside = runs_folder.parent / run  # root=runs/runs, say
    remedy = f"did you mean root={inside.parent.parent}?" if inside.is_dir() else "train one, or give root=…"
    known = f"{hint}runs there: {', '.join(runs)}" if runs else f"there are no runs there; {remedy}"
    raise ValueError(f"{run_or_release} is neither a release folder nor a run in {runs_folder}; {known}")


def list_releases(root: str | Path | None = None) -> dict[str, Path]:
    """Return the release folders of all runs by RUN/STAGE, each run's last stage first."""
    runs_folder = run_folder(home(root), "any").parent
    runs = sorted(runs_folder.iterdir()) if runs_folder.is_dir() else []
    folders = {f"{run.name}/{stage}": run / stage / "release" for run in runs for stage in MODEL_STAGES[::-1]}
    return {name: folder for name, folder in folders.items() if (folder / "gpt.json").is_file()}
