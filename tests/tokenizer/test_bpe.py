"""The tokenizer's artefact, its ids and its errors."""

import base64
import itertools
import json
import os
import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import tiktoken
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizer_texts import TEXTS

from nanolit.tokenizer import bpe, training
from nanolit.tokenizer.bpe import SPECIAL_TOKENS, Tokenizer, as_tiktoken
from nanolit.tokenizer.nanochat import read_tokenizer

SHARED = os.environ.get("NANOLIT_SHARED")
FORMAT_1 = Path(__file__).parent.parent / "fixtures" / "tokenizer_format_1"

GPT2 = r"'(?:[sdmt]|ll|ve|re)| ?\p{L}++| ?\p{N}++| ?[^\s\p{L}\p{N}]++|\s++$|\s+(?!\S)|\s"
GPT4 = (
    r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}++|\p{N}{1,3}+| ?[^\s\p{L}\p{N}]++[\r\n]*+"
    r"|\s++$|\s*[\r\n]|\s+(?!\S)|\s"
)


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


@settings(max_examples=200)
@given(text=st.text() | st.sampled_from(TEXTS))
def test_ids_equal_tiktokens_and_decode_to_the_text(text: str, tokenizer: Tokenizer, reference) -> None:
    ids = tokenizer.encode(text)
    assert ids == reference.encode_ordinary(text)
    assert tokenizer.decode(ids) == text
    assert tokenizer.decode_bytes(ids) == text.encode()


def test_ids_equal_tiktokens_beside_every_character(tokenizer: Tokenizer, reference) -> None:
    """Both know the same letters, numbers and spaces."""
    for block in range(0, 0x110000, 0x1000):
        characters = [chr(code) for code in range(block, block + 0x1000) if not 0xD800 <= code <= 0xDFFF]
        text = "".join(f"a{character}1" for character in characters)
        assert tokenizer.encode(text) == reference.encode_ordinary(text), hex(block)


@settings(max_examples=200)
@given(content=st.binary(max_size=300))
def test_ids_of_random_bytes_read_leniently_equal_tiktokens(content, tokenizer: Tokenizer, reference) -> None:
    for text in (content.decode(errors="replace"), content.decode("latin-1"), content.decode("cp437")):
        assert tokenizer.encode(text) == reference.encode_ordinary(text)


@pytest.mark.parametrize("pattern", [GPT2, GPT4, r"\w+|[^\w\s]|\s+"])
def test_ids_equal_tiktokens_with_other_patterns(tokenizer: Tokenizer, pattern: str) -> None:
    other = Tokenizer(tokenizer.tokens, pattern=pattern)
    reference = as_tiktoken(other)
    for text in [*TEXTS, "".join(TEXTS), "a \n \n  ", "x\u2003\u2003y 123456 don't DON'T"]:
        assert other.encode(text) == reference.encode_ordinary(text)


def test_a_word_of_any_length_equals_tiktokens(tokenizer: Tokenizer, reference) -> None:
    for text in ("the" * 5_000, "ab" * 333 + "é", *("quick brown" * n for n in range(20))):
        word = text.replace(" ", "")
        assert tokenizer.encode(word) == reference.encode_ordinary(word)


@pytest.mark.skipif(not SHARED, reason="NANOLIT_SHARED is not set")
def test_ids_of_real_text_equal_tiktokens() -> None:
    """Two training files and the held-out one, 37 MB."""
    fixtures = Path(SHARED or "") / "fixtures"
    tokenizer = read_tokenizer(fixtures / "tokenizer_32k")
    reference = as_tiktoken(tokenizer)
    shards = sorted((Path(SHARED or "") / "data" / "pretrain").glob("*.parquet"))
    for shard in [*shards[:2], shards[-1]]:
        texts = pq.read_table(shard, columns=["text"]).column(0).to_pylist()
        ids, offsets = tokenizer.encode_flat(texts, threads=2)
        for text, start, end in zip(texts, offsets[:-1], offsets[1:], strict=True):
            assert ids[start:end].tolist() == reference.encode_ordinary(text)


def test_a_special_tokens_name_in_a_text_is_plain_text(tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode("<|bos|>hello<|user_start|>")
    assert max(ids) < 503
    assert tokenizer.decode([tokenizer.bos_id, *ids]) == "<|bos|><|bos|>hello<|user_start|>"


def test_half_a_surrogate_pair_becomes_the_replacement_character(tokenizer: Tokenizer) -> None:
    assert tokenizer.decode(tokenizer.encode("a\ud800b")) == "a\ufffdb"
    (ids,) = tokenizer.encode_batch(["a\ud800b"])
    assert ids.tolist() == tokenizer.encode("a\ufffdb")


@pytest.mark.parametrize("threads", [1, 3])
def test_a_batch_equals_its_texts_one_by_one(tokenizer: Tokenizer, threads: int) -> None:
    batch = tokenizer.encode_batch(TEXTS, threads=threads)
    assert [ids.tolist() for ids in batch] == [tokenizer.encode(text) for text in TEXTS]
    assert {(ids.dtype, ids.ndim) for ids in batch} == {(np.dtype(np.uint16), 1)}
    with_bos = tokenizer.encode_batch(TEXTS, threads=threads, bos=True)
    assert [ids.tolist() for ids in with_bos] == [[503, *tokenizer.encode(text)] for text in TEXTS]


@pytest.fixture(params=["rust", "tiktoken"])
def other(request: pytest.FixtureRequest, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch) -> Tokenizer:
    """The tokenizer as it is with and without its Rust extension."""
    if request.param == "tiktoken":
        monkeypatch.setattr(bpe, "_rustbpe", None)
    return Tokenizer(tokenizer.tokens)


@pytest.mark.parametrize("bos", [False, True])
def test_a_flat_batch_is_the_batch_in_one_row(tokenizer: Tokenizer, other: Tokenizer, bos: bool) -> None:
    ids, offsets = other.encode_flat(TEXTS, threads=2, bos=bos)
    assert (ids.dtype, offsets.dtype, len(offsets)) == (np.uint16, np.int64, len(TEXTS) + 1)
    pieces = [ids[start:end].tolist() for start, end in itertools.pairwise(offsets)]
    assert pieces == [array.tolist() for array in tokenizer.encode_batch(TEXTS, bos=bos)]
    assert [len(array) for array in other.encode_flat([])] == [0, 1]


@pytest.mark.parametrize("type_", [pa.string(), pa.large_string()])
def test_an_arrow_array_gives_the_ids_of_its_strings(other: Tokenizer, type_: pa.DataType) -> None:
    """A slice of one too: of its buffers only a part is the array's."""
    for texts in (pa.array(TEXTS, type_), pa.array(TEXTS, type_)[2:5], pa.array([], type_)):
        ids, offsets = other.encode_flat(texts, bos=True)
        expected = other.encode_flat(texts.to_pylist(), bos=True)
        assert (ids.tolist(), offsets.tolist()) == (expected[0].tolist(), expected[1].tolist())


def test_an_array_of_a_batch_keeps_no_other_in_memory(tokenizer: Tokenizer) -> None:
    batch = tokenizer.encode_batch(TEXTS)
    for array in batch:
        assert array.base is None or len(memoryview(array.base).obj) == array.nbytes


def test_what_is_no_string_is_not_encoded(tokenizer: Tokenizer) -> None:
    with pytest.raises(ValueError, match="text 1 is of type int; only strings can be encoded"):
        tokenizer.encode_batch(["a", 3])  # type: ignore[list-item]


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


BYTES = [base64.b64encode(bytes([byte])).decode() for byte in range(256)]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format": 2}, "has format 2, this version reads format 1"),
        ({"pattern": "x"}, "is damaged: its content has hash"),
        ({"tokens": ["not base64!"]}, "is damaged"),
        ({"tokens": None}, "is damaged"),
        ({"special_tokens": 3}, "is damaged"),
        ({"special_tokens": [1, 2]}, r"is damaged \(special_tokens\.0: input should be a valid string"),
        ({"hash": None}, r"is damaged \(hash: "),
        (
            {"tokens": [base64.b64encode(bytes([i])).decode() for i in range(256)] + ["YWFh" * 250_000]},
            "too long",
        ),
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
    with pytest.raises(ValueError, match=r"it has 2 merges; give recipe\.vocab_size=267"):
        Tokenizer.train(["abc"], vocab_size=300)
    with pytest.raises(ValueError, match="it has 0 merges"):
        Tokenizer.train(["a b"], vocab_size=300, pattern=r"\w")


def test_unknown_names_and_ids_are_refused(tokenizer: Tokenizer) -> None:
    with pytest.raises(
        ValueError, match=r"'<\|eos\|>' is not a special token of this tokenizer; it has <\|bos\|>"
    ):
        tokenizer.special_id("<|eos|>")
    with pytest.raises(ValueError, match="id 512 is outside the vocabulary; allowed are 0 to 511"):
        tokenizer.decode([3, 512])


def test_a_token_that_stands_twice_is_refused(tokenizer: Tokenizer) -> None:
    with pytest.raises(ValueError, match=r"token b'a' is in the vocabulary twice"):
        Tokenizer([*tokenizer.tokens, b"a"])
    with pytest.raises(ValueError, match="special tokens must be unique"):
        Tokenizer(tokenizer.tokens, special_tokens=("<|bos|>", "<|bos|>"))


def test_without_rust_the_twin_serves_with_a_warning(tokenizer: Tokenizer, monkeypatch) -> None:
    monkeypatch.setattr(training, "_rustbpe", None)
    with pytest.warns(RuntimeWarning, match=r"training the tokenizer in Python, slowly; install Rust 1\.85"):
        slow = Tokenizer.train(TEXTS, vocab_size=512)
    assert slow.hash == tokenizer.hash


@pytest.mark.filterwarnings("ignore:NanoLit was installed without")
def test_without_rust_a_large_corpus_is_refused_with_a_remedy(monkeypatch) -> None:
    monkeypatch.setattr(training, "_rustbpe", None)
    monkeypatch.setattr(training, "TWIN_MAX_CHARACTERS", 100)
    with pytest.raises(ValueError, match=r"more than 100 characters, .*; install Rust 1\.85 or newer"):
        Tokenizer.train(["a" * 60, "b" * 60], vocab_size=300)


def test_importing_the_package_imports_no_torch() -> None:
    code = "import sys, nanolit.tokenizer.bpe, nanolit.tokenizer.nanochat; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
