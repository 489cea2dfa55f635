"""Divisors and short lists."""

import pytest

from nanolit.machine.numbers import divisors, listed


def test_divisors_are_all_and_in_order():
    assert divisors(12) == [1, 2, 3, 4, 6, 12]


@pytest.mark.parametrize(("count", "text"), [(0, ""), (3, "0, 1, 2"), (4, "0, 1, 2, …")])
def test_a_long_list_shows_its_first_three(count, text):
    assert listed(range(count)) == text
