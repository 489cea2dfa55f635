"""Datasets resolve to checked files; what cannot be trained on is one line with the file and the row."""

import os
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from corpora import texts, write_texts

from dev import make_sample
from nanolit.data.parquet import open_shard, read_texts
from nanolit.data.shards import (
    SAMPLE_FOLDER,
    ClimbMix,
    FineWebEdu,
    HubDataset,
    LocalFolder,
    Sample,
    shard_name,
)

SHARED = os.environ.get("NANOLIT_SHARED")


def sample_rows(split: str) -> list[dict[str, str]]:
    return pq.read_table(SAMPLE_FOLDER / f"{split}.parquet").to_pylist()


def local(folder: Path, *, validation: str | None = None, text_column: str = "text") -> LocalFolder:
    return LocalFolder(path=str(folder), text_column=text_column, validation=validation)


def test_the_sample_is_a_few_megabytes_of_all_four_sources(tmp_path: Path) -> None:
    corpus = Sample().open_corpus(tmp_path)
    for files in (corpus.train_files, corpus.validation_files):
        assert all(path.is_file() for path in files)
    for split, least, most in (("train", 4_000_000, 4_600_000), ("validation", 380_000, 420_000)):
        rows = sample_rows(split)
        assert least < sum(len(row["text"]) for row in rows) < most
        assert {row["source"] for row in rows} == {"simplewiki", "enwiki", "gutenberg", "wikinews"}


def test_each_of_sixteen_lanes_owns_several_row_groups_of_the_sample(tmp_path: Path) -> None:
    (shard,) = Sample().open_corpus(tmp_path).train_shards
    assert len(shard.group_sizes) // 16 >= 5


def test_no_article_or_book_of_the_sample_is_in_both_splits() -> None:
    works = {
        split: {make_sample.work(row) for row in sample_rows(split)} for split in ("train", "validation")
    }
    assert not works["train"] & works["validation"]


def test_attribution_tells_every_source_of_the_sample() -> None:
    attribution = (SAMPLE_FOLDER / "ATTRIBUTION.md").read_text()
    assert all(f"| `{source}` |" in attribution for source in {row["source"] for row in sample_rows("train")})


@pytest.mark.slow
@pytest.mark.skipif(not SHARED, reason="NANOLIT_SHARED is not set")
def test_the_script_makes_the_sample_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(make_sample, "SAMPLE_FOLDER", tmp_path)
    make_sample.main(Path(SHARED or "") / "data" / "pretrain")
    for split in ("train", "validation"):
        assert pq.read_table(tmp_path / f"{split}.parquet").to_pylist() == sample_rows(split)


def test_a_file_named_val_is_held_out(tmp_path: Path) -> None:
    for name in ("a", "validation", "z"):
        write_texts(tmp_path / f"{name}.parquet", texts(3))
    corpus = local(tmp_path).open_corpus(tmp_path)
    assert [path.name for path in corpus.train_files] == ["a.parquet", "z.parquet"]
    assert [path.name for path in corpus.validation_files] == ["validation.parquet"]
    assert local(tmp_path).shards_needed(10**9, kept_fraction=0.65) == 2


def test_a_named_file_is_held_out_however_it_is_named(tmp_path: Path) -> None:
    for name in ("a", "b"):
        write_texts(tmp_path / f"{name}.parquet", texts(3))
    for validation in ("b.parquet", str(tmp_path / "b.parquet"), "./b.parquet"):
        corpus = local(tmp_path, validation=validation).open_corpus(tmp_path)
        assert [path.name for path in corpus.train_files] == ["a.parquet"]


def test_files_of_one_name_in_two_sources_both_count(tmp_path: Path) -> None:
    """They decide the tokenizer's name, and in a plan how much text there is."""
    for name, count in (("a/x.txt", 3), ("a/val.txt", 1), ("b/x.txt", 5), ("b/y.txt", 7)):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("x" * count)
    assert local(tmp_path / "a").train_bytes() == {"x.txt": 3}
    both = LocalFolder(path=[f"{tmp_path}/a", f"{tmp_path}/b"], text_column="text", validation=None)
    assert both.train_bytes() == {"x.txt": 3, "1/x.txt": 5, "y.txt": 7}


def test_a_folder_that_cannot_be_split_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="does not exist"):
        local(tmp_path / "absent").open_corpus(tmp_path)
    with pytest.raises(ValueError, match=r"holds no text to train on"):
        local(tmp_path).open_corpus(tmp_path)
    write_texts(tmp_path / "a.parquet", texts(3))
    with pytest.raises(ValueError, match=r"data\.validation=b\.parquet is not a file; .* has a\.parquet"):
        local(tmp_path, validation="b.parquet").open_corpus(tmp_path)
    with pytest.raises(ValueError, match=r"besides the held-out a\.parquet"):
        local(tmp_path, validation="a.parquet").open_corpus(tmp_path)


def damage(path: Path, *, start: int, stop: int) -> None:
    content = bytearray(path.read_bytes())
    content[start:stop] = bytes(stop - start)
    path.write_bytes(content)


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


def not_utf8(path: Path) -> None:
    bad = pa.array([b"good", b"caf\xe9"], pa.binary())
    pq.write_table(pa.table({"text": bad.view(pa.string())}), path)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (truncate, r"bad\.parquet is not a complete parquet file"),
        (lambda path: path.write_text("a,b\n1,2"), r"bad\.parquet is not a complete parquet file"),
        (lambda path: damage(path, start=4, stop=60), r"bad\.parquet: row group 0 cannot be read"),
        (
            lambda path: write_texts(path, texts(3), column="body"),
            r"bad\.parquet has no column 'text'; it has body",
        ),
        (lambda path: write_texts(path, [1, 2]), r"bad\.parquet: column 'text' holds int64, not strings"),
        (
            lambda path: pq.write_table(pa.table({"text": [*texts(9), None]}), path, write_statistics=False),
            r"bad\.parquet: row 9 has no text in column 'text'",
        ),
        (
            lambda path: pq.write_table(pa.table([["a"], ["b"]], names=["text", "text"]), path),
            r"bad\.parquet has several columns named 'text'",
        ),
        (not_utf8, r"bad\.parquet: the text of row 1 is not UTF-8"),
    ],
)
def test_bad_files_are_refused_before_training(tmp_path: Path, spoil, message: str) -> None:
    write_texts(tmp_path / "val.parquet", texts(3))
    spoil(write_texts(tmp_path / "bad.parquet", texts(30)))
    with pytest.raises(ValueError, match=message) as caught:
        local(tmp_path).open_corpus(tmp_path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "type_", [pa.string(), pa.large_string(), pa.string_view(), pa.dictionary(pa.int32(), pa.string())]
)
def test_every_type_of_string_is_read(tmp_path: Path, type_: pa.DataType) -> None:
    path = write_texts(tmp_path / "a.parquet", ["", "α 🙂", "b"], group=2, type_=type_)
    shard = open_shard(path, "text")
    assert shard.group_sizes == (2, 1)
    assert [read_texts(shard, group).to_pylist() for group in (0, 1)] == [["", "α 🙂"], ["b"]]
    assert read_texts(shard, 0).type == pa.large_string()  # whose offsets reach over 2 GB (cases/01)


def test_shards_needed_are_nanochats() -> None:
    """Oracle: what nanochat's speedruns fetch: 240 for d20, 800 for d32 (flat packing keeps every token)."""
    d20, d32 = 21_400 * 524_288, 20 * 1_879_048_192
    assert FineWebEdu().shards_needed(d20, kept_fraction=1) == 240
    assert FineWebEdu().shards_needed(d32, kept_fraction=1) == pytest.approx(800, abs=1)
    assert FineWebEdu().shards_needed(10**15, kept_fraction=1) == 1822
    assert FineWebEdu().shards_with(2_000_000_000) == 8


@pytest.mark.parametrize(("dataset", "last"), [(FineWebEdu(), 1822), (ClimbMix(), 6542)])
def test_the_held_out_shard_is_pinned(tmp_path: Path, dataset: HubDataset, last: int) -> None:
    """Shards that a larger run fetched don't move the split, nor the data that a smaller run sees."""
    folder = tmp_path / "data" / dataset.name
    folder.mkdir(parents=True)
    for index in (0, 1, 2, 3, last):
        write_texts(folder / shard_name(index), texts(3))
    corpus = dataset.open_corpus(tmp_path, num_shards=3)
    assert [path.name for path in corpus.train_files] == [shard_name(index) for index in (0, 1, 2)]
    assert [path.name for path in corpus.validation_files] == [shard_name(last)]


def test_missing_shards_are_told_with_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(
        ValueError, match=r"needs 241 shards in .*fineweb_edu, of which 241 are missing"
    ) as caught:
        FineWebEdu().open_corpus(tmp_path, num_shards=240)
    assert "python -m nanolit.train data=fineweb_edu" in str(caught.value)
    assert "data=sample" in str(caught.value)
