"""What base pretraining builds from a corpus."""

import subprocess
import sys
from itertools import islice
from pathlib import Path

from corpora import TOKENIZER, make_corpus, texts

from nanolit.data.pretrain import make_pretraining, training_texts
from nanolit.data.shards import Sample


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
from nanolit.data.texts import training_arrays
arrays = list(training_arrays(Sample().prepare(Path()), max_characters=10_000))
sys.exit("pandas" in sys.modules or not arrays)
"""
    subprocess.run([sys.executable, "-c", code], check=True)


def test_the_sample_fills_steps_and_validation(tmp_path: Path) -> None:
    stream, validation = make_pretraining(
        Sample().prepare(tmp_path),
        TOKENIZER,
        context=64,
        rows=32,
        micro_batch=16,
        seed=1,
        packing="bestfit",
        validation_tokens=6400,
        rank=1,
        world=2,
    )
    assert stream.lanes == 16
    (step,) = islice(stream, 1)
    assert [ids_BT.shape for ids_BT, _ in step.micro_batches] == [(16, 64)]
    assert (validation.num_rows, len(validation)) == (100, 4)
