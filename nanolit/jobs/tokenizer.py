"""Train a tokenizer: the stage before base, and phase=tokenizer by itself."""

import time
from pathlib import Path

from nanolit.config.build import build
from nanolit.config.names import TRAINED_ON
from nanolit.config.schema import Job
from nanolit.data.parquet import training_arrays, training_texts, validation_texts
from nanolit.data.prepare import check_held_out
from nanolit.machine.paths import Json, stage_folder, tokenizers_folder, write_json
from nanolit.machine.terminal import duration, say
from nanolit.planning.plans import TokenizerPlan
from nanolit.tokenizer.bpe import Tokenizer
from nanolit.tokenizer.comparison import SAMPLE_CHARACTERS, comparison_table, write_comparison


def train_tokenizer(job: Job, plan: TokenizerPlan) -> Json:
    """Train the tokenizer of the job, or find the one that an equal job has made."""
    settings = job["stage"]["tokenizer"]
    folder = tokenizers_folder(job["root"]) / plan.tokenizer
    begun = time.perf_counter()
    dataset = build(job["data"])
    corpus = dataset.open_corpus(Path(job["root"]), num_shards=plan.shards)
    # Base would refuse it, once there is a tokenizer; the tokenizers' comparison needs any text at all
    check_held_out(corpus, context=0 if job["phase"] == "tokenizer" else job["model"]["context"])
    if (folder / "tokenizer.json").exists():
        tokenizer = Tokenizer.load(folder)
        say(f"tokenizer: {folder.name} already exists")
    else:
        texts = training_arrays(
            corpus, max_characters=settings["max_chars"], max_document_characters=settings["doc_cap"]
        )
        cut = f"the first {settings['doc_cap']:,} characters of each document"
        say(f"tokenizer: training a vocabulary of {settings['vocab_size']:,} on {corpus.name}, {cut}")
        tokenizer = Tokenizer.train(
            texts, vocab_size=settings["vocab_size"], tell=lambda line: say(f"tokenizer: {line}")
        )
        if text := dataset.text_hash():
            write_json(folder / TRAINED_ON, {"text": text})
        tokenizer.save(folder)
        say(f"tokenizer: {folder.name} in {duration(time.perf_counter() - begun)}")
    if job["phase"] == "tokenizer":  # asked for by itself, not as an input of base
        rows = write_comparison(
            stage_folder(job["root"], job["run"], "tokenizer"),
            tokenizer,
            train=training_texts(corpus, max_characters=SAMPLE_CHARACTERS),
            validation=validation_texts(corpus),
            offline=job["offline"],
        )
        say(f"\n{comparison_table(rows)}")
    return {
        "status": "done",
        "wall_seconds": time.perf_counter() - begun,
        "tokenizer": str(folder),
        "hash": tokenizer.hash,
        "vocab_size": tokenizer.vocab_size,
    }
