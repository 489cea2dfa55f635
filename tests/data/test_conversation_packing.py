"""Packing of conversations: nothing is lost or repeated, and no row overflows."""

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nanolit.data.mixture import pack, pack_bestfit, pack_flat

LENGTHS = st.lists(st.integers(2, 20), min_size=1, max_size=60)


def shuffled(lengths: list[int], seed: int) -> np.ndarray:
    return np.random.default_rng(seed).permutation(len(lengths))


@given(lengths=LENGTHS, seed=st.integers(0, 99), buffer=st.integers(1, 10))
def test_bestfit_places_every_conversation_once_and_whole(lengths: list[int], seed: int, buffer: int) -> None:
    rows = pack_bestfit(lengths, shuffled(lengths, seed), capacity=20, buffer=buffer)
    placed = [piece for row in rows for piece in row]
    assert sorted(placed) == [(number, 0, length) for number, length in enumerate(lengths)]
    assert all(0 < sum(stop - start for _, start, stop in row) <= 20 for row in rows)


@given(lengths=LENGTHS, seed=st.integers(0, 99))
def test_bestfit_leaves_no_room_for_a_conversation_of_the_next_row(lengths: list[int], seed: int) -> None:
    """With a buffer that holds all, a row ends only when nothing that is left would fit."""
    rows = pack_bestfit(lengths, shuffled(lengths, seed), capacity=20, buffer=1000)
    for row, later in itertools.pairwise(rows):
        space = 20 - sum(stop for _, _, stop in row)
        assert min(stop for _, _, stop in later) > space


@given(lengths=LENGTHS, seed=st.integers(0, 99))
def test_flat_makes_every_token_but_the_first_a_target_once(lengths: list[int], seed: int) -> None:
    order = shuffled(lengths, seed)
    stream = [(int(number), position) for number in order for position in range(lengths[number])]
    rows = pack_flat(lengths, order, capacity=9)
    tokens = [[(number, at) for number, start, stop in row for at in range(start, stop)] for row in rows]
    assert [token for row in tokens for token in row[1:]] == stream[1:]
    assert [token for row in tokens for token in row[:-1]] == stream[:-1]
    assert all(len(row) == 9 for row in tokens[:-1])


def test_single_puts_one_conversation_in_a_row() -> None:
    assert pack([3, 5], np.array([1, 0]), capacity=9, packing="single") == [[(1, 0, 5)], [(0, 0, 3)]]


def test_an_unknown_packing_is_refused() -> None:
    with pytest.raises(ValueError, match="packing is 'tight'; allowed: bestfit, single, flat"):
        pack([3], np.array([0]), capacity=9, packing="tight")  # type: ignore[arg-type]
