"""Validation rows: fixed, dealt out by rows, never wrapped."""

from pathlib import Path

import pytest
import torch
from corpora import TOKENIZER, make_corpus

from nanolit.data import validation
from nanolit.data.packing import Packing
from nanolit.data.shards import Corpus
from nanolit.data.validation import ValidationRows

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
    assert said.startswith(f"validation: {every.num_tokens:,} tokens, all that data=small holds out")
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
