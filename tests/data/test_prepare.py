"""Own text becomes shards once: cut, split and counted, in bounded memory, the same on every machine."""

import json
import os
import re
import subprocess
import sys
from itertools import islice
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from corpora import TOKENIZER, row_hashes, texts, write_texts

from nanolit.data.outlook import outlook
from nanolit.data.parquet import Corpus, Shard, read_texts
from nanolit.data.pieces import pieces
from nanolit.data.prepare import check_held_out
from nanolit.data.shards import LocalFolder
from nanolit.data.stream import PretrainStream
from nanolit.data.validation import ValidationRows
from nanolit.tokenizer.bpe import Tokenizer

STORY = "".join(f"Line {n} of a long story.\n" + "\n" * (n % 7 == 0) for n in range(12_000))


def corpus_of(root: Path, *paths: Path, **settings) -> Corpus:
    path = [str(one) for one in paths] if len(paths) > 1 else str(paths[0])
    given = {"text_column": "text", "validation": None, **settings}
    return LocalFolder(path=path, **given).open_corpus(root)


def every_text(shards: list[Shard]) -> list[str]:
    return [
        text
        for shard in shards
        for n in range(len(shard.group_sizes))
        for text in read_texts(shard, n).to_pylist()
    ]


def write_jsonl(path: Path, every: list[str]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in every))
    return path


@pytest.mark.parametrize("block", [1, 7, 100, 10_000])
@pytest.mark.parametrize("text", [STORY[:5000], "a" * 5000, "word " * 1000, "", "α 🙂"])
def test_pieces_are_the_document_in_order_and_never_longer(text: str, block: int) -> None:
    cut = list(pieces((text[n : n + block] for n in range(0, len(text), block)), 300))
    assert "".join(cut) == text
    assert max(map(len, cut)) <= 300
    assert all(piece.endswith("\n") for piece in cut[:-1]) or "\n" not in text


def test_a_book_is_cut_dealt_to_sixteen_lanes_and_partly_held_out(tmp_path: Path) -> None:
    (tmp_path / "book.txt").write_text(STORY)
    corpus = corpus_of(tmp_path / "root", tmp_path / "book.txt")
    train, held_out = every_text(corpus.train_shards), every_text(corpus.validation_shards)
    assert sorted(train + held_out) == sorted(pieces([STORY], 2048))
    assert 0.1 < len("".join(held_out)) / len(STORY) < 0.3
    settings = {"context": 64, "rows": 16, "micro_batch": 4, "seed": 1, "packing": "bestfit_split"}
    assert PretrainStream(corpus, TOKENIZER, **settings).lanes == 16 or len(corpus.train_groups()) < 16


def test_equal_text_never_straddles_and_added_text_holds_no_trained_one_out(
    tmp_path: Path,
) -> None:
    every = [f"{text[:200]} {'again ' * 300}" for text in texts(400)]
    write_jsonl(tmp_path / "d/a.jsonl", every[:300])
    before = set(every_text(corpus_of(tmp_path / "root", tmp_path / "d").validation_shards))
    write_jsonl(tmp_path / "d/b.jsonl", every[300:] + every[:50])
    corpus = corpus_of(tmp_path / "root", tmp_path / "d")
    after = set(every_text(corpus.validation_shards))
    assert 0 < len(before) < 60
    assert after & set(every[:300]) <= before
    assert not after & set(every_text(corpus.train_shards))
    assert "; duplicates: 50 repeat an earlier one" in corpus.summary


def test_equal_text_never_straddles_where_no_hash_holds_any_out(tmp_path: Path) -> None:
    rows = [f"{n} " + "lorem ipsum " * 8 for n in range(372, 384)]  # none hashes below a fifth
    paths = [
        write_jsonl(tmp_path / "a.jsonl", rows * 2),
        write_jsonl(tmp_path / "b.jsonl", [*rows, "b", "c"]),
    ]
    for some in (paths[:1], paths, paths[::-1]):
        corpus = corpus_of(tmp_path / "root", *some)
        train, held_out = every_text(corpus.train_shards), every_text(corpus.validation_shards)
        assert held_out
        assert not set(train) & set(held_out)
        assert len(train + held_out) == (24 if len(some) == 1 else 38)


def test_what_was_read_passed_over_split_and_empty_is_in_the_summary(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "d/train.jsonl", [*texts(30), " \n", ""])
    write_jsonl(tmp_path / "d/test.jsonl", ["never"])
    write_jsonl(tmp_path / "d/sub/validation.jsonl", texts(3, label="other"))
    (tmp_path / "d/cover.jpg").write_text("")
    corpus = corpus_of(tmp_path / "root", tmp_path / "d")
    assert every_text(corpus.train_shards) == texts(30)
    assert every_text(corpus.validation_shards) == texts(3, label="other")
    passed = "2 skipped (cover.jpg, test.jsonl (a test split))"
    assert f"2 files of {tmp_path}/d, {passed}; 30 documents, 0.00 MB, and 3 held out" in corpus.summary
    assert corpus.summary.endswith("; 2 without text left out")


def test_a_copy_is_made_again_only_when_a_file_changed_and_gives_the_same_steps(tmp_path, capsys) -> None:
    """A run resumes on the same text, whatever the time of its files: also uploaded to another machine."""
    source = write_jsonl(tmp_path / "d/a.jsonl", texts(300))
    settings = {"context": 24, "rows": 6, "micro_batch": 2, "seed": 1, "packing": "bestfit"}
    seen = []
    for time, copies in ((1, 1), (1, 0), (2, 1)):
        os.utime(source, ns=(time, time))
        corpus = corpus_of(tmp_path / "root", tmp_path / "d")
        assert capsys.readouterr().out.count("reading") == copies
        steps = islice(PretrainStream(corpus, TOKENIZER, **settings), 3)
        seen.append((corpus.fingerprint, [row_hashes(step) for step in steps]))
    assert seen[0] == seen[1] == seen[2]
    write_jsonl(source, texts(299))
    assert corpus_of(tmp_path / "root", tmp_path / "d").fingerprint != seen[0][0]


def test_a_faulty_file_leaves_no_copy(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "d/a.jsonl", texts(3000))
    (tmp_path / "d/b.jsonl").write_text("{")
    with pytest.raises(ValueError, match="line 1 is not JSON"):
        corpus_of(tmp_path / "root", tmp_path / "d")
    assert [
        path for path in (tmp_path / "root").rglob("*") if path.is_file() and path.suffix != ".lock"
    ] == []


def test_a_copy_that_lost_its_manifest_is_made_again(tmp_path: Path) -> None:
    (tmp_path / "book.txt").write_text(STORY)
    whole = corpus_of(tmp_path / "root", tmp_path / "book.txt").fingerprint
    (manifest,) = (tmp_path / "root").rglob("manifest.json")
    manifest.unlink()
    assert corpus_of(tmp_path / "root", tmp_path / "book.txt").fingerprint == whole


def test_who_stops_waiting_leaves_the_copy_that_another_writes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_jsonl(tmp_path / "d/a.jsonl", texts(30))
    corpus_of(tmp_path / "root", tmp_path / "d")
    (manifest,) = (tmp_path / "root").rglob("manifest.json")
    partial = manifest.parent.with_name(f".{manifest.parent.name}.partial")
    manifest.parent.rename(partial)

    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("nanolit.data.prepare.held", interrupted)
    with pytest.raises(KeyboardInterrupt):
        corpus_of(tmp_path / "root", tmp_path / "d")
    assert (partial / "manifest.json").exists()


@pytest.mark.parametrize("text", ["[]", "{}", '{"format": 1, "sources": [{"name": "a"}]}', "[" * 100_000])
def test_a_damaged_manifest_of_a_copy_is_one_line(tmp_path: Path, text: str) -> None:
    (tmp_path / "book.txt").write_text(STORY)
    corpus_of(tmp_path / "root", tmp_path / "book.txt")
    (manifest,) = (tmp_path / "root").rglob("manifest.json")
    manifest.write_text(text)
    with pytest.raises(ValueError, match=f"{manifest} .*; delete {manifest.parent}, and it is written again"):
        corpus_of(tmp_path / "root", tmp_path / "book.txt")


def test_a_flipped_bit_of_a_copy_is_never_read_as_other_text(tmp_path: Path) -> None:
    """Compression alone lets a third of them pass."""
    (tmp_path / "book.txt").write_text(STORY)
    shard = corpus_of(tmp_path / "root", tmp_path / "book.txt").train_shards[0]
    whole, content = every_text([shard]), shard.path.read_bytes()
    pages = len(content) - int.from_bytes(content[-8:-4], "little") - 8  # what follows describes them
    refused = 0
    for place in range(4, pages, pages // 50):
        shard.path.write_bytes(content[:place] + bytes([content[place] ^ 4]) + content[place + 1 :])
        try:
            assert every_text([shard]) == whole
        except ValueError:
            refused += 1
    assert refused > 40


@pytest.mark.parametrize(("weights", "shares"), [(None, 0.09), ([1, 1], 0.5), ([3, 1], 0.75), ([1, 9], 0.1)])
def test_several_sources_have_the_shares_that_their_weights_say(tmp_path, weights, shares) -> None:
    write_jsonl(tmp_path / "few.jsonl", [f"few {n} " + "x" * 990 for n in range(300)])
    write_jsonl(tmp_path / "many.jsonl", [f"many {n} " + "y" * 990 for n in range(3000)])
    corpus = corpus_of(tmp_path / "root", tmp_path / "few.jsonl", tmp_path / "many.jsonl", weights=weights)
    epoch = [
        text[:3] for shard, group in corpus.train_groups() for text in read_texts(shard, group).to_pylist()
    ]
    assert epoch.count("few") / len(epoch) == pytest.approx(shares, abs=0.02)
    assert min(epoch.count("few") / 300, epoch.count("man") / 3000) > 0.9
    held_out = [read_texts(*group)[0].as_py()[:3] for group in corpus.validation_groups()]
    assert held_out[:2] == ["few", "man"]


def test_weighted_copies_resume_exactly_on_another_number_of_ranks(tmp_path: Path) -> None:
    for name, count in (("a", 400), ("b", 900)):
        write_jsonl(tmp_path / f"{name}.jsonl", [f"{name} {text * 9}" for text in texts(count)])
    corpus = corpus_of(tmp_path / "root", tmp_path / "a.jsonl", tmp_path / "b.jsonl", weights=[2, 1])
    settings = {"context": 24, "rows": 8, "micro_batch": 2, "seed": 1, "packing": "bestfit_split"}
    steps = list(islice(PretrainStream(corpus, TOKENIZER, **settings), 6))
    ranks = [PretrainStream(corpus, TOKENIZER, rank=rank, world=2, **settings) for rank in range(2)]
    for rank in ranks:
        rank.load_position([steps[2].position])
    resumed = [
        [row for part in parts for row in row_hashes(part)] for parts in islice(zip(*ranks, strict=False), 3)
    ]
    assert resumed == [row_hashes(step) for step in steps[3:]]


def test_weights_must_fit_the_sources(tmp_path: Path) -> None:
    with pytest.raises(
        ValueError, match=r"data\.weights=\[1\]; give a positive number for each of 2 sources"
    ):
        corpus_of(tmp_path, tmp_path / "a", tmp_path / "b", weights=[1])


def test_fitting_parquet_is_read_where_it_lies_and_large_groups_are_copied(tmp_path: Path) -> None:
    (tmp_path / "d").mkdir()
    write_texts(tmp_path / "d/val.parquet", texts(3))
    write_texts(tmp_path / "d/a.parquet", texts(30))
    assert corpus_of(tmp_path / "root", tmp_path / "d").train_files == (tmp_path / "d/a.parquet",)
    assert not (tmp_path / "root").exists()
    write_texts(tmp_path / "d/b.parquet", texts(30))
    summary = corpus_of(tmp_path / "root", tmp_path / "d").summary
    assert summary == f"2 and 1 held-out files of {tmp_path}/d; duplicates: a.parquet, b.parquet"
    (tmp_path / "d/b.parquet").unlink()
    write_texts(tmp_path / "d/a.parquet", [f"{n} " * 99_999 for n in range(30)], group=999)
    corpus = corpus_of(tmp_path / "root", tmp_path / "d")
    assert max(size for shard in corpus.train_shards for size in shard.group_bytes) < 5 << 20
    assert max(map(len, every_text(corpus.train_shards))) <= 32_768


@pytest.mark.parametrize("side", ["a.parquet", "val.parquet"])
def test_parquet_with_a_row_without_text_is_copied_without_it(tmp_path: Path, side: str) -> None:
    (tmp_path / "d").mkdir()
    for name in ("a.parquet", "val.parquet"):
        write_texts(tmp_path / "d" / name, [*texts(3, label=name), *[None] * (name == side)])
    corpus = corpus_of(tmp_path / "root", tmp_path / "d")
    assert every_text(corpus.train_shards) == texts(3, label="a.parquet")
    assert every_text(corpus.validation_shards) == texts(3, label="val.parquet")
    assert corpus.summary.endswith("; 1 without text left out")


def refused(corpus: Corpus, *, context: int) -> str:
    with pytest.raises(ValueError, match="data=local") as caught:
        check_held_out(corpus, context=context)
    return str(caught.value)


def test_a_text_too_small_to_hold_out_a_row_is_refused_with_its_size(tmp_path: Path) -> None:
    """Oracle: the rows of the tokenizer whose tokens are single bytes: no other fills more."""
    bytes_alone = Tokenizer([bytes([n]) for n in range(256)])
    settings = {"micro_batch": 1, "packing": "bestfit_split", "num_tokens": None}
    for size in (600, 2_000, 2_100, 2_300, 4_000, 9_000):
        (path := tmp_path / f"{size}.txt").write_text(STORY[-size:])
        corpus = corpus_of(tmp_path / "root", path)
        held_out = sum(len(text) for text in every_text(corpus.validation_shards))
        for context in (8, 64, 512, 4_096):
            if context <= held_out:
                check_held_out(corpus, context=context)
                assert ValidationRows(corpus, bytes_alone, context=context, **settings).num_rows
                continue
            said = refused(corpus, context=context)
            assert f"of its {size:,} bytes" in said
            assert int(re.search(r"give about ([\d,]+) bytes", said)[1].replace(",", "")) > size
            with pytest.raises(ValueError, match=re.escape(said)):
                ValidationRows(corpus, bytes_alone, context=context, **settings)


def test_a_text_of_one_piece_is_too_small_on_whichever_side_its_hash_puts_it(tmp_path: Path) -> None:
    said = set()
    for n in range(10, 30):
        (path := tmp_path / f"{n}.txt").write_text(f"Hello {n}")
        with pytest.raises(ValueError, match=r"of its 8 bytes .*; give about 4,096 bytes or more$") as caught:
            check_held_out(corpus_of(tmp_path / "root", path), context=8)
        said.add(re.search("(all|none) of", str(caught.value))[1])
    assert said == {"all", "none"}


def test_held_out_files_too_small_for_a_row_are_named_as_such(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "a" / "train.jsonl", texts(300))
    write_jsonl(tmp_path / "a" / "val.jsonl", ["twelve bytes"])
    corpus = corpus_of(tmp_path / "root", tmp_path / "a")
    assert "the 12 bytes of held-out text of data=local don't fill one row of 65" in refused(
        corpus, context=64
    )


def test_the_outlook_measures_tokens_epochs_and_what_packing_drops(tmp_path: Path) -> None:
    """Oracle: the tokens of all pieces, and the stream's own count of what it cropped."""
    (tmp_path / "book.txt").write_text(STORY)
    corpus = corpus_of(tmp_path / "root", tmp_path / "book.txt")
    tokens = sum(len(TOKENIZER.encode(text)) + 1 for text in every_text(corpus.train_shards))
    line = outlook(corpus, TOKENIZER, packing="bestfit", context=64, num_tokens=10**6)
    counted = float(line.partition("about ")[2].partition(" tokens")[0].replace(",", ""))
    assert counted == pytest.approx(tokens, rel=0.1)
    assert "recipe.packing=bestfit_split keeps them" in line
    said = float(line.partition("drops about ")[2].partition("%")[0]) / 100
    settings = {"context": 64, "rows": 16, "micro_batch": 4, "seed": 1}
    stream = PretrainStream(corpus, TOKENIZER, packing="bestfit", **settings)
    assert said == pytest.approx(next(islice(stream, 20, 21)).cropped_fraction, abs=0.1)
    assert "drops about 0%" in outlook(corpus, TOKENIZER, packing="flat", context=64, num_tokens=10**6)


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="the peak is read from /proc")
@pytest.mark.parametrize(("kind", "most"), [("row_group", 600), ("line.jsonl", 1000), ("line.txt", 300)])
def test_memory_is_bounded_for_a_line_of_100_mb_and_a_row_group_of_2_gb(
    tmp_path: Path, kind: str, most: int
) -> None:
    """Within the peak that docs/data.md states, of reading (cases/01)."""
    text = "lorem ipsum 🙂 dolor " * 5000
    if kind == "row_group":
        chunk = pa.array([text] * 2000)
        column = pa.chunked_array([chunk] * 13)
        path = tmp_path / "a.parquet"
        pq.write_table(pa.table({"text": column}), path, row_group_size=1 << 20, use_dictionary=False)
    else:
        path = tmp_path / kind
        many = text * 870
        path.write_text(json.dumps({"text": many}, ensure_ascii=False) if kind.endswith("jsonl") else many)
        del many
    code = f"""
import re, sys
from pathlib import Path
from nanolit.data.shards import LocalFolder
dataset = LocalFolder(path={str(path)!r}, text_column="text", validation=None)
dataset.open_corpus(Path({str(tmp_path / "root")!r}))
peak = int(re.search(r"VmHWM:\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1]) / 1024
print(f"peak {{peak:.0f}} MiB")
sys.exit(peak > {most})
"""
    subprocess.run([sys.executable, "-c", code], check=True)
