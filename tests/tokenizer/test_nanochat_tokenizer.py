"""Reading nanochat's pickled tokenizer: the same tokenizer, and nothing but a tokenizer."""

import os
import pickle
from pathlib import Path

import pytest
import tiktoken

from nanolit.tokenizer.bpe import SPECIAL_TOKENS
from nanolit.tokenizer.nanochat import read_tokenizer

SHARED = os.environ.get("NANOLIT_SHARED")
BYTES = {bytes([byte]): byte for byte in range(256)}


def write(folder: Path, content: object, protocol: int = 4) -> Path:
    (folder / "tokenizer.pkl").write_bytes(pickle.dumps(content, protocol=protocol))
    return folder


def encoding(ranks: dict[bytes, int], specials: dict[str, int]) -> tiktoken.Encoding:
    return tiktoken.Encoding("rustbpe", pat_str=r"\w+|\W", mergeable_ranks=ranks, special_tokens=specials)


@pytest.mark.parametrize("protocol", [3, 4, 5])
def test_a_pickled_encoding_gives_the_same_ids(tmp_path: Path, protocol: int) -> None:
    original = encoding(BYTES | {b"ab": 256, b"abc": 257}, {"<|bos|>": 258, "<|end|>": 259})
    tokenizer = read_tokenizer(write(tmp_path, original, protocol))
    assert tokenizer.encode("abcab ab") == original.encode_ordinary("abcab ab")
    assert (tokenizer.bos_id, tokenizer.special_id("<|end|>"), tokenizer.vocab_size) == (258, 259, 260)


@pytest.mark.skipif(not SHARED, reason="NANOLIT_SHARED is not set")
@pytest.mark.parametrize("fixture", ["nanochat_2025/tokenizer", "nanochat_2026/tokenizer", "tokenizer_32k"])
def test_nanochats_own_files_are_read(fixture: str) -> None:
    """Oracle: the encoding as Python's own unpickler gives it."""
    folder = Path(SHARED or "") / "fixtures" / fixture
    original = pickle.loads((folder / "tokenizer.pkl").read_bytes())
    tokenizer = read_tokenizer(folder)
    assert tokenizer.special_tokens == SPECIAL_TOKENS
    assert tokenizer.vocab_size == original.n_vocab
    text = "It's 1999: naïve façade, 我能吞下玻璃 🙂\n\n    done."
    assert tokenizer.encode(text) == original.encode_ordinary(text)
    assert tokenizer.bos_id == original.encode_single_token("<|bos|>")


class Harmful:
    def __reduce__(self):
        return (os.mkdir, ("made_by_the_pickle",))


def test_a_pickle_that_calls_anything_is_refused_and_does_not_run(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(
        ValueError, match=r"it asks for \w+\.mkdir\); only a pickled tiktoken\.core\.Encoding is allowed"
    ):
        read_tokenizer(write(tmp_path, Harmful()))
    assert not Path("made_by_the_pickle").exists()


@pytest.mark.parametrize("content", [{"a": 1}, None, [BYTES]])
def test_a_pickle_of_something_else_is_refused(tmp_path: Path, content: object) -> None:
    with pytest.raises(ValueError, match="is not a nanochat tokenizer"):
        read_tokenizer(write(tmp_path, content))


@pytest.mark.parametrize("content", [b"", b"not a pickle", b"\x80\x04\x95"])
def test_a_file_that_is_no_pickle_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "tokenizer.pkl").write_bytes(content)
    with pytest.raises(ValueError, match="is not a nanochat tokenizer"):
        read_tokenizer(tmp_path)


def test_gaps_in_the_ids_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="has gaps in its ids"):
        read_tokenizer(write(tmp_path, encoding(BYTES | {b"ab": 300}, {})))


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"tokenizer\.pkl is missing"):
        read_tokenizer(tmp_path)
