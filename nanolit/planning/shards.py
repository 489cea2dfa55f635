"""How much of a corpus is to be downloaded."""

from typing import Any


def download_gigabytes(dataset: Any, num_shards: int) -> float | None:
    """Return about how many GB the train shards and the held-out one are; None for a corpus that is here."""
    gigabytes = (num_shards + 1) * dataset.bytes_per_shard / 1e9
    return round(gigabytes, 1) if gigabytes else None
