"""The trainer in Rust, its readable Python twin and the package rustbpe 0.1.0 learn the same tokens."""

import itertools
import os
from collections.abc import Iterator
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from tokenizer_texts import TEXTS, documents

from nanolit.tokenizer import bpe, training, twin
from nanolit.tokenizer.nanochat import read_tokenizer

try:
    from nanolit import _rustbpe
except ImportError:
    _rustbpe = None
try:
    from rustbpe import Tokenizer as Peer
except ImportError:  # not installed; in a checkout the name then finds the crate's folder
    Peer = None

needs_rust = pytest.mark.skipif(_rustbpe is None, reason="NanoLit was installed without its Rust extension")
needs_peer = pytest.mark.skipif(Peer is None, reason="the package rustbpe is not installed")
SHARED = os.environ.get("NANOLIT_SHARED")
needs_shared = pytest.mark.skipif(not SHARED, reason="NANOLIT_SHARED is not set")

GPT2_PATTERN = r"'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"


def of_rust(texts: list[str], num_tokens: int, pattern: str = bpe.PATTERN) -> list[bytes]:
    return training.learn(texts, pattern=pattern, num_tokens=num_tokens)


def of_twin(texts: list[str], num_tokens: int, pattern: str = bpe.PATTERN) -> list[bytes]:
    return twin.train(texts, pattern=pattern, num_tokens=num_tokens)


def of_peer(texts: list[str], num_tokens: int, pattern: str = bpe.PATTERN) -> list[bytes]:
    assert Peer is not None
    peer = Peer()
    peer.train_from_iterator(iter(texts), vocab_size=num_tokens, pattern=pattern)
    return [bytes(token) for token, _ in peer.get_mergeable_ranks()]


def real_texts(num_shards: int, doc_cap: int | None = None) -> Iterator[str]:
    """The documents of the first training shards of the shared corpus, each cut to `doc_cap` characters."""
    for shard in sorted((Path(SHARED or "") / "data" / "pretrain").glob("*.parquet"))[:-1][:num_shards]:
        for batch in pq.ParquetFile(shard).iter_batches(columns=["text"]):
            for text in batch.column(0).to_pylist():
                yield text[:doc_cap]


@needs_rust
@pytest.mark.parametrize("pattern", [bpe.PATTERN, GPT2_PATTERN, r"\w+|\W"])
def test_rust_equals_twin_on_texts_of_many_languages(pattern: str) -> None:
    assert of_rust(TEXTS, 700, pattern) == of_twin(TEXTS, 700, pattern)


@needs_peer
@pytest.mark.parametrize("pattern", [bpe.PATTERN, GPT2_PATTERN])
def test_twin_equals_peer_on_texts_of_many_languages(pattern: str) -> None:
    assert of_twin(TEXTS, 700, pattern) == of_peer(TEXTS, 700, pattern)


@needs_rust
@settings(max_examples=200)
@given(documents)
def test_rust_equals_twin_on_drawn_documents(texts: list[str]) -> None:
    texts = [*texts, "a"]  # no text at all is refused
    assert of_rust(texts, 400) == of_twin(texts, 400)


@needs_rust
@needs_peer
@settings(max_examples=200)
@given(documents)
def test_rust_equals_peer_on_drawn_documents(texts: list[str]) -> None:
    texts = [*texts, "a"]
    assert of_rust(texts, 400) == of_peer(texts, 400)


def test_twin_equals_counting_all_pairs_anew() -> None:
    """Oracle: the definition, which counts all pairs again before every merge."""
    words = twin.count_words(TEXTS, bpe.PATTERN)
    spellings = [(list(word.encode()), count) for word, count in words.items()]
    for step, merge in enumerate(twin.learn_merges(words, 40)):
        counts: dict[twin.Pair, int] = {}
        for spelling, count in spellings:
            for pair in itertools.pairwise(spelling):
                counts[pair] = counts.get(pair, 0) + count
        assert merge == min(counts, key=lambda pair: (-counts[pair], pair))
        for spelling, _ in spellings:
            position = 0
            while position + 1 < len(spelling):
                if (spelling[position], spelling[position + 1]) == merge:
                    spelling[position : position + 2] = [256 + step]
                position += 1


@needs_rust
@needs_shared
def test_rust_equals_peer_and_twin_on_real_text() -> None:
    texts = list(itertools.islice(real_texts(1), 1000))
    tokens = of_rust(texts, 4096)
    assert tokens == of_twin(texts, 4096)
    if Peer is not None:
        assert tokens == of_peer(texts, 4096)


@needs_rust
@needs_shared
def test_nanochats_tokenizer_of_32768_tokens_is_reproduced() -> None:
    expected = read_tokenizer(Path(SHARED or "") / "fixtures" / "tokenizer_32k")
    texts = real_texts(23, doc_cap=10_000)
    assert bpe.Tokenizer.train(texts, vocab_size=32_768).hash == expected.hash


@pytest.mark.parametrize("train", [pytest.param(of_rust, marks=needs_rust), of_twin])
def test_training_refuses_what_is_no_string_by_its_number(train) -> None:
    with pytest.raises(ValueError, match="text 1 is of type int; the tokenizer trains on strings"):
        train(["a", 3], 300)
    with pytest.raises(ValueError, match="text 1 holds half a surrogate pair"):
        train(["é", "a\ud800"], 300)


@pytest.mark.parametrize("train", [pytest.param(of_rust, marks=needs_rust), of_twin])
def test_training_refuses_an_invalid_pattern_by_its_text(train) -> None:
    with pytest.raises(ValueError, match=r"the pattern '?\"?\(a'?\"? is not a valid regular expression"):
        train(["a"], 300, "(a")


@pytest.mark.parametrize("train", [pytest.param(of_rust, marks=needs_rust), of_twin])
def test_training_passes_on_what_the_texts_raise(train) -> None:
    def texts():
        yield "a"
        raise OSError("disk gone")

    with pytest.raises(OSError, match="disk gone"):
        train(texts(), 300)
