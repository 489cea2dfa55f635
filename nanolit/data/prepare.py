"""Own text, of whatever format, written once as parquet shards below the root: what the stream reads.

The shards lie in a folder named by their sources (paths, sizes, times), which appears whole or not at all;
its `manifest.json` says what was read, passed over and split. Documents longer than a piece are cut, and row
groups are small: neither this nor training needs more memory where text is longer.
"""

import hashlib
import itertools
import json
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, get_type_hints

from typing_extensions import TypedDict

from nanolit.data.formats import documents, hub_documents
from nanolit.data.parquet import Corpus, open_shard, read_texts, validation_texts
from nanolit.data.pieces import REMEMBERED, Document, Part, PieceWriter
from nanolit.data.sources import HUB, PLAIN, Files, compression_of, find_files, kind_of, side_of
from nanolit.machine.locks import held
from nanolit.machine.numbers import listed
from nanolit.machine.paths import expanded, read_json, remove, write_json

FORMAT = 1
MANIFEST = "manifest.json"
# A piece is a 256th of the text within these characters, so that a single book too has pieces to shuffle, to
# deal to sixteen lanes and to hold out; 32,768 are about 8,000 tokens, four rows of 2,048. Untuned.
PIECE = (2_048, 32_768)
# Held out is a twentieth; more of little text, to fill a few rows, at most a fifth; less of a GB or more.
HELD_OUT_BYTES = 64 << 10
MUCH_BYTES = 1 << 30
EXPANSION = 3.5  # of compressed text, about
# Parquet in row groups up to this size, and of documents up to this average, is read where it lies.
LARGEST_GROUP = 8 << 20
LARGEST_AVERAGE = 128 << 10
Found = Mapping[str, Files | None]  # by source; None: on the hub


typed_dict: Any = TypedDict  # called with fields that only the dataclass knows


class StoredPart(TypedDict):
    """A `Part` in the manifest."""

    documents: int
    bytes: int
    shards: list[str]


class Source(TypedDict):
    """A source in the manifest."""

    name: str
    files: list[str]
    passed_over: list[str]
    train: StoredPart
    validation: StoredPart


@dataclass(kw_only=True)
class Manifest:
    """By source its name, files, what was passed over and what was written; counts over all of them."""

    format: int
    sources: list[Source]
    piece: int
    held_out_fraction: float  # 0: the sources name what is held out
    without_text: int
    pieces: int
    repeated: int
    content: str  # a hash of all that was written

    def parts(self, side: str) -> list[Part]:
        return [
            Part(**{key: source[side][key] for key in StoredPart.__annotations__}) for source in self.sources
        ]

    def times(self, weights: Sequence[float] | None) -> tuple[float, ...]:
        """Return how often an epoch has each train file, so that the sources' bytes are as `weights`."""
        if len(self.sources) == 1:
            return ()
        parts = self.parts("train")
        if weights and len(weights) != len(parts):
            raise ValueError(
                f"the {MANIFEST} of the copied text has {len(parts)} sources instead of {len(weights)}; "
                "delete data/local in the root folder, and it is copied again"
            )
        shares = [w / max(part.bytes, 1) for w, part in zip(weights or [1] * len(parts), parts, strict=True)]
        least = min(shares)
        times = [share / least if weights else 1.0 for share in shares]
        return tuple(t for t, part in zip(times, parts, strict=True) for _ in part.shards)

    def summary(self) -> str:
        """Return what was read, passed over, split and is there twice, in one sentence."""
        (documents, size), (held_out, held_out_size) = (
            (sum(part.documents for part in parts), sum(part.bytes for part in parts))
            for parts in map(self.parts, ("train", "validation"))
        )
        count = sum(len(source["files"]) for source in self.sources)
        names = " and ".join(source["name"] for source in self.sources)
        text = f"{count:,} file{'s' * (count != 1)} of {names}" if count else names
        if passed := [name for source in self.sources for name in source["passed_over"]]:
            text += f", {len(passed):,} skipped ({listed(passed)})"
        text += f"; {documents:,} documents, {size / 1e6:,.2f} MB, and {held_out:,} held out"
        if self.held_out_fraction:
            text += f" by their hash ({held_out_size / max(1, size + held_out_size):.1%})"
        if self.repeated:
            of = f" of the first {REMEMBERED:,} distinct ones" if self.pieces > REMEMBERED else ""
            text += f"; duplicates: {self.repeated:,} repeat an earlier one{of}"
        if self.without_text:
            text += f"; {self.without_text:,} without text left out"
        return text


STORED = typed_dict("Stored", get_type_hints(Manifest))


def find(sources: Sequence[str], validation: str | None) -> Found:
    """Return the files of each source; ValueError names one that has none."""
    local = [source for source in sources if not source.startswith(HUB)]
    found = find_files([expanded(source) for source in local], validation=validation)
    return dict.fromkeys(sources) | dict(zip(local, found, strict=True))


def fits_as_it_is(found: Found, text_column: str) -> bool:
    """Tell whether the only source is parquet that needs no copy.

    Something is held out, no row group is large, and every row has text: a copy leaves out the others.
    """
    files = next(iter(found.values()))
    if len(found) > 1 or files is None or not files.held_out:
        return False
    every = [*files.train, *files.held_out]
    if any(kind_of(file) != ".parquet" for file in every):
        return False
    shards = [open_shard(file, text_column) for file in every]
    groups = [pair for shard in shards for pair in zip(shard.group_bytes, shard.group_sizes, strict=True)]
    small = (size <= LARGEST_GROUP and size <= LARGEST_AVERAGE * max(1, rows) for size, rows in groups)
    return all(small) and not any(shard.nulls for shard in shards)


def prepared(found: Found, folder: Path, *, text_column: str) -> Path:
    """Return the folder of the sources' shards below `folder`, written if they are not there yet."""
    key = json.dumps(
        [FORMAT, text_column, [[source, files and stamps(files)] for source, files in found.items()]]
    )
    place = folder / hashlib.sha256(key.encode()).hexdigest()[:12]
    if (place / MANIFEST).is_file():
        return place
    partial = folder / f".{place.name}.partial"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with held(folder / f".{place.name}.lock", wait=True):  # another process may be writing them
            if not (place / MANIFEST).is_file():
                shutil.rmtree(partial, ignore_errors=True)  # of a process that was killed
                partial.mkdir()
                try:
                    write_json(partial / MANIFEST, asdict(_write(found, partial, text_column)))
                    remove(place)  # that has lost its manifest
                    partial.replace(place)
                finally:
                    shutil.rmtree(partial, ignore_errors=True)
    except OSError as error:
        raise ValueError(
            f"{folder} cannot be written ({error.strerror or error}): it takes a compressed copy of your "
            "text; free some space, or give another root=…"
        ) from error
    return place


def read_manifest(folder: Path) -> Manifest:
    content = read_json(folder / MANIFEST, STORED, remedy=f"delete {folder}, and it is written again")
    return Manifest(**{key: content[key] for key in get_type_hints(Manifest)})


def stamps(files: Files) -> list[list[str | int]]:
    """Return name, size and time of each file, the held-out ones marked: what a copy depends on."""
    sides = [(files.train, False), (files.held_out, True)]
    every = [(file, file.stat(), is_held_out) for some, is_held_out in sides for file in some]
    return [
        [files.relative(file), status.st_size, status.st_mtime_ns, is_held_out]
        for file, status, is_held_out in every
    ]


def estimated_bytes(files: Iterable[Path], text_column: str, *, enough: float = float("inf")) -> int:
    """Return about how many bytes of text the files hold, counted until there are `enough`."""
    total = 0.0
    for file in files:
        if kind_of(file) == ".parquet":
            total += sum(open_shard(file, text_column).group_bytes)
        else:
            total += file.stat().st_size * (EXPANSION if compression_of(file) else 1)
        if total >= enough:
            break
    return int(total)


def usual_document_bytes(files: Sequence[Path], text_column: str) -> float:
    """Return the length of the document that an average byte is in, from a few documents of a few files."""
    lengths: list[int] = []
    for file in files[:: -(-len(files) // 8)]:
        if kind_of(file) in PLAIN:
            lengths.append(estimated_bytes([file], text_column))
            continue
        few = itertools.islice(documents(file, text_column), 32)
        lengths += [sum(len(block) for block in document if block) for document in few]
    return sum(length * length for length in lengths) / max(1, sum(lengths))


def _write(found: Found, folder: Path, text_column: str) -> Manifest:
    """Write all sources' shards into `folder`, and return what its manifest says."""
    hubs = {name: hub_documents(name, text_column) for name, files in found.items() if files is None}
    train = [file for files in found.values() if files for file in files.train]
    # How much the hub has isn't known before it is read
    estimate = MUCH_BYTES - 1 if hubs else estimated_bytes(train, text_column)
    named = any(files.held_out for files in found.values() if files)
    named = named or any(side_of(split) == "validation" for splits in hubs.values() for split in splits)
    writer = PieceWriter(
        folder,
        piece=max(PIECE[0], min(PIECE[1], estimate // 256)),
        held_out_fraction=0 if named else held_out_fraction(estimate),
    )
    entries = []
    for number, (source, files) in enumerate(found.items()):
        print(f"  data: reading {source}", flush=True)
        if files:
            names, passed = [str(name) for name, *_ in stamps(files)], list(files.passed_over)
            read = {"train": files.train, "validation": files.held_out}
            read = {side: _of_files(some, text_column) for side, some in read.items()}
        else:
            splits = hubs[source]
            names, passed = [], [split for split in splits if side_of(split) is None]
            read = {side: _of_splits(splits, side) for side in ("train", "validation")}
        parts = {side: asdict(part) for side, part in writer.write(read, number).items()}
        if not parts["train"]["documents"]:
            if named or not parts["validation"]["bytes"]:
                raise ValueError(f"{source} holds no text to train on; add text")
            size = f"all of its {parts['validation']['bytes']:,} bytes would be held out"
            raise ValueError(f"{source} is too small: {size}; give about {2 * PIECE[0]:,} bytes or more")
        entries.append({"name": source, "files": names, "passed_over": passed, **parts})
    return Manifest(
        format=FORMAT,
        sources=entries,
        piece=writer.piece,
        held_out_fraction=0 if named else held_out_fraction(estimate),
        without_text=writer.without_text,
        pieces=writer.pieces,
        repeated=writer.repeated,
        content=writer.digest.hexdigest(),
    )


def held_out_fraction(num_bytes: int) -> float:
    """Return the part of a text of that size that is held out where no name says what is."""
    return 0.005 if num_bytes >= MUCH_BYTES else max(0.05, min(0.2, HELD_OUT_BYTES / max(1, num_bytes)))


def check_held_out(corpus: Corpus, *, context: int) -> None:
    """ValueError if the held-out text cannot fill a row, whatever the tokenizer: a token has a byte or more.

    Reads no more of it than that takes.
    """
    sizes = (len(text.encode()) + 1 for text in validation_texts(corpus))  # each begins with its BOS
    if not any(total > context for total in itertools.accumulate(sizes)):
        raise ValueError(too_little_held_out(corpus, context=context))


def too_little_held_out(corpus: Corpus, *, context: int) -> str:
    """Return the error for held-out text that does not fill a row: how much there is, and what helps."""
    held_out = sum(len(text.encode()) for text in validation_texts(corpus))
    row = f"don't fill one row of {context + 1} tokens"
    if not corpus.held_out_fraction:
        return (
            f"the {held_out:,} bytes of held-out text of data={corpus.name} {row}; hold out more text, or "
            "choose a smaller context"
        )
    train = (read_texts(shard, group).to_pylist() for shard, group in corpus.train_groups())
    size = held_out + sum(len(text.encode()) for texts in train for text in texts)
    # Two pieces, and a row of the largest part that is held out, in a small vocabulary's tokens
    enough = max(2 * PIECE[0], round(context * 2.5 / 0.2), 2 * size if held_out > context else 0)
    why, remedy = f"none of its {size:,} bytes can be held out", ""
    if held_out:
        why = f"{held_out:,} of its {size:,} bytes are held out, and {row}"
        remedy = ", or choose a smaller context"
    return f"the text of data={corpus.name} is too small: {why}; give about {enough:,} bytes or more{remedy}"


def _of_files(files: Iterable[Path], text_column: str) -> Iterator[Document]:
    return itertools.chain.from_iterable(documents(file, text_column) for file in files)


def _of_splits(splits: Mapping[str, Iterator[Document]], side: str) -> Iterator[Document]:
    return itertools.chain.from_iterable(rows for split, rows in splits.items() if side_of(split) == side)
