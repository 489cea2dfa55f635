"""Tokens of train shards on disk: a text is tokenized once for many epochs or runs.

A file holds a shard: its documents' tokens (uint16 or uint32) one after another, then int64 offsets, one more
than documents, then a checksum of each row group. It gets its name when it is whole, from what it
depends on: shard, text column, tokenizer.
"""

import hashlib
import json
import time
import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from nanolit.data.parquet import Shard, read_texts
from nanolit.machine.locks import held
from nanolit.machine.paths import remove_leftovers, whole_or_absent
from nanolit.tokenizer.bpe import Tokenizer

FORMAT = 2
OFFSET, CHECKSUM = np.dtype(np.int64), np.dtype(np.uint32)


class TokenCache:
    """The tokens of these shards' documents, BOS first, as `Tokenizer.encode_flat` gives them.

    Files that are missing are made here: by one process at a time, while others wait for it. ValueError
    where the disk doesn't take them.
    """

    def __init__(self, folder: Path, shards: Sequence[Shard], tokenizer: Tokenizer) -> None:
        self.dtype, self.vocab_size = np.dtype(tokenizer.dtype), tokenizer.vocab_size
        self._paths = {shard.path: folder / _file_name(shard, tokenizer) for shard in shards}
        missing = [shard for shard in shards if not self._is_whole(shard)]
        if not missing:
            return
        folder.mkdir(parents=True, exist_ok=True)
        for number, shard in enumerate(missing, start=1):
            with held(folder / ".lock", wait=True):
                remove_leftovers(folder)
                if self._is_whole(shard):  # another job was faster
                    continue
                begun = time.perf_counter()
                num_tokens = self._make(shard, tokenizer)
            print(
                f"  cache: {shard.path.name}, {num_tokens:,} tokens in {time.perf_counter() - begun:,.0f} s "
                f"({number} of {len(missing)})",
                flush=True,
            )

    def tokens(self, shard: Shard, group: int) -> tuple[np.ndarray, np.ndarray]:
        """Return the tokens of a row group's documents, and each document's offset in them.

        They are read, not mapped: a mapped file that shrinks ends the process by SIGBUS.
        """
        path = self._paths[shard.path]
        before, count = sum(shard.group_sizes[:group]), shard.group_sizes[group]
        end = path.stat().st_size - _index_bytes(shard)  # of the tokens
        offsets = np.fromfile(path, OFFSET, count=count + 1, offset=max(end + before * OFFSET.itemsize, 0))
        first, last = (int(offsets[0]), int(offsets[-1])) if len(offsets) == count + 1 else (0, -1)
        if 0 <= first <= last <= end // self.dtype.itemsize:
            tokens = np.fromfile(path, self.dtype, count=last - first, offset=first * self.dtype.itemsize)
            at = end + _index_bytes(shard) - (len(shard.group_sizes) - group) * CHECKSUM.itemsize
            stated = np.fromfile(path, CHECKSUM, count=1, offset=at).tolist()
            offsets -= first
            # An id beyond the vocabulary would end a GPU's process
            if stated == [_checksum(tokens, offsets)] and tokens.max(initial=0) < self.vocab_size:
                return tokens, offsets
        raise ValueError(f"{path} is damaged or was changed: delete it, and it is made again")

    def _is_whole(self, shard: Shard) -> bool:
        """Tell whether the file is there, its offsets rise, and it is as long as the last one says."""
        path, num_offsets = self._paths[shard.path], sum(shard.group_sizes) + 1
        start = path.stat().st_size - _index_bytes(shard) if path.is_file() else -1
        if start < 0:
            return False
        ends = np.fromfile(path, OFFSET, count=num_offsets, offset=start)
        return ends[0] == 0 and start == ends[-1] * self.dtype.itemsize and bool((np.diff(ends) > 0).all())

    def _make(self, shard: Shard, tokenizer: Tokenizer) -> int:
        """Tokenize the shard a row group at a time, under a temporary name until the file is whole."""
        path = self._paths[shard.path]
        try:
            with whole_or_absent(path) as temporary, temporary.open("wb") as file:
                ends, checksums = [np.zeros(1, OFFSET)], np.zeros(len(shard.group_sizes), CHECKSUM)
                for group, size in enumerate(shard.group_sizes):
                    if not size:
                        continue
                    texts = read_texts(shard, group)
                    tokens, offsets = tokenizer.encode_flat(texts, bos=True)
                    file.write(tokens.tobytes())
                    checksums[group] = _checksum(tokens, offsets)
                    ends.append(offsets[1:] + ends[-1][-1])
                file.write(np.concatenate(ends).tobytes() + checksums.tobytes())
        except OSError as error:
            raise ValueError(
                f"{path} cannot be written ({error.strerror}): the cache takes {self.dtype.itemsize} bytes "
                "per token; free some space, or give data.cache=false"
            ) from error
        return int(ends[-1][-1])


def _checksum(tokens: np.ndarray, offsets: np.ndarray) -> int:
    """Return the CRC-32 of a row group: of a flipped bit most ids are ids, which would be trained on."""
    return zlib.crc32(offsets.astype(OFFSET).data, zlib.crc32(tokens.data))


def _index_bytes(shard: Shard) -> int:
    """Return the size of what follows the tokens."""
    return (sum(shard.group_sizes) + 1) * OFFSET.itemsize + len(shard.group_sizes) * CHECKSUM.itemsize


def _file_name(shard: Shard, tokenizer: Tokenizer) -> str:
    """Return the shard's name and a hash of all that its tokens depend on."""
    status = shard.path.stat()
    depends = [FORMAT, tokenizer.hash, shard.text_column, status.st_size, status.st_mtime_ns]
    content = json.dumps([*depends, shard.group_sizes, shard.group_bytes])
    return f"{shard.path.stem}-{hashlib.sha256(content.encode()).hexdigest()[:16]}.tokens"
