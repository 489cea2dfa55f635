"""Documents cut into pieces, each to the side that its hash says, written in small row groups."""

import hashlib
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

GROUP_ROWS = 1024
# A row group has a 32nd of what was written before it, within these bytes: many groups in little text, which
# sixteen lanes share, and at most 4 MiB in much: a lane holds about four times its open one.
GROUP_BYTES = (32 << 10, 4 << 20)
FILE_BYTES = 256 << 20
REMEMBERED = 500_000  # pieces compared to find text that is there twice: their hashes take about 42 MB
TOLD_EVERY_SECONDS = 10.0
Document = Iterable[str | None]  # blocks of text, one after another
SIDES = ("train", "validation")


def pieces(document: Document, limit: int) -> Iterator[str]:
    """Cut a document into pieces of at most `limit` characters, after a paragraph, line, sentence or word."""
    rest = ""
    for block in document:
        text, start = rest + (block or ""), 0
        while len(text) - start > limit:
            stop = _cut(text, start + limit // 2, start + limit)
            yield text[start:stop]
            start = stop
        rest = text[start:]
    yield rest


def _cut(text: str, start: int, stop: int) -> int:
    for mark in ("\n\n", "\n", ". ", " "):
        if (at := text.rfind(mark, start, stop)) >= 0:
            return at + len(mark)
    return stop


@dataclass
class Part:
    """Documents, bytes and shards written for one side of one source."""

    documents: int = 0
    bytes: int = 0
    shards: list[str] = field(default_factory=list)


class PieceWriter:
    """Write sources to shards in `folder`, a `held_out_fraction` of the pieces of train files to validation.

    The side is a hash of the piece, so that equal pieces never straddle and the order of files is nothing.
    `without_text`, `pieces` and `repeated` count, and `digest` hashes all that was written.
    """

    def __init__(self, folder: Path, *, piece: int, held_out_fraction: float) -> None:
        self.folder, self.piece, self.threshold = folder, piece, held_out_fraction * 2**64
        self.without_text = self.pieces = self.repeated = 0
        self.digest = hashlib.blake2b(digest_size=16)
        self._seen: Counter[bytes] = Counter()
        self._held_out: set[bytes] = set()  # though their hash does not say so
        self._bytes, self._told = 0, time.monotonic()

    def write(self, read: dict[str, Iterator[Document]], number: int) -> dict[str, Part]:
        """Write the documents of source `number`, by side; with a fraction, at least a piece is held out.

        But none is where all that is left to write has copies that are written already.
        """
        shards = {side: _Shards(self.folder, f"{side}-{number:02}") for side in SIDES}
        for side, documents in read.items():
            for document in documents:
                empty = True
                for text in pieces(document, self.piece):
                    if text.strip():
                        empty = False
                        shards[self._side(side, text)].add(text)
                self.without_text += empty
        train, held_out = shards["train"], shards["validation"]
        if self.threshold and not held_out.part.documents:
            for text in train.take_last(lambda text: self._seen[_key(text)]):
                held_out.add(text)
                self._held_out.add(_key(text))
        return {side: one.close() for side, one in shards.items()}

    def _side(self, side: str, text: str) -> str:
        key = _key(text)
        self.pieces += 1
        self.repeated += key in self._seen
        if key in self._seen or len(self._seen) < REMEMBERED:
            self._seen[key] += 1
        if side == "train" and (int.from_bytes(key) < self.threshold or key in self._held_out):
            side = "validation"
        self.digest.update(side.encode() + key)
        self._bytes += len(text.encode())
        if time.monotonic() - self._told >= TOLD_EVERY_SECONDS:
            self._told = time.monotonic()
            print(f"  data: {self._bytes / 1e6:,.0f} MB of text so far", flush=True)
        return side


def _key(text: str) -> bytes:
    return hashlib.blake2b(text.encode(), digest_size=8).digest()


class _Shards:
    """Parquet files of one side of one source, begun when they get their first text."""

    def __init__(self, folder: Path, name: str) -> None:
        self.folder, self.name = folder, name
        self.part = Part()
        self._texts: list[str] = []
        self._group = self._file = 0  # bytes in the open row group, and in the open file
        self._writer = None

    def add(self, text: str) -> None:
        low, high = GROUP_BYTES
        if self._group >= max(low, min(high, self.part.bytes // 32)) or len(self._texts) == GROUP_ROWS:
            self._flush()
        self._texts.append(text)
        self._count(1, len(text.encode()))

    def take_last(self, copies: Callable[[str], int]) -> list[str]:
        """Take back the last text whose copies are all in the open row group, with them; [] if there is none.

        `copies` says how often a text is there in all. The group is written when the next text comes.
        """
        for text in reversed(self._texts):
            taken = [other for other in self._texts if other == text]
            if len(taken) == copies(text) < self.part.documents:
                self._texts = [other for other in self._texts if other != text]
                self._count(-len(taken), -len(taken) * len(text.encode()))
                return taken
        return []

    def _count(self, documents: int, num_bytes: int) -> None:
        self.part.documents += documents
        self.part.bytes += num_bytes
        self._group += num_bytes

    def _flush(self) -> None:
        import pyarrow as pa
        import pyarrow.parquet as pq

        schema = pa.schema({"text": pa.large_string()})
        if self._writer is None:
            self.part.shards.append(f"{self.name}-{len(self.part.shards):05}.parquet")
            path = self.folder / self.part.shards[-1]
            options = {"compression": "zstd", "use_dictionary": False, "write_statistics": False}
            # A third of all single flipped bits would be read as other text, and nobody told
            self._writer = pq.ParquetWriter(path, schema, write_page_checksum=True, **options)
        self._writer.write_table(pa.table([pa.array(self._texts, pa.large_string())], schema))
        self._file += self._group
        self._texts, self._group = [], 0
        if self._file >= FILE_BYTES:
            self._finish_file()

    def _finish_file(self) -> None:
        if self._writer is not None:
            self._writer.close()
        self._writer, self._file = None, 0

    def close(self) -> Part:
        if self._texts:
            self._flush()
        self._finish_file()
        return self.part
