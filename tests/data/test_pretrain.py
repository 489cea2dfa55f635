"""What base pretraining builds from a corpus."""

import subprocess
import sys
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from corpora import TOKENIZER, make_corpus, texts

from nanolit.data.parquet import training_texts
from nanolit.data.shards import Sample
from nanolit.data.stream import PretrainStream
from nanolit.data.validation import ValidationRows


def test_the_tokenizer_is_trained_on_the_training_split_alone(tmp_path: Path) -> None:
    every = list(training_texts(make_corpus(tmp_path), max_characters=10**9))
    assert every == texts(200)


def test_training_text_is_cut_by_document_and_in_all(tmp_path: Path) -> None:
    some = list(training_texts(make_corpus(tmp_path), max_characters=500, max_document_characters=40))
    assert [text[:40] for text in texts(200)[: len(some) - 1]] == some[:-1]
    assert sum(map(len, some)) == 500


def test_reading_training_text_imports_no_pandas() -> None:
    """An import inside pyarrow, which takes a second and swallows a Ctrl-C that comes meanwhile."""
    code = """
import sys
from pathlib import Path
from nanolit.data.shards import Sample
from nanolit.data.parquet import training_arrays
arrays = list(training_arrays(Sample().open_corpus(Path()), max_characters=10_000))
sys.exit("pandas" in sys.modules or not arrays)
"""
    subprocess.run([sys.executable, "-c", code], check=True)


def test_the_sample_fills_steps_and_validation(tmp_path: Path) -> None:
    corpus = Sample().open_corpus(tmp_path)
    settings: Any = {"context": 64, "micro_batch": 16, "packing": "bestfit", "rank": 1, "world": 2}
    stream = PretrainStream(corpus, TOKENIZER, rows=32, seed=1, **settings)
    validation = ValidationRows(corpus, TOKENIZER, num_tokens=6400, **settings)
    assert stream.lanes == 16
    (step,) = islice(stream, 1)
    assert [ids_BT.shape for ids_BT, _ in step.micro_batches] == [(16, 64)]
    assert (validation.num_rows, len(validation)) == (100, 4)


def test_the_held_out_rows_of_splitting_are_those_of_best_fit(tmp_path: Path) -> None:
    """So that bits per byte compare: splitting gives more text to train on, never another measure."""
    settings: Any = {"context": 64, "micro_batch": 4, "num_tokens": 1280}
    batches = [
        list(ValidationRows(Sample().open_corpus(tmp_path), TOKENIZER, packing=packing, **settings))
        for packing in ("bestfit_split", "bestfit")
    ]
    for one, other in zip(*batches, strict=True):
        assert all(map(torch.equal, one, other))
