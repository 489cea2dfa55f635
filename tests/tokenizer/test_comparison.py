"""The table that compares tokenizers."""

import os
import time
from pathlib import Path

import pytest
import tiktoken
from tokenizer_texts import TEXTS

from nanolit.tokenizer import comparison
from nanolit.tokenizer.bpe import Tokenizer
from nanolit.tokenizer.comparison import compare, comparison_table, own_texts, sample_of, write_comparison

BYTES = {bytes([byte]): byte for byte in range(256)}
SHARED = os.environ.get("NANOLIT_SHARED")


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.train([*own_texts().values(), *TEXTS], vocab_size=512)


@pytest.fixture
def references() -> dict[str, tiktoken.Encoding]:
    encoding = tiktoken.Encoding("bytes", pat_str=r"\w+|\W", mergeable_ranks=BYTES, special_tokens={})
    return {"bytes": encoding}


def test_rows_count_bytes_and_tokens(tokenizer: Tokenizer, references) -> None:
    rows = compare(tokenizer, references, texts={"train": "the theory — thé"})
    assert [row.text for row in rows] == [*comparison.TEXTS, "train"]
    row = rows[-1]
    assert row.num_bytes == 19
    assert row.num_tokens == {"ours": len(tokenizer.encode("the theory — thé")), "bytes": 19}
    assert row.bytes_per_token("bytes") == 1
    assert row.gain("bytes") == pytest.approx(row.bytes_per_token("ours") - 1)


def test_the_table_has_a_line_for_each_text(tokenizer: Tokenizer, references) -> None:
    rows = compare(tokenizer, references, texts={})
    lines = comparison_table(rows).splitlines()
    assert lines[0] == "| text | bytes | ours | bytes |"
    assert len(lines) == 2 + len(comparison.TEXTS)
    assert lines[2].startswith(f"| news | {len(own_texts()['news'].encode()):,} |")


def test_the_file_says_what_could_not_be_compared(tokenizer: Tokenizer, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.delenv("TIKTOKEN_CACHE_DIR", raising=False)
    rows = write_comparison(tmp_path, tokenizer, train=["a text"], validation=["another"], offline=True)
    content = (tmp_path / "comparison.md").read_text()
    assert comparison_table(rows) in content
    assert "Not compared, because tiktoken could not download them: gpt2, cl100k_base, o200k_base." in content


def test_a_network_that_never_answers_is_not_waited_for(monkeypatch) -> None:
    monkeypatch.setattr(comparison, "FETCH_SECONDS", 0.1)
    monkeypatch.setattr(tiktoken, "get_encoding", lambda name: time.sleep(5))
    begun = time.monotonic()
    assert comparison.reference_encodings() == {}
    assert time.monotonic() - begun < 3


@pytest.mark.skipif(not SHARED, reason="NANOLIT_SHARED is not set")
def test_openais_encodings_are_compared_where_they_are_kept(tokenizer: Tokenizer, monkeypatch) -> None:
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(Path(SHARED or "") / "data" / "vocab" / "tiktoken_cache"))
    found = comparison.reference_encodings(offline=True)
    assert {name: encoding.n_vocab for name, encoding in found.items()} == {
        "gpt2": 50_257,
        "cl100k_base": 100_277,
        "o200k_base": 200_019,
    }


def test_a_sample_ends_at_its_size() -> None:
    assert sample_of(["abc", "defg", "h"], max_characters=5) == "abc\n\nde"
    assert sample_of(["abc", "d"], max_characters=5) == "abc\n\nd"
