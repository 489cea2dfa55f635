"""Sampling draws from the distribution that it states, keyed by seed and position alone."""

import numpy as np
import pytest
import torch

from nanolit.inference import sampling
from nanolit.inference.sampling import check_settings, log_probabilities, needs_of, sample, uniforms


def logits(rows: int, vocab: int = 50) -> torch.Tensor:
    return torch.randn(rows, vocab, generator=torch.Generator().manual_seed(3)) * 2


@pytest.mark.parametrize(("temperature", "top_k"), [(1.0, None), (0.6, 5), (2.0, 1), (0.3, 1000)])
def test_log_probabilities_sum_to_one_over_the_top_k(temperature, top_k):
    log_probs = log_probabilities(logits(4), temperature=temperature, top_k=top_k)
    assert torch.allclose(log_probs.exp().sum(-1), torch.ones(4), atol=1e-6)
    assert (log_probs > -torch.inf).sum(-1).tolist() == [min(top_k or 50, 50)] * 4


def table_of(
    count: int,
    *,
    temperature: float,
    top_k: int | None = None,
    top_p: float = 1.0,
    seed: int = 1,
    position: int = 0,
) -> np.ndarray:
    """Lines of equal settings that want log-probabilities; row b has the seed `seed` + b."""
    table = np.zeros((count, sampling.COLUMNS), np.int32)
    numbers = table.view(np.float32)
    table[:, sampling.TOP_K], table[:, sampling.LOG_PROBS] = top_k or 0, 1
    table[:, sampling.SEED], table[:, sampling.POSITION] = np.arange(seed, seed + count), position - 1
    numbers[:, sampling.TEMPERATURE], numbers[:, sampling.TOP_P] = temperature, top_p
    numbers[:, sampling.PENALTY] = 1
    return table


def draw(logits_BV: torch.Tensor, **settings) -> torch.Tensor:
    table = table_of(len(logits_BV), **settings)
    return sample(logits_BV, torch.from_numpy(table), needs_of(table))[0]


def test_log_probabilities_equal_softmax_of_scaled_logits_where_kept():
    """Oracle: the formula written out for one row."""
    row = logits(1)[0]
    kept = row.sort(descending=True).indices[:7]
    expected = torch.log(torch.exp(row[kept] / 0.7) / torch.exp(row[kept] / 0.7).sum())
    got = log_probabilities(row, temperature=0.7, top_k=7)[kept]
    assert torch.allclose(got, expected, atol=1e-6)


def test_ties_with_the_last_kept_token_stay_in():
    log_probs = log_probabilities(torch.tensor([1.0, 2.0, 2.0, 0.0]), temperature=1.0, top_k=1)
    assert torch.allclose(log_probs.exp(), torch.tensor([0.0, 0.5, 0.5, 0.0]))


def test_the_nucleus_is_the_fewest_tokens_that_reach_top_p():
    """Oracle: probabilities 0.5, 0.25, 0.15, 0.1 summed by hand."""
    row = torch.tensor([0.15, 0.5, 0.1, 0.25]).log()
    for top_p, kept in ((0.49, 1), (0.51, 2), (0.74, 2), (0.76, 3), (0.91, 4), (1.0, 4)):
        log_probs = log_probabilities(row, temperature=1.0, top_k=None, top_p=top_p)
        assert (log_probs > -torch.inf).sum() == kept
        assert log_probs.exp().sum() == pytest.approx(1)


def test_temperature_zero_is_greedy_and_scored_as_certain():
    logits_BV = logits(6)
    ids = draw(logits_BV, temperature=0.0)
    assert ids.tolist() == logits_BV.argmax(-1).tolist()
    scored = log_probabilities(logits_BV, temperature=0, top_k=None).gather(-1, ids[:, None])
    assert scored.abs().max() == 0


@pytest.mark.parametrize("settings", [{"top_k": 6}, {"top_p": 0.7}, {"top_k": 9, "top_p": 0.9}, {}])
def test_draws_follow_the_stated_distribution(settings):
    """Oracle: 20,000 draws, each frequency within five standard errors of its probability."""
    row, draws = logits(1, vocab=12), 20_000
    ids = draw(row.expand(draws, -1), temperature=1.3, seed=7, **settings)
    probabilities = log_probabilities(row[0], **{"temperature": 1.3, "top_k": None} | settings).exp().double()
    frequencies = torch.bincount(ids, minlength=12).double() / draws
    error = (probabilities * (1 - probabilities) / draws).sqrt()
    assert ((frequencies - probabilities).abs() <= 5 * error).all()
    assert frequencies[probabilities == 0].sum() == 0


def test_drawn_log_probabilities_are_those_of_scoring():
    logits_BV, settings = logits(40), {"temperature": 0.9, "top_k": 20, "top_p": 0.8}
    table = table_of(40, **settings)
    ids, log_probs = sample(logits_BV, torch.from_numpy(table), needs_of(table))
    expected = log_probabilities(logits_BV, **settings).gather(-1, ids[:, None])[:, 0]
    torch.testing.assert_close(log_probs, expected)


def test_a_draw_depends_on_its_seed_and_position_and_not_on_the_rows_beside_it():
    """Beside rows of other settings, which need other operations, too."""
    logits_BV = logits(8)
    together = draw(logits_BV, seed=5, position=9, temperature=1.0)
    alone = [draw(logits_BV[b : b + 1], seed=5 + b, position=9, temperature=1.0).item() for b in range(8)]
    assert together.tolist() == alone
    table = table_of(8, seed=5, position=9, temperature=1.0)
    numbers = table.view(np.float32)
    numbers[0, sampling.TEMPERATURE], table[1, sampling.TOP_K], numbers[2, sampling.TOP_P] = 0, 3, 0.5
    mixed, _ = sample(logits_BV, torch.from_numpy(table), needs_of(table))
    assert mixed[3:].tolist() == alone[3:]
    same_logits = logits_BV[:1].expand(64, -1)
    ids = draw(same_logits, seed=5, position=9, temperature=1.0)
    assert len(set(ids.tolist())) > 4
    assert not torch.equal(ids, draw(same_logits, seed=5, position=10, temperature=1.0))
    assert not torch.equal(ids, draw(same_logits, seed=1005, position=9, temperature=1.0))


def test_uniform_numbers_are_spread_evenly_and_do_not_repeat():
    """Oracle: mean, variance and correlation of neighbours, each within five standard errors."""
    table = torch.zeros(100_000, sampling.COLUMNS, dtype=torch.int32)
    table[:, sampling.SEED], table[:, sampling.POSITION] = 3, torch.arange(100_000)
    numbers = uniforms(table).double().numpy()
    assert numbers.min() >= 0
    assert numbers.max() < 1
    assert abs(numbers.mean() - 1 / 2) < 5 * (1 / 12 / 1e5) ** 0.5
    assert abs(numbers.var() - 1 / 12) < 5 * (1 / 180 / 1e5) ** 0.5
    table[:, sampling.SEED] = 4
    other = uniforms(table).numpy()
    for shifted in (np.roll(numbers, 1), other):
        assert abs(np.corrcoef(numbers, shifted)[0, 1]) < 5 / 1e5**0.5


def test_a_uniform_number_is_the_hash_of_seed_and_position():
    """Oracle: SplitMix64 in Python's own whole numbers, with seeds of all 64 bits."""
    rng, whole = np.random.default_rng(0), 2**64 - 1
    table = np.zeros((50, sampling.COLUMNS), np.int32)
    seeds = rng.integers(whole, size=50, dtype=np.uint64)
    table[:, sampling.SEED : sampling.SEED + 2] = seeds.view(np.int32).reshape(50, 2)
    table[:, sampling.POSITION] = rng.integers(5000, size=50)
    for row, number in enumerate(uniforms(torch.from_numpy(table)).tolist()):
        hashed = int(seeds[row]) + (int(table[row, sampling.POSITION]) + 2) * sampling.GOLDEN & whole
        hashed = (hashed ^ hashed >> 30) * sampling.MIX_1 & whole
        hashed = (hashed ^ hashed >> 27) * sampling.MIX_2 & whole
        assert number == ((hashed ^ hashed >> 31) >> 40) / 2**24


def test_log_probabilities_have_gradients_for_kept_tokens_only():
    row = logits(1)[0].requires_grad_()
    log_probs = log_probabilities(row, temperature=1.0, top_k=3)
    log_probs[row.argmax()].backward()
    assert row.grad is not None
    assert (row.grad != 0).sum() == 3


@pytest.mark.parametrize(
    "wrong",
    [
        {"temperature": -0.1},
        {"temperature": float("nan")},
        {"temperature": float("inf")},
        {"temperature": 1e-40},
        {"top_k": 0},
        {"top_p": 0.0},
        {"top_p": 1e-320},
        {"top_p": 1.1},
        {"repetition_penalty": 0.0},
        {"repetition_penalty": 1e-300},
        {"repetition_penalty": 1e300},
    ],
)
def test_settings_out_of_range_are_refused(wrong):
    with pytest.raises(ValueError, match="must be"):
        check_settings(**{"temperature": 1.0, "top_k": None} | wrong)


@pytest.mark.parametrize("least", [{"temperature": sampling.LEAST}, {"top_p": sampling.LEAST}])
def test_the_least_that_is_allowed_takes_the_likeliest(least):
    rows = logits(8)
    assert torch.equal(draw(rows, **{"temperature": 1.0} | least), rows.argmax(-1))


def test_logits_that_are_not_numbers_draw_no_token():
    rows = torch.stack([torch.full((4,), torch.nan), torch.zeros(4)])
    assert (draw(rows, temperature=1.0) >= 0).tolist() == [False, True]
