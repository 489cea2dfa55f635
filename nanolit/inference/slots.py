"""The engine's slots: keys, values and smear state of every running text.

Row b of the batch uses slot b, so a decode step reads plain views and needs no page table. When a text ends,
the last row moves into its slot. Shapes: see model/gpt.py; R is the length of a layer's buffer.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from nanolit.model.accounting import window_sizes
from nanolit.model.gpt import GPT

GRAIN = 128  # capacities are multiples of this, so that a growing chat rarely needs new slots


class Slots:
    """Keys and values of at most `rows` texts of at most `capacity` positions each.

    A layer with window w keeps a ring of the last w + 1 positions: position p is at p mod R. At 2,048 tokens
    that saves d20 118 of 210 MB per row.
    """

    def __init__(self, model: GPT, *, rows: int, capacity: int) -> None:
        config, sizes = model.config, ring_sizes(model, capacity)
        self.rows, self.capacity = rows, _rounded(capacity)
        kinds = sorted(set(sizes))
        # One tensor for all layers of the same size: a row is copied by two operations, not by 2 L
        shapes = [(2, sizes.count(size), rows, size, config.kv_heads, model.head_dim) for size in kinds]
        # Zeros, because attention multiplies masked values by 0, and 0 · NaN is NaN
        self.buffers = [torch.zeros(s, dtype=model.compute_dtype, device=model.device) for s in shapes]
        places = [(kinds.index(size), sizes[:layer].count(size)) for layer, size in enumerate(sizes)]
        self.layers = [(self.buffers[kind][0, n], self.buffers[kind][1, n]) for kind, n in places]
        # Each row's last normalised embedding, which smear mixes into the next
        self.previous_BC = torch.zeros(rows, config.width, dtype=model.compute_dtype, device=model.device)
        self.drawn_B = torch.zeros(rows, dtype=torch.int64, device=model.device)  # each row's newest draw
        self.num_bytes = sum(buffer.nbytes for buffer in self.buffers)
        self.seen_BV: Tensor | None = None  # each text's tokens, once a request penalises repetition

    def copy_row(self, source: int, targets: slice, *, length: int) -> None:
        """Copy a text of `length` positions from one slot to others."""
        own = slice(source, source + 1)
        for buffer in self.buffers:
            used = min(length, buffer.size(3))
            buffer[:, :, targets, :used] = buffer[:, :, own, :used]
        for state in self._states():
            state[targets] = state[own]

    def adopt(self, other: "Slots", *, rows: int) -> None:
        """Copy the first `rows` slots of `other`, whose buffers are no longer than these."""
        for new, old in zip(self.layers, other.layers, strict=True):
            for mine, theirs in zip(new, old, strict=True):
                mine[:rows, : theirs.size(1)] = theirs[:rows]
        if other.seen_BV is not None:
            self.seen_BV = other.seen_BV.new_zeros(self.rows, other.seen_BV.size(1))
        for mine, theirs in zip(self._states(), other._states(), strict=True):
            mine[:rows] = theirs[:rows]

    def _states(self) -> list[Tensor]:
        return [state for state in (self.previous_BC, self.drawn_B, self.seen_BV) if state is not None]

    def take_out(self, row: int, *, length: int) -> list[Tensor]:
        """Return a copy of a slot, to keep a conversation between two turns."""
        return [keys_or_values[row, :length].clone() for pair in self.layers for keys_or_values in pair]

    def put_in(self, row: int, kept: list[Tensor]) -> None:
        """Fill a slot with a copy from `take_out`."""
        buffers = (keys_or_values for pair in self.layers for keys_or_values in pair)
        for buffer, content in zip(buffers, kept, strict=True):
            buffer[row, : len(content)] = content

    def note_prompts(self, prompts: Sequence[Sequence[int]], row: int, vocab_size: int) -> Tensor:
        """Mark the prompts' tokens as seen in slots `row` …, and return those slots' marks (B, V)."""
        device = self.drawn_B.device
        if self.seen_BV is None:
            self.seen_BV = torch.zeros(self.rows, vocab_size, dtype=torch.bool, device=device)
        self.seen_BV[row : row + len(prompts)] = False
        for place, prompt in enumerate(prompts, start=row):
            self.seen_BV[place, torch.tensor(prompt, device=device)] = True
        return self.seen_BV[row : row + len(prompts)]

    def places(
        self, layer: int, rows_B: Tensor, length: int, start: int, ends_B: Tensor
    ) -> tuple[Tensor, ...]:
        """Return the indices for `write`, the same for all layers of one size: slots, places there, sources.

        The prompts for slots rows_B have ends_B positions; those from `start` on are new, padded to `length`.
        Padding is not stored: in a ring it would overwrite positions that the row still sees.
        """
        size, device = self.layers[layer][0].size(1), ends_B.device
        kept, texts_B1 = min(size, length), torch.arange(len(ends_B), device=device)[:, None]
        source_BR = (ends_B[:, None] - start - kept + torch.arange(kept, device=device)).clamp(min=0)
        return rows_B[:, None], (start + source_BR) % size, texts_B1, source_BR

    def write(
        self,
        layer: int,
        k_BTKD: Tensor,
        v_BTKD: Tensor,
        rows: Tensor,
        to: Tensor,
        texts: Tensor,
        source: Tensor,
    ) -> None:
        """Store keys and values of prompts at the indices from `places`."""
        for buffer, new_BTKD in zip(self.layers[layer], (k_BTKD, v_BTKD), strict=True):
            buffer[rows, to] = new_BTKD[texts, source]

    def read(self, layer: int, rows_B: Tensor, end: int) -> tuple[Tensor, Tensor]:
        """Return the keys and values (B, S, K, D) that a layer still holds of positions before `end`."""
        keys, values = self.layers[layer]
        places = torch.arange(max(0, end - keys.size(1)), end, device=keys.device) % keys.size(1)
        return keys[rows_B[:, None], places], values[rows_B[:, None], places]


def ring_sizes(model: GPT, capacity: int) -> list[int]:
    """Return how many positions each layer keeps: `capacity`, or its window and the current one."""
    config, capacity = model.config, _rounded(capacity)
    windows = window_sizes(config.window_pattern, depth=config.depth, context=config.context)
    return [capacity if window is None else min(window + 1, capacity) for window in windows]


def row_bytes(model: GPT, capacity: int) -> int:
    """Return the bytes of one slot."""
    numbers = 2 * sum(ring_sizes(model, capacity)) * model.config.kv_heads * model.head_dim
    return numbers * model.compute_dtype.itemsize


def _rounded(capacity: int) -> int:
    return -(-capacity // GRAIN) * GRAIN
