"""Sampling draws from the distribution that it states, keyed by seed, row and position alone."""

import pytest
import torch

from nanolit.inference.sampling import log_probabilities, sample


def logits(rows: int, vocab: int = 50) -> torch.Tensor:
    return torch.randn(rows, vocab, generator=torch.Generator().manual_seed(3)) * 2


@pytest.mark.parametrize(("temperature", "top_k"), [(1.0, None), (0.6, 5), (2.0, 1), (0.3, 1000)])
def test_log_probabilities_sum_to_one_over_the_top_k(temperature, top_k):
    log_probs = log_probabilities(logits(4), temperature=temperature, top_k=top_k)
    assert torch.allclose(log_probs.exp().sum(-1), torch.ones(4), atol=1e-6)
    assert (log_probs > -torch.inf).sum(-1).tolist() == [min(top_k or 50, 50)] * 4


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


def test_temperature_zero_is_greedy_and_scored_as_certain():
    logits_BV = logits(6)
    ids = sample(logits_BV, temperature=0, top_k=None, seed=1, position=0)
    assert ids.tolist() == logits_BV.argmax(-1).tolist()
    scored = log_probabilities(logits_BV, temperature=0, top_k=None).gather(-1, ids[:, None])
    assert scored.abs().max() == 0


def test_draws_follow_the_stated_distribution():
    """Oracle: 20,000 draws, each frequency within five standard errors of its probability."""
    row, draws = logits(1, vocab=12), 20_000
    ids = sample(row.expand(draws, -1), temperature=1.3, top_k=6, seed=7, position=0)
    probabilities = log_probabilities(row[0], temperature=1.3, top_k=6).exp().double()
    frequencies = torch.bincount(ids, minlength=12).double() / draws
    error = (probabilities * (1 - probabilities) / draws).sqrt()
    assert ((frequencies - probabilities).abs() <= 5 * error).all()
    assert frequencies[probabilities == 0].sum() == 0


def test_a_draw_depends_on_seed_row_and_position_only():
    logits_BV = logits(8)
    settings = {"temperature": 1.0, "top_k": None}
    together = sample(logits_BV, seed=5, position=9, **settings)
    alone = [sample(logits_BV[b : b + 1], seed=5, position=9, rows=[b], **settings).item() for b in range(8)]
    assert together.tolist() == alone
    same_logits = logits_BV[:1].expand(64, -1)
    assert len(set(sample(same_logits, seed=5, position=9, **settings).tolist())) > 4
    ids = sample(same_logits, seed=5, position=9, **settings)
    assert not torch.equal(ids, sample(same_logits, seed=5, position=10, **settings))
    assert not torch.equal(ids, sample(same_logits, seed=6, position=9, **settings))


def test_log_probabilities_have_gradients_for_kept_tokens_only():
    row = logits(1)[0].requires_grad_()
    log_probs = log_probabilities(row, temperature=1.0, top_k=3)
    log_probs[row.argmax()].backward()
    assert row.grad is not None
    assert (row.grad != 0).sum() == 3


@pytest.mark.parametrize(
    ("temperature", "top_k"), [(-0.1, None), (float("nan"), None), (float("inf"), None), (1.0, 0)]
)
def test_settings_out_of_range_are_refused(temperature, top_k):
    with pytest.raises(ValueError, match="must be"):
        sample(logits(1), temperature=temperature, top_k=top_k, seed=0, position=0)


def test_logits_that_are_not_numbers_are_refused():
    with pytest.raises(ValueError, match="not finite"):
        sample(torch.full((1, 4), torch.nan), temperature=1.0, top_k=None, seed=0, position=0)
