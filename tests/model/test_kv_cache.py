"""A model with a cache says what the model without one says."""

import pytest
import torch


@pytest.mark.parametrize("chunks", [[150], [125, *[1] * 25], [64, 64, 22], [1, 2, 147]])
def test_cached_forward_equals_the_full_one(make_gpt, random_ids, flags, chunks):
    """Every flag on: grouped heads, smear across chunks, a window of 128 shorter than the text."""
    gpt, ids_BT = make_gpt(flags), random_ids(2, 150)
    with torch.no_grad():
        expected = gpt(ids_BT)
        cache = gpt.new_kv_cache(rows=2, capacity=150)
        pieces = [gpt(chunk, kv_cache=cache) for chunk in ids_BT.split(chunks, dim=1)]
    assert cache.length == 150
    torch.testing.assert_close(torch.cat(pieces, dim=1), expected, atol=2e-5, rtol=1e-4)


def test_an_expanded_cache_continues_every_row_from_the_prompt(make_gpt, random_ids, flags):
    gpt, prompt_BT, next_BT = make_gpt(flags), random_ids(1, 10), random_ids(3, 2)
    with torch.no_grad():
        prompt_cache = gpt.new_kv_cache(rows=1, capacity=10)
        gpt(prompt_BT, kv_cache=prompt_cache)
        cache = prompt_cache.expand(3, capacity=12)
        pieces = [gpt(next_BT[:, t : t + 1], kv_cache=cache) for t in range(2)]
        expected = gpt(torch.cat((prompt_BT.expand(3, -1), next_BT), dim=1))[:, 10:]
    assert (prompt_cache.length, cache.length) == (10, 12)
    torch.testing.assert_close(torch.cat(pieces, dim=1), expected, atol=2e-5, rtol=1e-4)


def test_more_than_the_capacity_is_refused_and_nothing_is_stored(make_gpt, random_ids):
    gpt = make_gpt()
    cache = gpt.new_kv_cache(rows=1, capacity=4)
    gpt(random_ids(1, 3), kv_cache=cache)
    with pytest.raises(
        ValueError, match="holds 4 positions, 3 are used, 2 more do not fit; make it with capacity=5"
    ):
        gpt(random_ids(1, 2), kv_cache=cache)
    assert cache.length == 3


def test_capacity_beyond_the_rotary_tables_is_refused(make_gpt):
    with pytest.raises(ValueError, match="at most 80 positions"):
        make_gpt(context=8).new_kv_cache(rows=1, capacity=81)


def test_another_number_of_rows_is_refused(make_gpt, random_ids):
    gpt = make_gpt()
    with pytest.raises(ValueError, match="holds 1 rows but got 2"):
        gpt(random_ids(2, 3), kv_cache=gpt.new_kv_cache(rows=1, capacity=4))
    with pytest.raises(ValueError, match="only a cache of one row"):
        gpt.new_kv_cache(rows=2, capacity=4).expand(4)
