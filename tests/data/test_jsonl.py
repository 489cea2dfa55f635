"""Texts of jsonl files make the same corpus as parquet; what is wrong is told with the file and the line."""

import codecs
import json
import os
from itertools import islice
from pathlib import Path

import pytest
import zstandard
from corpora import TOKENIZER, row_hashes, texts, write_texts

from nanolit.data.shards import LocalFolder, read_texts
from nanolit.data.stream import PretrainStream


def jsonl(rows: list[str], *, column: str = "text") -> bytes:
    return "".join(f"{json.dumps({'id': n, column: text})}\n" for n, text in enumerate(rows)).encode()


def write(path: Path, content: bytes) -> Path:
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(zstandard.compress(content) if path.suffix == ".zst" else content)
    return path


def corpus_of(folder: Path, *, text_column: str = "text"):
    dataset = LocalFolder(path=str(folder / "texts"), text_column=text_column, validation=None)
    return dataset.open_corpus(folder / "root")


def every_text(shards) -> list[str]:
    return [
        text
        for shard in shards
        for n in range(len(shard.group_sizes))
        for text in read_texts(shard, n).to_pylist()
    ]


@pytest.mark.parametrize("suffix", ["jsonl", "jsonl.zst"])
def test_the_texts_and_the_steps_are_those_of_parquet(tmp_path: Path, suffix: str) -> None:
    """Oracle: the same texts in parquet files of the same names and row groups."""
    rows = ["", "α 🙂\nline two", *texts(2100)]
    write(tmp_path / f"texts/a.{suffix}", jsonl(rows) + b"\n \n")
    write(tmp_path / f"texts/val.{suffix}", jsonl(rows[:30]))
    corpus = corpus_of(tmp_path)
    assert every_text(corpus.train_shards) == rows
    assert every_text(corpus.validation_shards) == rows[:30]
    (tmp_path / "same").mkdir()
    for name, part in ((f"a.{suffix}.parquet", rows), (f"val.{suffix}.parquet", rows[:30])):
        write_texts(tmp_path / "same" / name, part, group=1024)
    same = LocalFolder(path=str(tmp_path / "same"), text_column="text", validation=None).open_corpus(tmp_path)
    assert same.fingerprint == corpus.fingerprint
    settings = {"context": 24, "rows": 6, "micro_batch": 2, "seed": 1, "packing": "bestfit"}
    steps = [islice(PretrainStream(one, TOKENIZER, **settings), 5) for one in (corpus, same)]
    assert [row_hashes(step) for step in steps[0]] == [row_hashes(step) for step in steps[1]]


def test_kinds_may_be_mixed_another_column_named_and_a_file_begin_with_a_byte_order_mark(
    tmp_path: Path,
) -> None:
    write(tmp_path / "texts/a.jsonl", codecs.BOM_UTF8 + jsonl(["one"], column="body"))
    write(tmp_path / "texts/b.jsonl.zst", jsonl(["two"], column="body"))
    write_texts(tmp_path / "texts/c.parquet", ["three"], column="body")
    write_texts(tmp_path / "texts/val.parquet", ["four"], column="body")
    assert every_text(corpus_of(tmp_path, text_column="body").train_shards) == ["one", "two", "three"]


def test_a_file_is_read_again_only_when_it_changed(tmp_path: Path, capsys) -> None:
    source = write(tmp_path / "texts/a.jsonl", jsonl(["one"]))
    write(tmp_path / "texts/val.jsonl", jsonl(["two"]))
    corpus_of(tmp_path)
    assert capsys.readouterr().out.count("reading") == 2
    corpus_of(tmp_path)
    assert capsys.readouterr().out == ""
    write(source, jsonl(["new"]))
    os.utime(source, ns=(1, 1))
    assert every_text(corpus_of(tmp_path).train_shards) == ["new"]
    assert capsys.readouterr().out.count("reading") == 1


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b'{"body": "x"}', "has no 'text'; it has body: choose with data.text_column"),
        (b'{"text": null}', "has null as 'text'"),
        (b'{"text": 7}', "has int as 'text', not a string"),
        (b'{"text": "caf\xe9"}', r"is not UTF-8 \(byte 14\)"),
        (b'{"text": "x"', "is not JSON"),
        (b"[" * 100_000, "is not JSON"),
        (b'["x"]', "holds list, not an object"),
        (b'{"text": "\\ud800"}', "'text' holds half a surrogate pair"),
    ],
)
@pytest.mark.parametrize("suffix", ["jsonl", "jsonl.zst"])
def test_a_bad_line_is_told_with_its_number_and_leaves_no_copy(
    tmp_path: Path, line: bytes, message: str, suffix: str
) -> None:
    write(tmp_path / "texts/val.jsonl", jsonl(["two"]))
    write(tmp_path / f"texts/bad.{suffix}", jsonl(texts(1500)) + line + b"\n" + jsonl(["x"]))
    with pytest.raises(ValueError, match=rf"bad\.{suffix}: line 1501:? {message}") as caught:
        corpus_of(tmp_path)
    assert "\n" not in str(caught.value)
    files = (path for path in (tmp_path / "root").rglob("*") if path.is_file())
    assert not [path for path in files if "bad" in path.name]


def test_a_truncated_zst_file_is_told(tmp_path: Path) -> None:
    write(tmp_path / "texts/val.jsonl", jsonl(["two"]))
    path = write(tmp_path / "texts/bad.jsonl.zst", jsonl(texts(3000)))
    path.write_bytes(path.read_bytes()[:-50])
    with pytest.raises(
        ValueError, match=r"bad\.jsonl\.zst: cannot be read after line \d+ \(.*\); copy it again"
    ):
        corpus_of(tmp_path)
