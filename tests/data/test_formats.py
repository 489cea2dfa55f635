"""Every format gives the same documents; what cannot be read is one line with the file and the place."""

import bz2
import codecs
import csv
import gzip
import io
import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard
from corpora import write_texts
from datasets import IterableDataset
from datasets.exceptions import DatasetGenerationError

from nanolit.data import formats
from nanolit.data.formats import documents, hub_documents
from nanolit.data.sources import KINDS

TEXTS = ["first", 'α 🙂\nline two, with a "quote"', "tab\tand more " * 50]
PACK: dict[str, Callable[[bytes], bytes]] = {
    "": bytes,
    ".gz": gzip.compress,
    ".zst": zstandard.compress,
    ".bz2": bz2.compress,
}


def read(path: Path, text_column: str = "text") -> list[str]:
    return ["".join(block or "" for block in document) for document in documents(path, text_column)]


def jsonl(texts: list[str]) -> str:
    return "".join(json.dumps({"id": n, "text": text}) + "\n" for n, text in enumerate(texts))


def table(texts: list[str], delimiter: str) -> str:
    text = io.StringIO()
    writer = csv.writer(text, delimiter=delimiter)
    writer.writerows([["id", "text"], *enumerate(texts)])
    return text.getvalue()


@pytest.mark.parametrize("ending", PACK)
@pytest.mark.parametrize(
    ("name", "write"),
    [
        ("a.jsonl", jsonl),
        ("A.JSONL", jsonl),
        ("a.ndjson", jsonl),
        ("a.json", jsonl),
        ("array.json", lambda texts: json.dumps([{"text": text} for text in texts])),
        ("pretty.json", lambda texts: json.dumps([{"text": text} for text in texts], indent=2)),
        ("a.csv", lambda texts: table(texts, ",")),
        ("a.tsv", lambda texts: table(texts, "\t")),
    ],
)
def test_records_of_every_format_are_the_same_documents(tmp_path, name, write, ending) -> None:
    path = tmp_path / (name + ending)
    path.write_bytes(PACK[ending](write(TEXTS).encode()))
    assert read(path) == TEXTS


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("text\nHello, world\n", "line 2 is not CSV (it has 2 fields, but there are 1 columns)"),
        ('text\n"Hello\nworld\n', "is not CSV (unexpected end of data)"),
    ],
)
def test_a_csv_that_loses_text_is_refused(tmp_path: Path, text: str, complaint: str) -> None:
    (tmp_path / "a.csv").write_text(text)
    with pytest.raises(ValueError, match=re.escape(complaint)):
        read(tmp_path / "a.csv")


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        (b'[{"text": "a"}, {"text": "\xed"}]', "given.json is not UTF-8 (byte 0xed)"),
        (b'[{"text": "a"}][{"text": "b"}]', "there is more after the end of the array"),
        (b'[{"text": 1' + b"1" * 5000 + b"}]", "item 1 of the array is not JSON"),
    ],
)
def test_a_damaged_array_is_one_line_with_the_file(tmp_path: Path, content: bytes, complaint: str) -> None:
    (tmp_path / "given.json").write_bytes(content)
    with pytest.raises(ValueError, match=re.escape(complaint)) as caught:
        read(tmp_path / "given.json")
    assert "given.json" in str(caught.value)


@pytest.mark.parametrize("ending", PACK)
def test_a_text_file_is_one_document(tmp_path: Path, ending: str) -> None:
    path = tmp_path / f"Book.TXT{ending}"
    path.write_bytes(PACK[ending](codecs.BOM_UTF8 + "α\r\nβ".encode() * 400_000))
    (document,) = documents(path, "text")
    blocks = list(document)
    assert len(blocks) > 1
    assert "".join(map(str, blocks)) == "α\nβ" * 400_000


@pytest.mark.parametrize(
    "type_", [pa.string(), pa.large_string(), pa.string_view(), pa.dictionary(pa.int32(), pa.string())]
)
def test_parquet_of_every_type_of_string_is_read(tmp_path: Path, type_: pa.DataType) -> None:
    """pandas writes string or large_string, polars string_view, the hub dictionaries too."""
    array = pa.array(TEXTS).cast(type_) if pa.types.is_dictionary(type_) else pa.array(TEXTS, type_)
    pq.write_table(pa.table({"text": array}), tmp_path / "a.parquet")
    assert read(tmp_path / "a.parquet") == TEXTS


def test_a_document_longer_than_a_block_comes_whole_from_an_array(tmp_path: Path) -> None:
    texts = ["x" * 3_000_000, "short", "y" * 1_500_000]
    (tmp_path / "a.json").write_text(json.dumps([{"text": text} for text in texts]))
    assert read(tmp_path / "a.json") == texts


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jsonl", b'{"body": "x"}', r"line 2 has no 'text'; it has body: choose with data\.text_column"),
        ("a.jsonl", b'{"messages": []}', r"line 2 has no 'text'; it has messages; for chats give mixture="),
        ("a.jsonl", b'{"text": 7}', r"line 2 has int as 'text', not a string"),
        ("a.jsonl", b'{"text": "caf\xe9"}', r"line 2 is not UTF-8 \(byte 0xe9\)"),
        ("a.jsonl", b'{"text": "x"', r"line 2 is not JSON"),
        ("a.jsonl", b"[" * 100_000, r"line 2 is not JSON"),
        ("a.jsonl", b'["x"]', r"line 2 holds list, not an object; write \{\"text\": …\}"),
        ("a.jsonl", b'{"text": "\\ud800"}', r"line 2: 'text' holds half a surrogate pair"),
        ("a.json", b'[{"text": "a"}, {"text": ]', r"item 2 of the array is not JSON"),
        ("a.csv", b"id,body\n1,x\n", r"a\.csv has no 'text'; it has id, body: choose with data\.text_column"),
        (
            "a.csv",
            b"id;text\n1;x\n",
            r"a\.csv has no 'text'; it has id;text: separate columns by commas, not ';'",
        ),
        ("a.csv", b"text\ncaf\xe9\n", r"is not UTF-8"),
        ("a.txt", "Hello".encode("utf-16"), r"a\.txt is not UTF-8 .*iconv -f utf-16 -t utf-8"),
        ("a.txt", b"caf\xe9", r"a\.txt is not UTF-8 .*iconv -f latin1"),
        ("a.txt", b"a" * 3_000_000 + b"\xe9.", r"a\.txt is not UTF-8 \(byte 0xe9\)"),
        ("a.txt.gz", gzip.compress(b"text" * 10_000, mtime=0)[:-20], r"a\.txt\.gz: cannot be read"),
        (
            "a.jsonl.zst",
            zstandard.compress(jsonl(TEXTS * 99).encode())[:-20],
            r"cannot be read after line \d",
        ),
        ("a.jsonl.gz", b"no gzip", r"a\.jsonl\.gz: cannot be read"),
        ("a.parquet", b"no parquet", r"a\.parquet is not a complete parquet file"),
    ],
)
def test_what_cannot_be_read_is_one_line_with_its_place(tmp_path, name, content, message) -> None:
    first = jsonl(["a text"]).encode() if name == "a.jsonl" else b""
    (tmp_path / name).write_bytes(first + content)
    with pytest.raises(ValueError, match=message) as caught:
        read(tmp_path / name)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "content"),
    [("a.jsonl", '{"text": "%s"}'), ("a.json", '[{"text": "%s"}]'), ("a.csv", "text\n%s\n")],
)
def test_a_record_beyond_the_stated_length_is_refused(tmp_path, monkeypatch, name, content) -> None:
    monkeypatch.setattr(formats, "LONGEST", 2 << 20)
    (tmp_path / name).write_text(content % ("x" * (1 << 20)))
    assert len(read(tmp_path / name)[0]) == 1 << 20
    (tmp_path / name).write_text(content % ("x" * (5 << 20)))
    with pytest.raises(ValueError, match=r"longer than 2 MB; write its text as a \.txt|field larger than"):
        read(tmp_path / name)


def test_parquet_that_is_not_utf8_is_told_with_its_row(tmp_path: Path) -> None:
    bad = pa.array([b"good", b"caf\xe9"], pa.binary()).view(pa.string())
    pq.write_table(pa.table({"text": bad}), tmp_path / "a.parquet")
    with pytest.raises(ValueError, match="the text of row 1 is not UTF-8"):
        read(tmp_path / "a.parquet")


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (ConnectionError("Connection reset by peer"), "Connection reset by peer"),
        (httpx.ReadTimeout(""), "ReadTimeout"),
        (DatasetGenerationError("An error\noccurred"), "An error"),
    ],
)
def test_a_fault_of_the_hub_while_streaming_is_one_line_with_the_row(monkeypatch, error, said) -> None:
    def rows() -> Iterator[dict[str, str]]:
        yield {"text": "x"}
        raise error

    split = IterableDataset.from_generator(rows)
    monkeypatch.setattr("datasets.load_dataset", lambda *_, **__: {"train": split})
    message = rf"^hf:a/b train row 1 cannot be read from the hub \({said}\); repeat the command, or [^\n]*$"
    with pytest.raises(ValueError, match=message):
        list(hub_documents("hf:a/b", "text")["train"])


@pytest.mark.parametrize("ending", PACK)
@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != ".parquet"])
def test_an_empty_file_has_no_text(tmp_path: Path, kind: str, ending: str) -> None:
    (path := tmp_path / f"a{kind}{ending}").write_bytes(PACK[ending](b""))
    assert "".join(read(path)) == ""


def test_a_row_without_text_is_an_empty_document(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"text": null}\n\n{"text": "x"}\n')
    write_texts(tmp_path / "a.parquet", ["x", None])
    assert read(tmp_path / "a.jsonl") == ["", "x"]
    assert read(tmp_path / "a.parquet") == ["x", ""]
