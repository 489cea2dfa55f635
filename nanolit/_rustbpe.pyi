"""The Rust extension (rustbpe/): byte-pair merges at full speed."""

from collections.abc import Iterable

def train(texts: Iterable[str], *, pattern: str, num_tokens: int) -> list[bytes]:
    """Tokens in rank order, the 256 bytes first; fewer than `num_tokens` if the texts hold no more pairs."""
