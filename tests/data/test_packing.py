"""Packing: nanochat's rows, and no token lost that is not declared."""

import json
from collections.abc import Sequence
from itertools import islice

import numpy as np
import pytest
from corpora import FIXTURES, TOKENIZER
from hypothesis import given
from hypothesis import strategies as st

from nanolit.data.packing import (
    BestFitPacker,
    Document,
    Documents,
    Draw,
    FlatPacker,
    Packer,
    RustBestFitPacker,
    make_packer,
)
from nanolit.tokenizer import bpe

needs_rust = pytest.mark.skipif(bpe._rustbpe is None, reason="installed without Rust")
lengths = st.lists(st.integers(1, 40), max_size=60)


def numbered(lengths: Sequence[int]) -> list[Document]:
    """Documents whose tokens are all different, so that a row says where each token comes from."""
    ends = np.cumsum(lengths)
    return [(n, np.arange(end - size, end)) for n, (size, end) in enumerate(zip(lengths, ends, strict=True))]


def drawing(documents: Sequence[Document], *, batch: int = 1) -> Draw:
    left = iter(documents)
    return lambda: list(islice(left, batch))


def make(name: str, *, capacity: int, buffer: int) -> Packer:
    """A packer of whole numbers; "twin" is best fit in Python, which "bestfit" is where there is no Rust."""
    if name == "twin":
        return BestFitPacker(capacity, buffer=buffer)
    return make_packer(name, capacity=capacity, buffer=buffer, dtype=np.int64)  # type: ignore[arg-type]


def all_rows(packer: Packer, draw: Draw) -> list[list[int]]:
    rows = []
    while (row := packer.pack(draw)) is not None:
        rows.append(row.tolist())
    return rows


def scanned_rows(documents: Sequence[Document], *, capacity: int, buffer: int, batch: int) -> list[list[int]]:
    """The rule written out as a scan of the buffer in the order of arrival; stops when documents run out."""
    left, held, rows = list(documents), [], []
    while True:
        row: list[int] = []
        while len(row) < capacity:
            while len(held) < buffer and left:
                held, left = held + left[:batch], left[batch:]
            if not held:
                return rows
            fitting = [document for document in held if len(document[1]) <= capacity - len(row)]
            best = max(fitting, key=lambda d: len(d[1])) if fitting else min(held, key=lambda d: len(d[1]))
            held = [document for document in held if document[0] != best[0]]
            row += best[1][: capacity - len(row)].tolist()
        rows.append(row)


@pytest.mark.parametrize("name", ["twin", "bestfit"])
def test_rows_equal_nanochats(name: str) -> None:
    """Oracle: eight batches of nanochat's own loader, 4 rows of 257, buffer 60 filled in batches of 16."""
    texts = json.loads((FIXTURES / "eval" / "packing_documents.json").read_text())["documents"]
    expected = np.load(FIXTURES / "eval" / "packing.npz")
    ids = [tokens.astype(np.int64) for tokens in TOKENIZER.encode_batch(texts, bos=True)]
    draw = drawing(list(enumerate(ids)), batch=16)
    packer = make(name, capacity=257, buffer=60)
    for inputs_BT, targets_BT in zip(expected["inputs"], expected["targets"], strict=True):
        for inputs_T, targets_T in zip(inputs_BT, targets_BT, strict=True):
            row = packer.pack(draw)
            assert row is not None
            assert row.tolist() == [*inputs_T.tolist(), targets_T[-1]]


@given(lengths, st.integers(2, 20), st.integers(1, 12), st.integers(1, 5))
def test_best_fit_equals_a_scan_of_the_buffer(
    sizes: list[int], capacity: int, buffer: int, batch: int
) -> None:
    documents = numbered(sizes)
    rows = all_rows(BestFitPacker(capacity, buffer=buffer), drawing(documents, batch=batch))
    assert rows == scanned_rows(documents, capacity=capacity, buffer=buffer, batch=batch)


@needs_rust
@given(lengths, st.integers(1, 20), st.integers(1, 12), st.integers(1, 5), st.integers(0, 20))
def test_rust_equals_the_twin_and_continues_from_its_state(
    sizes: list[int], capacity: int, buffer: int, batch: int, stop: int
) -> None:
    """Oracle: `BestFitPacker`. Counts and states agree after every row; half way they change places."""
    documents = numbered(sizes)
    packers: list[Packer] = [
        BestFitPacker(capacity, buffer=buffer),
        RustBestFitPacker(capacity, buffer=buffer, dtype=np.int64),
    ]
    draws = [drawing(documents, batch=batch) for _ in packers]
    for number in range(1000):
        if number == stop:
            states = [json.loads(json.dumps(packer.state())) for packer in packers]
            assert states[0] == states[1]
            packers = [make(name, capacity=capacity, buffer=buffer) for name in ("bestfit", "twin")]
            for packer, state in zip(packers, states, strict=True):
                packer.load_state(state, dict(documents))
        rows = [packer.pack(draw) for packer, draw in zip(packers, draws, strict=True)]
        assert (rows[0] is None) == (rows[1] is None)
        counts = [(packer.num_kept, packer.num_cropped, packer.num_held) for packer in packers]
        assert counts[0] == counts[1]
        if rows[0] is None or rows[1] is None:
            return
        assert rows[0].tolist() == rows[1].tolist()
    raise AssertionError("the documents did not run out")


@given(lengths, st.integers(0, 60), st.integers(0, 60))
def test_documents_in_a_row_are_the_documents(sizes: list[int], start: int, stop: int) -> None:
    documents = numbered([1, *sizes])
    some = Documents.of(documents).part(start, stop)
    expected = documents[start:stop]
    assert len(some) == len(expected)
    assert [(n, tokens.tolist()) for n, tokens in some] == [(n, tokens.tolist()) for n, tokens in expected]


@given(st.sampled_from(["twin", "bestfit", "flat"]), lengths, st.integers(2, 20), st.integers(1, 12))
def test_packing_loses_no_token_it_does_not_declare(
    packing: str, sizes: list[int], capacity: int, buffer: int
) -> None:
    """What was drawn is in rows (each token once), cropped, or held; at the end nothing is held."""
    packer = make(packing, capacity=capacity, buffer=buffer)
    num_drawn, seen = 0, set()
    drawn = drawing(numbered(sizes))

    def draw() -> Sequence[Document]:
        nonlocal num_drawn
        documents = drawn()
        num_drawn += sum(len(tokens) for _, tokens in documents)
        return documents

    while (row := packer.pack(draw)) is not None:
        assert len(row) == capacity
        seen.update(row.tolist())
        assert packer.num_kept == len(seen)
        assert packer.num_kept + packer.num_cropped + packer.num_held == num_drawn
    assert packer.num_kept == len(seen)
    assert packer.num_kept + packer.num_cropped == num_drawn == sum(sizes)


@given(lengths, st.integers(2, 20))
def test_best_fit_rows_begin_with_a_document(sizes: list[int], capacity: int) -> None:
    documents = numbered(sizes)
    starts = {int(tokens[0]) for _, tokens in documents}
    assert {row[0] for row in all_rows(BestFitPacker(capacity, buffer=5), drawing(documents))} <= starts


@given(lengths, st.integers(2, 20))
def test_flat_rows_are_the_documents_in_order(sizes: list[int], capacity: int) -> None:
    """Oracle: the documents end to end, cut every T tokens into windows of T + 1."""
    every = list(range(sum(sizes)))
    expected = [
        every[start : start + capacity] for start in range(0, len(every) - capacity + 1, capacity - 1)
    ]
    assert all_rows(FlatPacker(capacity), drawing(numbered(sizes))) == expected


@given(st.sampled_from(["twin", "bestfit", "flat"]), lengths, st.integers(2, 20), st.integers(0, 30))
def test_a_packer_continues_from_its_state(packing: str, sizes: list[int], capacity: int, stop: int) -> None:
    """Oracle: the packer that was not stopped. The state passes through JSON."""
    documents = numbered(sizes)
    left = iter(documents)
    packer = make(packing, capacity=capacity, buffer=4)
    for _ in range(stop):
        packer.pack(lambda: list(islice(left, 1)))
    remaining = list(left)
    resumed = make(packing, capacity=capacity, buffer=4)
    resumed.load_state(json.loads(json.dumps(packer.state())), dict(documents))
    assert all_rows(resumed, drawing(remaining)) == all_rows(packer, drawing(remaining))
    assert resumed.state() == packer.state()


def test_a_view_of_a_long_document_is_not_held() -> None:
    """A held document longer than a row is cut to a copy: the row bounds memory, not the document."""
    packer = BestFitPacker(8, buffer=2)
    packer.pack(drawing(numbered([1000, 1000, 1000])))
    assert all(tokens.base is None and len(tokens) == 8 for tokens in packer._tokens.values())


def test_an_unknown_packing_is_refused() -> None:
    with pytest.raises(ValueError, match="'bestfitt'; allowed are 'bestfit' and 'flat'"):
        make_packer("bestfitt", capacity=8, buffer=2, dtype=np.uint16)  # type: ignore[arg-type]
