"""The fixed validation rows of a corpus, dealt out by rows: the same tokens on any number of ranks.

Rows have an identity, so that only scores of the same rows are compared.
"""

import hashlib
from collections.abc import Iterator

import numpy as np
import torch

from nanolit.data.packing import Documents, Packing, make_packer
from nanolit.data.parquet import Corpus, read_texts
from nanolit.data.prepare import too_little_held_out
from nanolit.data.stream import CHUNK, as_micro_batches
from nanolit.tokenizer.bpe import Tokenizer

BUFFER = 1000  # documents to choose from, as in nanochat: its rows are nearly ours
LETTERS = 12  # of the checksum: 48 bits, enough to tell apart all validation sets anyone will ever make
NOTHING: list = []


class ValidationRows:
    """This rank's share of the held-out rows: `for ids_BT, targets_BT in rows`, again and again the same.

    The rows are packed from the held-out files in their order, from the beginning, until they hold
    `num_tokens` targets (None: as many as there are), and never wrap: where there are fewer, rank 0 says how
    many. Rank r has rows r, r + world, …, so that it may have one row fewer than another, and a last
    batch of fewer rows. Every rank packs all rows once, and keeps its own (2 or 4 bytes a token). `identity`
    says which rows these are, of all ranks: {"tokens", "rows", "checksum"}.

    Both best fits have the same rows, so that their bits per byte compare: cropped ones, but split ones of
    copies of own text, whose pieces may be much longer than a row.
    """

    def __init__(
        self,
        corpus: Corpus,
        tokenizer: Tokenizer,
        *,
        context: int,
        micro_batch: int,
        packing: Packing,
        num_tokens: int | None,
        rank: int = 0,
        world: int = 1,
    ) -> None:
        self.micro_batch = micro_batch
        # Bits per byte depend on the rows: a d8 read 1.2197 on 468 rows, 1.2111 on 640 of one file (LOG.md)
        if packing != "flat":
            packing = "bestfit_split" if corpus.content else "bestfit"
        wanted = None if num_tokens is None else max(1, num_tokens // context)
        documents = _documents(corpus, tokenizer)
        packer = make_packer(packing, capacity=context + 1, buffer=BUFFER, dtype=tokenizer.dtype)
        own: list[np.ndarray] = []
        rows = RowIdentity()
        while rows.num_rows != wanted and (row := packer.pack(lambda: next(documents, NOTHING))) is not None:
            if rows.num_rows % world == rank:
                own.append(row)
            rows.add(row)
        self.num_rows, self.num_tokens, self.identity = rows.num_rows, rows.num_tokens, rows.as_dict()
        self._rows_BT = np.stack(own) if own else np.empty((0, context + 1), dtype=np.uint16)
        if self.num_rows == 0:
            raise ValueError(too_little_held_out(corpus, context=context))
        if rank == 0 and num_tokens is not None and self.num_tokens < num_tokens - num_tokens % context:
            all_of_it = f"{self.num_tokens:,} tokens, all the held-out text of data={corpus.name}"
            print(f"validation: {all_of_it}, instead of {num_tokens:,}", flush=True)

    def __len__(self) -> int:
        """Batches of this rank."""
        return -(-len(self._rows_BT) // self.micro_batch)

    def __iter__(self) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        for start in range(0, len(self._rows_BT), self.micro_batch):
            rows_BT = self._rows_BT[start : start + self.micro_batch]
            yield from as_micro_batches(rows_BT, size=self.micro_batch, pin_memory=torch.cuda.is_available())


def _documents(corpus: Corpus, tokenizer: Tokenizer) -> Iterator[Documents]:
    """Yield the held-out documents one by one in the files' order, with BOS, encoded a chunk at a time."""
    number = 0
    for shard, group in corpus.validation_groups():
        texts = read_texts(shard, group)
        for start in range(0, len(texts), CHUNK):
            tokens, offsets = tokenizer.encode_flat(texts.slice(start, CHUNK), bos=True)
            for index in range(len(offsets) - 1):
                yield Documents([number], tokens, offsets[index : index + 2])
                number += 1


class RowIdentity:
    """Count rows and their learned tokens, and hash them: add every row of all ranks, in the global order.

    Padding is not part of a row, so that the checksum depends neither on ranks nor on the micro-batch. It is
    the same on every platform (32-bit little-endian ids), and costs 15 ms per million tokens on one core.
    """

    def __init__(self) -> None:
        self.num_rows = self.num_tokens = 0
        self._hash = hashlib.sha256()

    def add(self, ids: np.ndarray, keep: np.ndarray | None = None) -> None:
        """Add a row of T + 1 ids; `keep` (T,) says which of its T targets are learned (None: all)."""
        keep = np.ones(len(ids) - 1, dtype=bool) if keep is None else keep
        self.num_rows += 1
        self.num_tokens += int(keep.sum())
        self._hash.update(len(ids).to_bytes(4, "little"))
        self._hash.update(ids.astype("<i4").tobytes())
        self._hash.update(keep.astype(np.uint8).tobytes())

    def as_dict(self) -> dict[str, int | str]:
        """Return what is stored beside a score: tokens, rows and checksum."""
        checksum = self._hash.hexdigest()[:LETTERS]
        return {"tokens": self.num_tokens, "rows": self.num_rows, "checksum": checksum}
