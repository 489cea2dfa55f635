"""The pretraining stream: parquet row groups to the micro-batches of one optimizer step.

Step s is a function of (data, tokenizer, seed, s) alone: not of the number of ranks, nor of the micro-batch.
The rows of a step come from `lanes`; each lane owns row groups and a packing buffer, and each rank owns
lanes. The position after a step travels with it, so a run resumes exactly. Three layers of threads run ahead
of training: `__iter__` waits for `_steps` (one thread), which collects from `_lanes` (`threads` of them).
"""

import math
import threading
import time
from collections import deque
from collections.abc import Generator, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing
from dataclasses import KW_ONLY, dataclass
from typing import Any, Literal, TypeVar

import numpy as np
import torch

from nanolit.data.cache import TokenCache
from nanolit.data.packing import Documents, Packer, Packing, make_packer
from nanolit.data.parquet import Corpus, Shard
from nanolit.data.sequence import DocumentSequence
from nanolit.machine.device import IGNORED
from nanolit.machine.numbers import divisors, listed
from nanolit.machine.system import ENCODERS
from nanolit.tokenizer.bpe import Tokenizer

FORMAT = 1
# A lane is a fixed sixteenth of the data and of every step's rows. If each rank read its own part instead,
# the rows would depend on the number of ranks, as in nanochat: another machine would train on other text, and
# a run couldn't resume there. 16 serve 1, 2, 4, 8 or 16 ranks; more lanes would hold more documents. Untuned.
LANES = 16
# Documents that a lane holds to choose from: 16 lanes hold as many as one rank of nanochat (1,000).
BUFFER = 64
# Documents encoded at once: enough to make calls rare, few enough that no step waits for a whole row group.
CHUNK = 128
# Documents drawn whenever a lane holds fewer than its buffer, as a multiple of it. A text longer than a row
# is placed only when nothing fits, so that these fill the buffer: fresh ones must come by the batch for one
# to fit. One at a time crops 46% at T = 2,048 over 92M tokens, 128 crop 32%; nanochat draws 128. See LOG.md.
DRAWN_BUFFERS = 2
# Documents drawn at a time for best-fit splitting, where long ones never fill the buffer: few, so that long
# and short ones alternate within a lane. 1 to 128 drop the same; fewer are more calls.
SPLIT_DRAWN = 8
# What each thread of the encoder remembers, at most (rustbpe/src/encoder.rs).
REMEMBERED_BYTES = 128 << 20
PREFETCHED = 2  # steps that a stream is ahead of training
# A lane of little text holds at most this part of its documents: the held ones are the longest, for epochs.
LARGEST_BUFFER_FRACTION = 0.05

Item = TypeVar("Item")
Part = tuple[np.ndarray, dict, float]  # a lane's rows of T + 1 tokens, then its state and its epochs


@dataclass(frozen=True, kw_only=True)
class Step:
    """One rank's part of one optimizer step, and the loader's unit: one item is one step.

    micro_batches: (ids_BT, targets_BT), int64, pinned where there is CUDA; every target is learned.
    num_tokens: learned tokens of the step, over all ranks.
    position: where the stream stands after this step (JSON); with those of all ranks `load_position` resumes.
    epoch: how often this rank's lanes went through their documents, on average; held ones aren't counted.
    cropped_fraction: of the tokens placed or cropped so far, those that packing cropped; this rank's lanes.
    """

    micro_batches: list[tuple[torch.Tensor, torch.Tensor]]
    num_tokens: int
    position: dict
    epoch: float
    cropped_fraction: float


class PretrainStream:
    """Endless optimizer steps of this rank: `for step in stream`.

    `rows` (a step's, over all ranks) are dealt to the lanes in equal, contiguous shares, and the lanes to the
    ranks likewise. There are `lanes`, or fewer if a step has fewer rows or the data fewer row groups.
    Iterating again continues after the last step taken. With a `cache` of the same shards and tokenizer
    nothing is tokenized; the rows are the same.

    Host memory of a rank is bounded, see `memory_bound`: no part of it grows with the data.
    """

    def __init__(
        self,
        corpus: Corpus,
        tokenizer: Tokenizer,
        *,
        context: int,
        rows: int,
        micro_batch: int,
        seed: int,
        packing: Packing,
        lanes: int = LANES,
        buffer: int = BUFFER,
        rank: int = 0,
        world: int = 1,
        threads: int = ENCODERS,
        cache: TokenCache | None = None,
    ) -> None:
        self.context, self.rows, self.micro_batch = context, rows, micro_batch
        self._pin_memory = torch.cuda.is_available()
        groups, fingerprint = corpus.train_groups(), corpus.fingerprint
        if len(groups) < world:
            raise ValueError(too_little(corpus.name, len(groups), world=world))
        self.lanes = num_lanes(lanes, rows=rows, groups=len(groups))
        self._own = _own_lanes(self.lanes, rank=rank, world=world)
        check_micro_batch(micro_batch, rows // world)
        self._groups, self._seed = groups, seed
        self._tokenizer, self._threads, self._cache = tokenizer, threads, cache
        self._source = {"data": fingerprint, "tokenizer": tokenizer.hash, "seed": seed, "lanes": self.lanes}
        self._packing, self._most_held = packing, buffer
        # Of own text alone: shipped text and the hub's is even by documents, and keeps its order
        self._deal(by="bytes" if corpus.summary else "documents")
        self._make_packer()  # an unknown packing is refused now, not on the thread
        self._position: dict | None = None
        self.waited_seconds = 0.0  # spent waiting for steps, the first excluded

    def _deal(self, *, by: Literal["bytes", "documents"]) -> None:
        self._shares = deal(self._groups, self.lanes, by=by)
        smallest = min(sum(shard.group_sizes[group] for shard, group in share) for share in self._shares)
        self.buffer = max(1, min(self._most_held, int(smallest * LARGEST_BUFFER_FRACTION)))
        self.drawn = SPLIT_DRAWN if self._packing == "bestfit_split" else DRAWN_BUFFERS * self.buffer
        self._packer = {"packing": self._packing, "capacity": self.context + 1, "buffer": self.buffer}
        # Everything that decides which rows a step has; a resumed run must agree in all of it
        self._identity = {**self._source, "drawn": self.drawn, **self._packer}
        if by == "bytes":
            self._identity["dealt"] = by

    def __len__(self) -> int:
        """Return a length without end: Lightning skips a batch when it resumes a loader without one."""
        return 10**9

    def memory_bound(self) -> int:
        """Return the most bytes of host memory that this rank's stream takes, the encoder's memory included.

        For each of its lanes: the text of a row group four times over (compressed, read, a chunk of it
        shuffled and encoded), and `buffer` + `drawn` held documents of at most a row; where they are split,
        `drawn` of them may be longer, up to all of their row groups. For all: three steps of ids as they are
        encoded, PREFETCHED + 2 of 16 bytes a token. For each thread: the words that the encoder remembers.
        """
        width = np.dtype(self._tokenizer.dtype).itemsize
        row = (self.context + 1) * width
        text = max(num_bytes for shard, _ in self._groups for num_bytes in shard.group_bytes)
        rows = self.rows * len(self._own) // self.lanes
        split = self._packer["packing"] == "bestfit_split"
        smallest = min(shard.group_sizes[group] for shard, group in self._groups)
        long = min(self.drawn, 1 + math.ceil(self.drawn / smallest)) * text * width if split else 0
        return (
            len(self._own) * (4 * text + (self.buffer + self.drawn) * row + long)
            + rows * (3 * row + (PREFETCHED + 2) * 16 * self.context)
            + self._threads * REMEMBERED_BYTES
        )

    def load_position(self, positions: Sequence[Mapping]) -> None:
        """Continue after the step that these positions came with: those of all ranks that saved it.

        The number of ranks may have changed. Raises ValueError if anything the order depends on has.
        """
        if all("dealt" not in position.get("identity", {}) for position in positions):
            self._deal(by="documents")  # as when that run began: a row's documents stay the same
        lanes: dict[str, dict] = {}
        for position in positions:
            check_position(position, self._identity)
            lanes.update(position["lanes"])
        if len(lanes) != self.lanes or len({position["step"] for position in positions}) != 1:
            raise ValueError(
                f"the stream resumes from the positions of all ranks after the same step; got steps "
                f"{[position['step'] for position in positions]} with {len(lanes)} of {self.lanes} lanes"
            )
        needed = {"next", *self._make_packer().state()} - {"starts"}  # of rows before documents were split
        if lanes.keys() != {str(n) for n in range(self.lanes)} or any(
            needed - p.keys() for p in lanes.values()
        ):
            raise ValueError("the stream's position lacks part of a lane; delete its checkpoint")
        own = {str(n): lanes[str(n)] for n in self._own}
        self._position = {**positions[0], "lanes": own}

    def __iter__(self) -> Iterator[Step]:
        # The position is taken from the step that is handed out. Asking the threads would give one that is
        # steps ahead: they prefetch, and Lightning holds a batch back as well.
        with closing(ahead(self._steps(self._position), depth=PREFETCHED)) as steps:
            step = next(steps)  # the first one includes opening files and filling buffers: not counted
            while True:
                self._position = step.position
                yield step
                begun = time.perf_counter()
                step = next(steps)
                self.waited_seconds += time.perf_counter() - begun

    def _steps(self, position: dict | None) -> Iterator[Step]:
        """Make the steps after `position`; runs on a thread, and the lanes on `threads` more."""
        num_steps = position["step"] if position else 0
        workers = min(self._threads, len(self._own))
        with ExitStack() as stack:
            shares = [
                stack.enter_context(closing(ahead(self._lanes(numbers, position), depth=1)))
                for numbers in (self._own[n::workers] for n in range(workers))
            ]
            while True:
                num_steps += 1
                # In order of lanes, whichever thread was first: rows must not depend on timing
                lanes = dict(sorted(part for share in shares for part in next(share).items()))
                rows, states, used = zip(*lanes.values(), strict=True)
                kept, cropped = (sum(state[key] for state in states) for key in ("num_kept", "num_cropped"))
                yield Step(
                    micro_batches=as_micro_batches(
                        np.concatenate(rows), size=self.micro_batch, pin_memory=self._pin_memory
                    ),
                    num_tokens=self.rows * self.context,
                    position={
                        "format": FORMAT,
                        "step": num_steps,
                        "identity": self._identity,
                        "lanes": dict(zip(map(str, lanes), states, strict=True)),
                    },
                    epoch=sum(used) / len(lanes),
                    cropped_fraction=cropped / (kept + cropped),
                )

    def _lanes(self, numbers: Sequence[int], position: dict | None) -> Iterator[dict[int, Part]]:
        """Make these lanes' part of each step after `position`; runs on a thread of their own."""
        workers = min(self._threads, len(self._own))
        lanes: dict[int, _Lane] = {}
        for number in numbers:
            lane = _Lane(
                DocumentSequence(self._shares[number], lane=number, seed=self._seed),
                self._tokenizer,
                self._make_packer(),
                drawn=self.drawn,
                threads=max(1, self._threads // workers),
                cache=self._cache,
            )
            if position:
                lane.load_state(position["lanes"][str(number)])
            lanes[number] = lane
        share = self.rows // self.lanes
        while True:
            yield {number: (lane.rows(share), lane.state(), lane.used) for number, lane in lanes.items()}

    def _make_packer(self) -> Packer:
        return make_packer(**self._packer, dtype=self._tokenizer.dtype)


@dataclass(eq=False)
class _Lane:
    """One lane: its endless documents, encoded a chunk at a time, through its packer, to rows."""

    sequence: DocumentSequence
    tokenizer: Tokenizer
    packer: Packer
    _: KW_ONLY
    drawn: int
    threads: int
    cache: TokenCache | None

    def __post_init__(self) -> None:
        self._next = 0  # the first document that is not drawn yet
        self._ready = Documents([], np.empty(0, self.tokenizer.dtype), np.zeros(1, np.int64))

    def load_state(self, state: Mapping) -> None:
        """Continue from a `state`: read and encode the held documents again."""
        self._next = state["next"]
        held = sorted(state["documents"])
        self.packer.load_state(state, dict(self._encode(held)) if held else {})

    def state(self) -> dict:
        """Return the documents by their number in the sequence, never their tokens."""
        # So a checkpoint's position takes some kilobytes and carries no text
        return {"next": self._next, **self.packer.state()}

    @property
    def used(self) -> float:
        """How often its documents were drawn, less the held part of their tokens. The same after a resume."""
        # Six documents are drawn eight at a time: 1.3 epochs before the first row
        placed = self.packer.num_kept + self.packer.num_cropped
        return self._next / self.sequence.num_documents * placed / (placed + self.packer.num_held)

    def rows(self, count: int) -> np.ndarray:
        """Return the next rows, stacked."""
        rows = [self.packer.pack(self._draw) for _ in range(count)]
        return np.stack([row for row in rows if row is not None])  # none is: the sequence never ends

    def _draw(self) -> Documents:
        """Return the next documents; the rows don't depend on how many are encoded at once."""
        if not len(self._ready):
            most = min(CHUNK, self.sequence.num_documents)  # a single long one must not be encoded 128 times
            count = self.drawn * max(1, most // self.drawn)
            self._ready = self._encode(range(self._next, self._next + count))
        drawn = self._ready.part(0, self.drawn)
        self._ready = self._ready.part(self.drawn, len(self._ready))
        self._next += self.drawn
        return drawn

    def _encode(self, numbers: Sequence[int]) -> Documents:
        if self.cache is not None:
            tokens = self.sequence.tokens(numbers, self.cache)
            return Documents.of(list(zip(numbers, tokens, strict=True)))
        texts = self.sequence.texts(numbers)
        return Documents(numbers, *self.tokenizer.encode_flat(texts, threads=self.threads, bos=True))


def too_little(name: str, num_groups: int, *, world: int) -> str:
    """Return the error for a corpus of fewer row groups than ranks."""
    if not num_groups:
        return f"data={name} has no documents to train on; give files with text"
    return (
        f"data={name} has {num_groups} row groups of text, fewer than the {world} ranks; "
        "write the parquet files again with row_group_size=1024, add text, or give fewer devices"
    )


def check_micro_batch(micro_batch: int, rows: int) -> None:
    """Raise ValueError unless micro-batches of that many rows fill a rank's rows of a step."""
    if rows % micro_batch:
        raise ValueError(
            f"micro_batch ({micro_batch} rows) must divide a rank's rows per step ({rows}); "
            f"allowed are {listed(divisors(rows), most=99)}"
        )


def num_lanes(lanes: int, *, rows: int, groups: int) -> int:
    """Return the number of lanes: the most that divide `lanes` and `rows` and have a row group each.

    It depends on the step and the data, never on the ranks.
    """
    if rows < 1 or lanes < 1:
        raise ValueError(f"rows ({rows}) and lanes ({lanes}) must be at least 1")
    most = math.gcd(lanes, rows)
    return next(n for n in range(min(most, groups), 0, -1) if most % n == 0)


def deal(
    groups: Sequence[tuple[Shard, int]], lanes: int, *, by: Literal["bytes", "documents"] = "documents"
) -> list[list[tuple[Shard, int]]]:
    """Deal the row groups to lanes: the largest first, each to the lane that has the least text yet."""
    # All lanes give equally many rows, so a lane with little text repeats it while others have not been read
    # once. Dealt in turn, the short last groups of the shards fell to the same four of sixteen lanes, which
    # repeated their text six times and cost d8 0.026 bits per byte (n = 1; LOG.md, 2026-11-23). With equally
    # many documents, books were 18% of the rows where they were 80% of the text (LOG.md, 2026-12-02).
    sizes = [(shard.group_bytes if by == "bytes" else shard.group_sizes)[group] for shard, group in groups]
    shares: list[list[int]] = [[] for _ in range(lanes)]
    dealt = [0] * lanes
    for index in sorted(range(len(groups)), key=lambda one: -sizes[one]):
        lane = dealt.index(min(dealt))
        shares[lane].append(index)
        dealt[lane] += sizes[index]
    return [[groups[index] for index in sorted(share)] for share in shares]


def _own_lanes(lanes: int, *, rank: int, world: int) -> range:
    """Return the lanes of a rank: an equal, contiguous share."""
    if lanes % world:
        raise ValueError(
            f"{world} ranks can't share {lanes} lanes of data evenly; allowed are "
            f"{listed(divisors(lanes), most=99)} ranks, or lanes and rows per step that {world} divides"
        )
    return range(rank * lanes // world, (rank + 1) * lanes // world)


def check_position(position: Mapping, identity: Mapping[str, object]) -> None:
    """Raise ValueError unless a position has this format and is of a stream with this identity."""
    if position.get("format") != FORMAT:
        raise ValueError(
            f"the stream's position has format {position.get('format')!r}, this version reads {FORMAT}; "
            "resume with the version that wrote it"
        )
    was = position["identity"]
    if changed := [key for key, now in identity.items() if was.get(key) != now]:
        differences = ", ".join(f"{key} was {was.get(key)}, is {identity[key]}" for key in changed)
        raise ValueError(
            f"can't resume, the rows would differ: {differences}; resume with the run's first settings and "
            "data, or start a new run"
        )


def as_micro_batches(
    rows_BT: np.ndarray, *, size: int, pin_memory: bool, learned_BT: np.ndarray | None = None
) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Turn rows of T + 1 tokens into micro-batches of `size` rows: (ids_BT, targets_BT), int64, contiguous.

    The last may have fewer rows. Where `learned_BT` is False, targets become IGNORED; None: all are learned.
    """
    # A row has one token more than it trains on: each position's target is the token after it. Pinned memory
    # is copied to the GPU while the GPU works; from ordinary memory the copy makes the CPU wait: 7.3 s of a
    # run of 82 minutes at nanochat (its PR 830). Each step gets memory of its own, because torch reuses
    # pinned memory only after the copies queued from it.
    num_rows, capacity = rows_BT.shape
    batch = torch.empty((2, num_rows, capacity - 1), dtype=torch.int64, pin_memory=pin_memory)
    batch.numpy()[0] = rows_BT[:, :-1]
    batch.numpy()[1] = rows_BT[:, 1:]
    if learned_BT is not None:
        batch.numpy()[1][~learned_BT[:, 1:]] = IGNORED
    return list(zip(*(part.split(size) for part in batch), strict=True))


def ahead(items: Iterator[Item], *, depth: int) -> Generator[Item, None, None]:
    """Yield the same items, made on a thread that is at most `depth` ahead.

    An exception on the thread is raised here, in the item's place; closing this iterator ends the thread.
    """
    device = torch.cuda.current_device() if torch.cuda.is_available() else None

    def begin() -> None:
        threading.current_thread().name = "nanolit-data"
        if device is not None:  # pinned memory belongs to this rank's device; threads begin on the first
            torch.cuda.set_device(device)

    thread = ThreadPoolExecutor(1, initializer=begin)
    ended: Any = object()
    try:
        # One more than `depth`, since one of them is being made
        ready = deque(thread.submit(next, items, ended) for _ in range(depth + 1))
        while (item := ready.popleft().result()) is not ended:
            ready.append(thread.submit(next, items, ended))
            yield item
    finally:
        thread.shutdown(cancel_futures=True)
        if isinstance(items, Generator):
            items.close()  # here and now: it may have threads of its own to end
