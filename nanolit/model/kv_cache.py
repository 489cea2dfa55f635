"""What a model remembers of the text so far: keys and values of every layer, and what smear needs.

Fixed in size: asking for more than its capacity is an error, never silent growth. Shapes: see gpt.py.
"""

import torch
from torch import Tensor


class KVCache:
    """Keys and values of `rows` texts of one common `length`, at most `capacity` positions.

    A forward pass of the model appends its positions and moves `length` on. Memory:
    2 * layers * rows * capacity * kv_heads * head_dim numbers.
    """

    def __init__(
        self,
        *,
        layers: int,
        kv_heads: int,
        head_dim: int,
        rows: int,
        capacity: int,
        device: torch.device | str,
        dtype: torch.dtype,
    ):
        shape = (layers, rows, capacity, kv_heads, head_dim)
        self.keys_LBSKD = torch.zeros(shape, device=device, dtype=dtype)
        self.values_LBSKD = torch.zeros(shape, device=device, dtype=dtype)
        self.length = 0
        # The last position's normalised embedding, which smear mixes into the next one; None before any text.
        self.previous_B1C: Tensor | None = None

    @property
    def rows(self) -> int:
        return self.keys_LBSKD.size(1)

    @property
    def capacity(self) -> int:
        return self.keys_LBSKD.size(2)

    def check_room(self, rows: int, positions: int) -> None:
        """ValueError unless `positions` more of `rows` texts fit."""
        if rows != self.rows:
            raise ValueError(
                f"the cache holds {self.rows} rows but got {rows}; expand({rows}) it after one row"
            )
        if self.length + positions > self.capacity:
            raise ValueError(
                f"the cache holds {self.capacity} positions, {self.length} are used, {positions} more do not "
                f"fit; make it with capacity={self.length + positions} or more"
            )

    def append(self, layer: int, k_BTKD: Tensor, v_BTKD: Tensor) -> tuple[Tensor, Tensor]:
        """Store one layer's new keys and values; give that layer's keys and values of all positions so far.

        `length` stays as it is until `advance`, since every layer writes at the same place.
        """
        stop = self.length + k_BTKD.size(1)
        self.keys_LBSKD[layer, :, self.length : stop] = k_BTKD
        self.values_LBSKD[layer, :, self.length : stop] = v_BTKD
        return self.keys_LBSKD[layer, :, :stop], self.values_LBSKD[layer, :, :stop]

    def advance(self, positions: int) -> None:
        self.length += positions

    def expand(self, rows: int, *, capacity: int | None = None) -> "KVCache":
        """A new cache with this one's single row copied: read a prompt once, continue it in many ways."""
        if self.rows != 1:
            raise ValueError(f"only a cache of one row can be expanded; this one has {self.rows}")
        layers, _, _, kv_heads, head_dim = self.keys_LBSKD.shape
        expanded = KVCache(
            layers=layers,
            kv_heads=kv_heads,
            head_dim=head_dim,
            rows=rows,
            capacity=capacity or self.capacity,
            device=self.keys_LBSKD.device,
            dtype=self.keys_LBSKD.dtype,
        )
        expanded.check_room(rows, self.length)
        expanded.keys_LBSKD[:, :, : self.length] = self.keys_LBSKD[:, :, : self.length]
        expanded.values_LBSKD[:, :, : self.length] = self.values_LBSKD[:, :, : self.length]
        expanded.length = self.length
        if self.previous_B1C is not None:
            expanded.previous_B1C = self.previous_B1C.expand(rows, -1, -1)
        return expanded
