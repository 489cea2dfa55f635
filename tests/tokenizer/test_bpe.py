"""The tokenizer's artefact, its ids and its errors."""

import base64
import json
import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tiktoken
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizer_texts import TEXTS

from nanolit.tokenizer import bpe
from nanolit.tokenizer.bpe import SPECIAL_TOKENS, Tokenizer

FORMAT_1 = Path(__file__).parent.parent / "fixtures" / "tokenizer_format_1"


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.train(TEXTS, vocab_size=512)


@pytest.fixture(scope="module")
def reference(tokenizer: Tokenizer) -> tiktoken.Encoding:
    return tiktoken.Encoding(
        "reference",
        pat_str=tokenizer.pattern,
        mergeable_ranks={token: rank for rank, token in enumerate(tokenizer.tokens)},
        special_tokens={name: 503 + index for index, name in enumerate(SPECIAL_TOKENS)},
    )


def test_ids_are_bytes_then_merges_then_special_tokens(tokenizer: Tokenizer) -> None:
    assert tokenizer.vocab_size == 512
    assert tokenizer.tokens[:256] == [bytes([byte]) for byte in range(256)]
    assert [tokenizer.special_id(name) for name in SPECIAL_TOKENS] == list(range(503, 512))
    assert tokenizer.bos_id == 503


@settings(max_examples=200, deadline=None)
@given(text=st.text() | st.sampled_from(TEXTS))
def test_ids_equal_tiktokens_and_decode_to_the_text(text: str, tokenizer: Tokenizer, reference) -> None:
    ids = tokenizer.encode(text)
    assert ids == reference.encode_ordinary(text)
    assert tokenizer.decode(ids) == text
    assert tokenizer.decode_bytes(ids) == text.encode()


def test_a_special_tokens_name_in_a_text_is_plain_text(tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode("<|bos|>hello<|user_start|>")
    assert max(ids) < 503
    assert tokenizer.decode([tokenizer.bos_id, *ids]) == "<|bos|><|bos|>hello<|user_start|>"


def test_half_a_surrogate_pair_becomes_the_replacement_character(tokenizer: Tokenizer) -> None:
    assert tokenizer.decode(tokenizer.encode("a\ud800b")) == "a\ufffdb"


@pytest.mark.parametrize("threads", [1, 3])
def test_a_batch_equals_its_texts_one_by_one(tokenizer: Tokenizer, threads: int) -> None:
    batch = tokenizer.encode_batch(TEXTS, threads=threads)
    assert [ids.tolist() for ids in batch] == [tokenizer.encode(text) for text in TEXTS]
    assert {(ids.dtype, ids.ndim) for ids in batch} == {(np.dtype(np.uint16), 1)}
    with_bos = tokenizer.encode_batch(TEXTS, threads=threads, bos=True)
    assert [ids.tolist() for ids in with_bos] == [[503, *tokenizer.encode(text)] for text in TEXTS]


def test_ids_of_a_vocabulary_over_65536_are_uint32() -> None:
    bytes_and_pairs = [bytes([byte]) for byte in range(256)]
    bytes_and_pairs += [bytes([left, right]) for left in range(256) for right in range(256)]
    tokenizer = Tokenizer(bytes_and_pairs, special_tokens=("<|bos|>",))
    (ids,) = tokenizer.encode_batch(["ab"], bos=True)
    assert ids.dtype == np.uint32
    assert ids.tolist() == [65_792, 256 + 256 * ord("a") + ord("b")]


def test_token_bytes_count_raw_bytes_and_no_special_token(tokenizer: Tokenizer) -> None:
    lengths = tokenizer.token_bytes()
    assert lengths.dtype == np.int32
    assert lengths.tolist() == [len(token) for token in tokenizer.tokens] + [0] * 9
    text = TEXTS[8]  # emoji, whose tokens end inside characters
    assert lengths[tokenizer.encode(text)].sum() == len(text.encode())


def test_saved_and_loaded_is_the_same(tokenizer: Tokenizer, tmp_path: Path) -> None:
    tokenizer.save(tmp_path)
    loaded = Tokenizer.load(tmp_path)
    assert loaded.hash == tokenizer.hash
    assert (loaded.tokens, loaded.pattern) == (tokenizer.tokens, tokenizer.pattern)
    assert loaded.special_tokens == tokenizer.special_tokens
    assert [path.name for path in tmp_path.iterdir()] == ["tokenizer.json"]


def test_the_file_of_format_1_stays_readable() -> None:
    tokenizer = Tokenizer.load(FORMAT_1)
    assert tokenizer.hash == "a78ef54b02634aa2c926ff03613990903bcb37d3e43b362669934272549ce0d2"
    assert tokenizer.encode("the theory") == [257, 101, 260, 276, 121]


def test_it_travels_to_other_processes(tokenizer: Tokenizer) -> None:
    tokenizer.encode("use it first")
    copy = pickle.loads(pickle.dumps(tokenizer))
    assert copy.hash == tokenizer.hash
    assert copy.encode(TEXTS[5]) == tokenizer.encode(TEXTS[5])


def test_the_hash_changes_with_every_part(tokenizer: Tokenizer) -> None:
    tokens, pattern = tokenizer.tokens, tokenizer.pattern
    others = [
        Tokenizer(tokens[:-1], pattern=pattern),
        Tokenizer(tokens, pattern=pattern + "|x"),
        Tokenizer(tokens, pattern=pattern, special_tokens=SPECIAL_TOKENS[:-1]),
    ]
    assert len({tokenizer.hash, *(other.hash for other in others)}) == 4


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format": 2}, "has format 2, this version reads format 1"),
        ({"pattern": "x"}, "is damaged: its content has hash"),
        ({"tokens": ["not base64!"]}, "is damaged"),
        ({"tokens": None}, "is damaged"),
        ({"special_tokens": 3}, "is damaged"),
        ({"tokens": [base64.b64encode(b"a").decode()] * 300}, "first 256 tokens must be the bytes"),
    ],
)
def test_a_damaged_file_is_refused(tokenizer: Tokenizer, tmp_path: Path, change: dict, message: str) -> None:
    tokenizer.save(tmp_path)
    path = tmp_path / "tokenizer.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(ValueError, match=message):
        Tokenizer.load(tmp_path)


def test_a_missing_or_cut_file_is_refused(tokenizer: Tokenizer, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"no tokenizer in .*phase=tokenizer"):
        Tokenizer.load(tmp_path)
    tokenizer.save(tmp_path)
    path = tmp_path / "tokenizer.json"
    path.write_text(path.read_text()[:1000])
    with pytest.raises(ValueError, match="is not valid JSON"):
        Tokenizer.load(tmp_path)


def test_impossible_vocabularies_are_refused() -> None:
    with pytest.raises(ValueError, match=r"vocab_size \(200\) must be at least 265"):
        Tokenizer.train(["abc"], vocab_size=200)
    with pytest.raises(ValueError, match=r"it has 2 merges, enough for 267"):
        Tokenizer.train(["abc"], vocab_size=300)
    with pytest.raises(ValueError, match="it has 0 merges"):
        Tokenizer.train([], vocab_size=300)


def test_unknown_names_and_ids_are_refused(tokenizer: Tokenizer) -> None:
    with pytest.raises(
        ValueError, match=r"'<\|eos\|>' is no special token of this tokenizer; it has <\|bos\|>"
    ):
        tokenizer.special_id("<|eos|>")
    with pytest.raises(ValueError, match="id 512 is outside the vocabulary; allowed are 0 to 511"):
        tokenizer.decode([3, 512])


def test_a_token_that_stands_twice_is_refused(tokenizer: Tokenizer) -> None:
    with pytest.raises(ValueError, match=r"token b'a' stands twice"):
        Tokenizer([*tokenizer.tokens, b"a"])
    with pytest.raises(ValueError, match="special tokens must be different"):
        Tokenizer(tokenizer.tokens, special_tokens=("<|bos|>", "<|bos|>"))


def test_without_rust_the_twin_serves_with_a_warning(tokenizer: Tokenizer, monkeypatch) -> None:
    monkeypatch.setattr(bpe, "_rustbpe", None)
    with pytest.warns(RuntimeWarning, match=r"training the tokenizer in Python, slowly; install Rust 1\.85"):
        slow = Tokenizer.train(TEXTS, vocab_size=512)
    assert slow.hash == tokenizer.hash


@pytest.mark.filterwarnings("ignore:nanolit was installed without")
def test_without_rust_a_large_corpus_is_refused_with_a_remedy(monkeypatch) -> None:
    monkeypatch.setattr(bpe, "_rustbpe", None)
    monkeypatch.setattr(bpe, "TWIN_MAX_CHARACTERS", 100)
    with pytest.raises(ValueError, match=r"more than the 100 characters .* install Rust 1\.85 or newer"):
        Tokenizer.train(["a" * 60, "b" * 60], vocab_size=300)


def test_importing_the_room_imports_no_torch() -> None:
    code = "import sys, nanolit.tokenizer.bpe, nanolit.tokenizer.nanochat; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
