"""Validation rows: fixed, dealt out by rows, never wrapped."""

from pathlib import Path

import numpy as np
import pytest
import torch
from corpora import TOKENIZER, make_corpus

from nanolit.data import validation
from nanolit.data.packing import Packing
from nanolit.data.parquet import Corpus
from nanolit.data.validation import RowIdentity, ValidationRows

packings = pytest.mark.parametrize("packing", ["bestfit", "flat"])


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    return make_corpus(tmp_path_factory.mktemp("corpus"))


def make_rows(corpus: Corpus, **changes) -> ValidationRows:
    settings = {"context": 24, "micro_batch": 4, "packing": "bestfit", "num_tokens": None}
    return ValidationRows(corpus, TOKENIZER, **settings | changes)


def rows_of(validation: ValidationRows) -> list[tuple[int, ...]]:
    batches = [torch.cat([ids_BT, targets_BT[:, -1:]], dim=1) for ids_BT, targets_BT in validation]
    return [tuple(row) for batch in batches for row in batch.tolist()]


@packings
@pytest.mark.parametrize("num_tokens", [None, 24 * 7])
def test_the_rows_are_the_same_on_any_number_of_ranks(
    corpus: Corpus, packing: Packing, num_tokens: int | None
) -> None:
    expected = rows_of(make_rows(corpus, packing=packing, num_tokens=num_tokens))
    assert num_tokens is None or len(expected) == 7
    for world in (2, 3):
        ranks = [
            make_rows(corpus, packing=packing, num_tokens=num_tokens, rank=rank, world=world, micro_batch=2)
            for rank in range(world)
        ]
        dealt = [rows_of(rank) for rank in ranks]
        assert sorted(row for rows in dealt for row in rows) == sorted(expected)
        assert max(map(len, dealt)) - min(map(len, dealt)) <= 1
        assert [len(rank) for rank in ranks] == [-(-len(rows) // 2) for rows in dealt]


def identity_from_batches(ranks: list[ValidationRows]) -> dict:
    """Row r is with rank r mod world: dealt back into the global order, batches apart."""
    dealt = [rows_of(rank) for rank in ranks]
    identity = RowIdentity()
    for number in range(sum(map(len, dealt))):
        identity.add(np.array(dealt[number % len(ranks)][number // len(ranks)]))
    return identity.as_dict()


@packings
def test_the_identity_is_of_the_rows_that_are_evaluated_on_any_ranks_and_micro_batch(
    corpus: Corpus, packing: Packing
) -> None:
    """Oracle: the ids and targets of the batches themselves."""
    for world, micro_batch in [(1, 4), (1, 1), (2, 4), (3, 2)]:
        ranks = [
            make_rows(corpus, packing=packing, rank=rank, world=world, micro_batch=micro_batch)
            for rank in range(world)
        ]
        expected = make_rows(corpus, packing=packing).identity
        assert [rank.identity for rank in ranks] == [expected] * world
        assert identity_from_batches(ranks) == expected
        assert expected["tokens"] == expected["rows"] * 24 == ranks[0].num_tokens


def test_other_text_another_context_and_fewer_rows_have_another_checksum(
    corpus: Corpus, tmp_path: Path
) -> None:
    others = [
        make_rows(corpus),
        make_rows(make_corpus(tmp_path, held_out=11)),
        make_rows(corpus, context=23),
        make_rows(corpus, num_tokens=24 * 7),
        make_rows(corpus, packing="flat"),
    ]
    assert len({rows.identity["checksum"] for rows in others}) == len(others)


def test_the_checksum_is_the_same_whatever_holds_the_ids() -> None:
    """Sixteen bits in a packed row, sixty-four in a batch; the value pins the format for ever."""
    checksums = set()
    for dtype in (np.uint16, np.uint32, np.int64, np.dtype(">i4")):
        identity = RowIdentity()
        identity.add(np.arange(5).astype(dtype))
        identity.add(np.arange(3).astype(dtype), np.array([False, True]))
        checksums.add(tuple(identity.as_dict().values()))
    assert checksums == {(5, 2, "3264d2ac9057")}


def test_iterating_again_gives_the_same_rows(corpus: Corpus) -> None:
    validation = make_rows(corpus)
    assert rows_of(validation) == rows_of(validation)


def test_rows_are_the_same_however_many_documents_are_encoded_at_once(corpus: Corpus, monkeypatch) -> None:
    """Row groups have eight: chunks of three leave a shorter one."""
    expected = rows_of(make_rows(corpus))
    monkeypatch.setattr(validation, "CHUNK", 3)
    assert rows_of(make_rows(corpus)) == expected


def test_more_tokens_than_are_held_out_are_told_once_and_no_second_epoch(corpus: Corpus, capsys) -> None:
    every = make_rows(corpus)
    assert capsys.readouterr().out == ""
    asked = make_rows(corpus, num_tokens=9_999_999)
    said = capsys.readouterr().out
    assert said.startswith(f"validation: {every.num_tokens:,} tokens, all the held-out text of data=small")
    assert said.count("\n") == 1
    assert rows_of(asked) == rows_of(every)
    make_rows(corpus, num_tokens=9_999_999, rank=1, world=2)
    assert capsys.readouterr().out == ""


def test_a_count_that_is_no_multiple_of_the_row_is_rounded_down_silently(corpus: Corpus, capsys) -> None:
    assert make_rows(corpus, num_tokens=24 * 5 + 3).num_tokens == 24 * 5
    assert capsys.readouterr().out == ""


def test_too_little_held_out_text_is_refused(corpus: Corpus, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="don't fill one row of 4097 tokens; hold out more text"):
        make_rows(make_corpus(tmp_path, held_out=2), context=4096)
