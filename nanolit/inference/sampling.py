"""Logits to token ids, with one distribution for both sampling and reinforcement learning's scores.

A draw depends only on (seed, sample, position), not on the rest of the batch or earlier draws.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

# The constants of SplitMix64, a hash of a counter: https://prng.di.unimi.it/splitmix64.c
GOLDEN, MIX_1, MIX_2 = 0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB
# Columns of a batch's table, int32, one line per row. TEMPERATURE, TOP_P and PENALTY hold the bits of a
# float32, SEED and the column after it those of a uint64. The next token to feed, at POSITION, is FORCED, or
# the newest draw if that is -1
FORCED, POSITION, TOP_K, LOG_PROBS, TEMPERATURE, TOP_P, PENALTY, TURN, SEED = range(9)
# Tiles of rows at the same position whose first SHARED positions are those of one prompt (0 in no tile).
# MEMBER lists their rows, tile after tile. Line t of FIRST has tile t's beginning in that list, later lines
# have the list's end. Every line has the number of TILES, and the PARTS that each tile's keys are cut into
SHARED, FIRST, MEMBER, TILES, PARTS = range(10, 15)
COLUMNS = 15
TILE = 16  # the most rows of a tile: the fewest that tensor cores multiply
TILE_PARTS = 16  # the most that its keys are cut into
LEAST = 1e-6  # temperature, top_p and penalty; far smaller ones leave no finite float32 logits


def check_settings(
    *, temperature: float, top_k: int | None, top_p: float = 1.0, repetition_penalty: float = 1.0
) -> None:
    """Raise ValueError unless temperature is 0 or finite, top_k None or >= 1, the others in range."""
    if temperature and not LEAST <= temperature < math.inf:
        raise ValueError(
            f"temperature ({temperature}) must be 0, which always picks the most likely token, or {LEAST:f} "
            "or more"
        )
    if top_k is not None and top_k < 1:
        raise ValueError(f"top_k ({top_k}) must be 1 or more, or none to sample from the whole vocabulary")
    if not LEAST <= top_p <= 1:
        raise ValueError(f"top_p ({top_p}) must be {LEAST:f} to 1; 1 keeps every token")
    if not LEAST <= repetition_penalty <= 1 / LEAST:
        raise ValueError(
            f"repetition_penalty ({repetition_penalty}) must be {LEAST:f} to {1 / LEAST:,.0f}; 1 is no "
            "penalty"
        )


def log_probabilities(logits: Tensor, *, temperature: float, top_k: int | None, top_p: float = 1.0) -> Tensor:
    """Return the log-probabilities (…, V) float32 that `sample` draws from; differentiable.

    Tokens outside the `top_k` largest logits get -inf, then tokens outside the smallest set whose
    probabilities sum to `top_p`. Ties with the last token kept stay in, so that sampling and scoring agree.
    Temperature 0 gives 0 for the first largest logit and -inf for the others.
    """
    check_settings(temperature=temperature, top_k=top_k, top_p=top_p)
    logits = logits.float()
    if temperature == 0:
        likeliest = logits.argmax(dim=-1, keepdim=True)
        return torch.full_like(logits, -torch.inf).scatter(-1, likeliest, 0.0)
    if top_k is not None and top_k < logits.size(-1):
        logits = logits.masked_fill(logits < logits.topk(top_k, dim=-1).values[..., -1:], -torch.inf)
    logits = logits / temperature
    if top_p < 1:
        logits = logits.masked_fill(logits < _least_likely(logits, top_p), -torch.inf)
    return torch.log_softmax(logits, dim=-1)


@dataclass(frozen=True)
class Needs:
    """The work that a batch asks of `sample`, known on the host: each captured graph serves one of these."""

    greedy: bool = True  # some row has temperature 0
    drawing: bool = False  # some row has a temperature above 0
    largest_k: int = 0  # of all rows; 0: none has a top_k
    nucleus: bool = False  # some row has a top_p below 1
    penalty: bool = False  # some row penalises repetition
    log_probs: bool = False  # some row wants the log-probability of what was drawn


def needs_of(table: np.ndarray) -> Needs:
    """Return the needs of a table's rows."""
    numbers = table.view(np.float32)
    return Needs(
        greedy=bool((numbers[:, TEMPERATURE] == 0).any()),
        drawing=bool((numbers[:, TEMPERATURE] > 0).any()),
        largest_k=int(table[:, TOP_K].max()),
        nucleus=bool((numbers[:, TOP_P] < 1).any()),
        penalty=bool((numbers[:, PENALTY] != 1).any()),
        log_probs=bool(table[:, LOG_PROBS].any()),
    )


def note_tiles(table: np.ndarray, prompts: Sequence[tuple[Sequence[int], int]]) -> None:
    """Fill the columns of tiles. `prompts` has the rows that began a prompt together, and its length."""
    tiles = [
        (rows[n : n + TILE], length)
        for rows, length in prompts
        for n in range(0, len(rows), TILE)
        if len(rows) > n + 1
    ]
    most = programs_for_tiles(len(table))
    tiles = sorted(tiles, key=lambda tile: -len(tile[0]))[:most]
    members = [row for rows, _ in tiles for row in rows]
    table[:, SHARED:] = 0
    if not tiles:
        return
    table[: len(members), MEMBER] = members
    table[:, FIRST], table[:, TILES] = len(members), len(tiles)
    table[:, PARTS] = min(most // len(tiles), TILE_PARTS)
    begin = 0
    for number, (rows, length) in enumerate(tiles):
        table[number, FIRST], table[rows, SHARED] = begin, length
        begin += len(rows)


def programs_for_tiles(rows: int) -> int:
    """Return how many programs per head attend to what rows share: the most tiles × PARTS of a batch.

    Measured on an H200 with d12, d20 and d26, and 8, 32 and 128 samples of a prompt (LOG.md, 2026-12-01).
    """
    return 16 + rows // 4


def sample(
    logits_BV: Tensor, table: Tensor, needs: Needs, *, seen_BV: Tensor | None = None
) -> tuple[Tensor, Tensor | None]:
    """Return an id (B,) int64 for each row, -1 where logits are not finite, and log-probabilities if needed.

    A draw inverts the cumulative distribution at a uniform number from the row's seed and position. The
    log-probability is that of the distribution drawn from, or the model's own at temperature 0. Does not wait
    for the device.
    """
    logits_BV, numbers = logits_BV.float(), table.view(torch.float32)
    if needs.penalty and seen_BV is not None:  # as CTRL, https://arxiv.org/abs/1909.05858, section 4.1
        penalty_B1 = numbers[:, PENALTY, None]
        weaker_BV = torch.where(logits_BV > 0, logits_BV / penalty_B1, logits_BV * penalty_B1)
        logits_BV = torch.where(seen_BV, weaker_BV, logits_BV)
    likeliest_B = logits_BV.argmax(dim=-1) if needs.greedy else None
    if likeliest_B is not None and not needs.drawing and not needs.log_probs:
        return likeliest_B, None
    greedy_B = numbers[:, TEMPERATURE] == 0
    if needs.largest_k:
        largest_BK = logits_BV.topk(min(needs.largest_k, logits_BV.size(1)), dim=-1).values
        kth_B1 = largest_BK.gather(-1, (table[:, TOP_K, None].long() - 1).clamp(min=0))
        kth_B1 = torch.where(table[:, TOP_K, None] > 0, kth_B1, -torch.inf)
        logits_BV = logits_BV.masked_fill(logits_BV < kth_B1, -torch.inf)
    logits_BV = logits_BV / torch.where(greedy_B, 1.0, numbers[:, TEMPERATURE])[:, None]
    if needs.nucleus:
        logits_BV = logits_BV.masked_fill(
            logits_BV < _least_likely(logits_BV, numbers[:, TOP_P, None]), -torch.inf
        )
    log_probs_BV = torch.log_softmax(logits_BV, dim=-1)
    # A float64 sum loses no small probability. Apple's MPS has no float64, so the CPU draws for it
    device = logits_BV.device
    probabilities_BV = (log_probs_BV.cpu() if device.type == "mps" else log_probs_BV).exp()
    cumulative_BV = probabilities_BV.cumsum(dim=-1, dtype=torch.float64)
    total_B1 = cumulative_BV[:, -1:]
    point_B1 = uniforms(table.to(total_B1.device))[:, None] * total_B1
    drawn_B1 = torch.searchsorted(cumulative_BV, point_B1, right=True).clamp(max=logits_BV.size(1) - 1)
    ids_B = drawn_B1[:, 0].to(device)
    if likeliest_B is not None:
        ids_B = torch.where(greedy_B, likeliest_B, ids_B)
    log_probs_B = log_probs_BV.gather(-1, ids_B[:, None])[:, 0] if needs.log_probs else None
    return torch.where(total_B1[:, 0].isfinite().to(device), ids_B, -1), log_probs_B


def uniforms(table: Tensor) -> Tensor:
    """Return a float32 number in [0, 1) per row, from its seed and next position."""
    low_B, high_B = (table[:, SEED + word].long() for word in (0, 1))
    counter_B = table[:, POSITION].long() + 2
    hashed_B = (high_B << 32 | low_B & 0xFFFFFFFF) + counter_B * _signed(GOLDEN)  # modulo 2^64
    hashed_B = (hashed_B ^ _shifted(hashed_B, 30)) * _signed(MIX_1)
    hashed_B = (hashed_B ^ _shifted(hashed_B, 27)) * _signed(MIX_2)
    # 24 bits, which float32 holds exactly, so that no number rounds to 1
    return _shifted(hashed_B ^ _shifted(hashed_B, 31), 40).float() / 2**24


def _signed(number: int) -> int:
    return number - 2**64 if number >= 2**63 else number


def _shifted(numbers: Tensor, bits: int) -> Tensor:
    """Shift right and fill with zeros, as for unsigned numbers."""
    return numbers >> bits & (1 << 64 - bits) - 1


def _least_likely(logits: Tensor, top_p: Tensor | float) -> Tensor:
    """Return the smallest logit in the smallest set of tokens whose probabilities sum to top_p.

    Nucleus sampling, https://arxiv.org/abs/1904.09751
    """
    sorted_logits = logits.sort(dim=-1, descending=True).values
    probabilities = sorted_logits.softmax(dim=-1)
    more_likely = probabilities.cumsum(dim=-1) - probabilities
    return sorted_logits.masked_fill(more_likely >= top_p, torch.inf).amin(dim=-1, keepdim=True)
