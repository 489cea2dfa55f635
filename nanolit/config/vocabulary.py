"""The size of the vocabulary, where it follows from the model that a job continues, or from little text."""

from pathlib import Path

from nanolit.config.build import build
from nanolit.config.schema import Choices
from nanolit.machine.paths import read_json, run_folder

# A tokenizer of 32,768 would have few examples of each token in little text, and the model mostly embeddings.
# The demo has 4,096 for 4.3 MB; a power of two, untuned.
BYTES_PER_TOKEN = 1024
SMALLEST = 512


def fit_vocabulary(job: Choices) -> None:
    """Take the vocabulary of the model that the job continues, else what a little own text can teach.

    One that was typed stays.
    """
    typed = ("recipe.vocab_size=", "stage.tokenizer.vocab_size=", "experiment=")
    if any(word.lstrip("+").startswith(typed) for word in job["overrides"]):
        return
    tokenizer = job["stage"]["tokenizer"]
    if (known := vocabulary_before(job)) is not None:
        tokenizer["vocab_size"] = known
        return
    try:
        enough = tokenizer["vocab_size"] * BYTES_PER_TOKEN
        num_bytes = build(job["data"]).text_bytes(enough=enough)
    except (ValueError, OSError):  # not here, or faulty: the plan, or what reads it, says so
        return
    if num_bytes is not None:
        fitting = 1 << (max(SMALLEST, num_bytes // BYTES_PER_TOKEN).bit_length() - 1)
        tokenizer["vocab_size"] = min(tokenizer["vocab_size"], fitting)


def vocabulary_before(job: Choices) -> int | None:
    """Return the vocabulary of the model in `start_from`, or in a later stage's run; None without one."""
    wish = job["start_from"] or ("" if "base" in job["stages"] else job["run"])
    if not wish or "tokenizer" in job["stages"]:
        return None
    run = run_folder(job["root"], wish.split("/")[0])
    releases = [Path(wish).expanduser(), *sorted(run.glob("*/release"))]
    found = [folder / "gpt.json" for folder in releases if (folder / "gpt.json").is_file()]
    return read_json(found[0])["vocab_size"] if found else None
