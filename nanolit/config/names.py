"""Which keys decide a result; the name of a run, and of the tokenizer it uses, from those keys alone."""

import hashlib
import json
import os
import re
from collections.abc import Mapping
from pathlib import Path

from nanolit.config.build import build
from nanolit.config.schema import MODEL_STAGES, Job
from nanolit.machine.paths import expanded, read_json, run_folder, tokenizers_folder

# Keys that say how a result is watched or estimated, not what it is: never part of a name, never a reason to
# refuse a resume.
INDIFFERENT = {"micro_batch", "eval_every", "save_every", "sample_every", "core_every", "cache"}
INDIFFERENT |= {"epoch_tokens", "epoch_questions"}
TRAINED_ON = "trained_on.json"  # beside a tokenizer: the hash of own text that it was trained on
OF_ORIGIN = ("model.", "stage.tokenizer.")  # what start_from decides
DECISIVE = ("seed", "model", "recipe", "data", "precision", "fast_dev_run", "start_from", "stage")


def decisive_settings(job: Job, stage: str | None = None) -> dict[str, object]:
    """Return dotted key → value of all settings that decide the result of the whole job, or of one stage.

    The cluster, the devices, the logger and the intervals of evaluation are not among them.
    """
    found = flatten({key: job[key] for key in DECISIVE})
    found = {key: value for key, value in found.items() if key.rpartition(".")[2] not in INDIFFERENT}
    if stage is None:
        return found
    if stage == "tokenizer":
        return {key: value for key, value in found.items() if key.startswith(("data.", "stage.tokenizer."))}
    others = tuple(
        f"{node}.{other}." for node in ("stage", "recipe") for other in MODEL_STAGES if other != stage
    )
    return {key: value for key, value in found.items() if not key.startswith(others)}


def flatten(node: Mapping[str, object], prefix: str = "") -> dict[str, object]:
    """Nested mappings to one with dotted keys; lists stay values."""
    flat: dict[str, object] = {}
    for key, value in node.items():
        if isinstance(value, Mapping) and value:
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def difference(old: Mapping[str, object], new: Mapping[str, object]) -> dict[str, tuple[object, object]]:
    """Key → (old, new) where two flat mappings differ; an absent key counts as None."""
    keys = sorted(old.keys() | new.keys())
    return {key: (old.get(key), new.get(key)) for key in keys if old.get(key) != new.get(key)}


def run_name(job: Job, plain: Job) -> str:
    """d12-modern-s1: depth, recipe, seed, and a short hash of what differs from the `plain` job of these.

    `phase=identity start_from=RUN identity=FILE` is RUN-identity.
    """
    name = f"d{job['model']['depth']}-{job['recipe']['name']}-s{job['seed']}"
    changes = difference(decisive_settings(plain), decisive_settings(job))
    if job["phase"] == "identity" and job["start_from"]:
        origin = origin_name(job["start_from"])
        changes = {key: change for key, change in changes.items() if not key.startswith(OF_ORIGIN)}
        if job["start_from"].rstrip("/") == origin:
            del changes["start_from"]
        name = f"{origin}-identity"
    return f"{name}-{short_hash({key: new for key, (_, new) in changes.items()})}" if changes else name


def origin_name(start_from: str) -> str:
    """Return RUN of RUN, RUN/stage or a release's meta.json, else the folder's name; - for odd letters."""
    folder = Path(os.path.abspath(expanded(start_from)))
    meta = folder / "meta.json"
    run = read_json(meta, remedy="copy or convert it again").get("run") if meta.is_file() else None
    name = run or (folder.parent if folder.name in MODEL_STAGES else folder).name
    return re.sub("[^A-Za-z0-9_-]+", "-", str(name)).strip("-")


def trial_name(run: str) -> str:
    """Return demo-dev for demo: a fast_dev_run must never stand in for the real run."""
    return run if run.split("-")[-1] == "dev" else f"{run}-dev"


def tokenizer_name(job: Job) -> str:
    """sample-4096-1a2b3c4d: what it is trained on, its size, and a hash of all that decides its merges.

    Own text counts by its files' names and sizes. If the tokenizer of that name has been trained on other
    text of these sizes, the name ends in a hash of this one.
    """
    dataset, settings = build(job["data"]), decisive_settings(job, "tokenizer")
    if settings.get("data.weights") is None:  # a later key: without it, a name is what it was before
        settings.pop("data.weights", None)
    if train_bytes := dataset.train_bytes():
        settings["train_bytes"] = train_bytes
    name = f"{dataset.name}-{job['stage']['tokenizer']['vocab_size']}-{short_hash(settings, 8)}"
    made = tokenizers_folder(job["root"])
    if not any(made.glob(f"{name}*/{TRAINED_ON}")) or not (text := dataset.text_hash()):
        return name
    note, own = made / name / TRAINED_ON, f"{name}-{text[:6]}"
    is_another = note.is_file() and read_json(note).get("text") != text
    return own if is_another or (made / own).exists() else name


def tokenizer_folder(job: Job) -> Path:
    """Return the tokenizer's folder, made or not: all runs of the same root and settings share it."""
    return tokenizers_folder(job["root"]) / tokenizer_name(job)


def releases_before(job: Job) -> list[Path]:
    """Return the release in `start_from`, or all of the run that it names, or that the job continues."""
    wish = job["start_from"] or ("" if "base" in job["stages"] else job["run"])
    if not wish:
        return []
    found = [expanded(wish), *sorted(run_folder(job["root"], wish.split("/")[0]).glob("*/release"))]
    return [folder for folder in found if (folder / "gpt.json").is_file()]


def short_hash(content: object, letters: int = 6) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:letters]
