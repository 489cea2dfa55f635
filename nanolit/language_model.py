"""The model that `nanolit.load` gives: a release with its tokenizer, ready to continue text."""

from pathlib import Path

import torch

from nanolit.config.schema import MODEL_STAGES
from nanolit.inference.engine import Engine
from nanolit.machine.arguments import choose
from nanolit.machine.device import pick_device
from nanolit.machine.paths import Json, home, run_folder
from nanolit.model.gpt import GPT
from nanolit.model.release import load_release
from nanolit.tokenizer.bpe import Tokenizer


class LanguageModel:
    """A model and its tokenizer: `model(ids_BT)` gives logits_BTV, `meta` says where it comes from."""

    def __init__(self, model: GPT, tokenizer: Tokenizer, *, meta: Json):
        self.model = model
        self.tokenizer = tokenizer
        self.meta = meta
        self._engine = Engine(model, tokenizer)

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

        temperature 0 takes the likeliest token each time; top_k None draws from all. The same seed gives the
        same text on one machine. Special tokens are left out.
        """
        tokenizer = self.tokenizer
        steps = self._engine.generate(
            [tokenizer.bos_id, *tokenizer.encode(text)],
            max_tokens=max_tokens,
            temperature=temperature,
            top_k=top_k,
            seed=seed,
        )
        first_special = tokenizer.vocab_size - len(tokenizer.special_tokens)
        return tokenizer.decode([token.id for (token,) in steps if token and token.id < first_special])


def load_language_model(
    run_or_release: str | Path, *, root: str | Path | None, device: str | torch.device | None
) -> LanguageModel:
    """Load a run's or a release's model; see `nanolit.load`."""
    folder = find_release(run_or_release, root=root)
    model, meta = load_release(folder, device=torch.device(device) if device else pick_device())
    return LanguageModel(model, Tokenizer.load(folder / "tokenizer"), meta=meta)


def find_release(run_or_release: str | Path, *, root: str | Path | None = None) -> Path:
    """Return the release folder that a path or a run's name means; ValueError says where it looked."""
    path = Path(run_or_release).expanduser()
    if (path / "gpt.json").is_file():
        return path
    run, _, stage = str(run_or_release).partition("/")
    folder = run_folder(home(root), run)
    if stage in ("", *MODEL_STAGES) and run not in ("", ".", ".."):
        for name in [stage] if stage else reversed(MODEL_STAGES):
            if (folder / name / "release" / "gpt.json").is_file():
                return folder / name / "release"
    if folder.is_dir() and run and stage:
        choose(stage, MODEL_STAGES, kind="stage")
    if folder.is_dir() and run:
        raise ValueError(
            f"run {run} in {folder} has no release of {stage or 'any stage'} yet; train it to the end"
        )
    runs_folder = run_folder(home(root), "any").parent
    runs = sorted(other.name for other in runs_folder.iterdir()) if runs_folder.is_dir() else []
    known = f"runs there: {', '.join(runs)}" if runs else "there are no runs there; set root or NANOLIT_HOME"
    raise ValueError(f"{run_or_release} is neither a release folder nor a run in {runs_folder}; {known}")
