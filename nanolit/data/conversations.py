"""The conversation stream: a mixture of tasks to the micro-batches of one optimizer step.

Step s is a function of (mixture, tokenizer, seed, s) alone, not of the number of ranks, nor of the
micro-batch: every rank packs the same rows and takes its share of each step's. A position is therefore the
number of a step.
"""

import bisect
import functools
from collections.abc import Iterator, Sequence
from contextlib import closing

import numpy as np
import torch

from nanolit.data.mixture import Mixture, Packing, Row, pack
from nanolit.data.sequence import permutation
from nanolit.data.stream import FORMAT, PREFETCHED, Step, ahead, as_micro_batches, check_position
from nanolit.data.validation import RowIdentity
from nanolit.machine.paths import Json
from nanolit.tasks.task import Task
from nanolit.tokenizer.bpe import Tokenizer

WIDTH_UNIT = 64  # with one conversation a row, rows are as wide as the step's longest, in multiples of this


class ConversationStream:
    """The optimizer steps of this rank, `num_steps` of them: `for step in stream`.

    packing: "bestfit" (several whole conversations a row, the rest padding), "single" (one a row, padded) or
    "flat" (all end to end, every token learned). In the first two a conversation longer than a row is cut and
    counted, and only the assistant's tokens are learned; each row has one. `left_out` declares what isn't
    trained on.

    `max_steps` steps, going through the mixture as often as that takes; without it, once through the mixture,
    where the last step may have empty rows. The targets of padding are -1.
    """

    def __init__(
        self,
        tasks: Sequence[Task],
        tokenizer: Tokenizer,
        *,
        context: int,
        rows: int,
        micro_batch: int,
        seed: int,
        packing: Packing,
        max_steps: int | None = None,
        rank: int = 0,
        world: int = 1,
    ) -> None:
        _check_shares(rows, micro_batch=micro_batch, world=world)
        self.context, self.rows, self.micro_batch = context, rows, micro_batch
        self.packing: Packing = packing
        self._pin_memory = torch.cuda.is_available()
        self._own = slice(rank * rows // world, (rank + 1) * rows // world)
        self._seed = seed
        self._padding = tokenizer.bos_id
        limit = None if packing == "flat" else context + 1
        self.mixture = Mixture(tasks, tokenizer, max_tokens=limit, learn_all=packing == "flat")
        self.left_out = self.mixture.left_out
        self._packed: dict[int, list[Row]] = {}
        self._starts = [0]  # the number of the first row of each epoch
        self._num_rows = self._start(1) if max_steps is None else max_steps * rows
        self._next_step = 0
        self._identity = {
            "data": self.mixture.fingerprint(),
            "tokenizer": tokenizer.hash,
            "seed": seed,
            "context": context,
            "rows": rows,
            "packing": packing,
        }

    @property
    def num_steps(self) -> int:
        return -(-self._num_rows // self.rows)

    def __len__(self) -> int:
        """Return a length without end; see PretrainStream. `num_steps` is the number."""
        return 10**9

    def load_position(self, positions: Sequence[Json]) -> None:
        """Continue after the step that these positions rode in (any rank's will do), on any number of ranks.

        ValueError if anything that the order depends on has changed.
        """
        check_position(positions[0], self._identity)
        self._next_step = positions[0]["step"]

    def __iter__(self) -> Iterator[Step]:
        """Begin at the first step, or after the loaded position or the last step that was taken."""
        numbers = range(self._next_step, self.num_steps)
        with closing(ahead(map(self._step, numbers), depth=PREFETCHED)) as steps:
            for step in steps:
                self._next_step = step.position["step"]
                yield step

    def keep_first(self, num_rows: int) -> None:
        """Stop after `num_rows` rows; the last step is filled up with padding."""
        self._num_rows = min(self._num_rows, num_rows)

    def batches(self) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """Yield this rank's (ids_BT, targets_BT) of all steps, from the first at each call."""
        for number in range(self.num_steps):
            yield from self._step(number).micro_batches

    def identity(self) -> dict[str, int | str]:
        """Identify the rows of all steps, over all ranks; packs what isn't packed yet."""
        rows = RowIdentity()
        for number in range(self._num_rows):
            ids, learned = self._row(number)
            rows.add(ids, learned[1:])
        return rows.as_dict()

    def _step(self, number: int) -> Step:
        """Step `number`, counted from 0."""
        first = number * self.rows
        stop = min(first + self.rows, self._num_rows)
        rows = [self._row(row) for row in range(first, stop)]
        width = self._width(rows)
        ids = np.full((self.rows, width + 1), self._padding, dtype=np.int64)
        learned = np.zeros((self.rows, width + 1), dtype=bool)
        for row, (row_ids, row_learned) in enumerate(rows):
            ids[row, : len(row_ids)] = row_ids
            learned[row, : len(row_learned)] = row_learned
        epoch, within = self._place(stop - 1)
        return Step(
            micro_batches=as_micro_batches(
                ids[self._own],
                size=self.micro_batch,
                pin_memory=self._pin_memory,
                learned_BT=learned[self._own],
            ),
            num_tokens=int(learned[:, 1:].sum()),
            position={
                "format": FORMAT,
                "step": number + 1,
                "progress": (number + 1) / self.num_steps,
                "identity": self._identity,
            },
            epoch=epoch + (within + 1) / (self._start(epoch + 1) - self._start(epoch)),
            cropped_fraction=self.left_out.num_cut_tokens
            / (self.left_out.num_cut_tokens + int(self.mixture.lengths.sum())),
        )

    def _width(self, rows: list[tuple[np.ndarray, np.ndarray]]) -> int:
        if self.packing != "single":
            return self.context
        longest = max(len(ids) for ids, _ in rows) - 1
        return min(-(-longest // WIDTH_UNIT) * WIDTH_UNIT, self.context)

    def _row(self, number: int) -> tuple[np.ndarray, np.ndarray]:
        epoch, within = self._place(number)
        slices = [self.mixture.slice(*piece) for piece in self._epoch(epoch)[within]]
        return np.concatenate([ids for ids, _ in slices]), np.concatenate([learned for _, learned in slices])

    def _place(self, number: int) -> tuple[int, int]:
        """Return (epoch, row within it) of the stream's row `number`."""
        while self._starts[-1] <= number:
            self._start(len(self._starts))
        epoch = bisect.bisect_right(self._starts, number) - 1
        return epoch, number - self._starts[epoch]

    def _start(self, epoch: int) -> int:
        """Return the number of an epoch's first row; all epochs before it are packed to know."""
        while len(self._starts) <= epoch:
            self._starts.append(self._starts[-1] + len(self._epoch(len(self._starts) - 1)))
        return self._starts[epoch]

    def _epoch(self, epoch: int) -> list[Row]:
        """Return the rows of an epoch; the last two are kept, since a step may reach over their border."""
        if epoch not in self._packed:
            deck = self.mixture.deck
            order = permutation(len(deck), self._seed, "conversation order", epoch)
            rows = pack(self.mixture.lengths, deck[order], capacity=self.context + 1, packing=self.packing)
            self._packed = dict([*self._packed.items(), (epoch, rows)][-2:])
        return self._packed[epoch]


def _check_shares(rows: int, *, micro_batch: int, world: int) -> None:
    unit = micro_batch * world
    if rows < 1 or rows % unit:
        nearest = max(unit, round(rows / unit) * unit)
        raise ValueError(
            f"rows per step ({rows}) must be a multiple of micro_batch × ranks "
            f"({micro_batch} × {world} = {unit}); try {nearest}"
        )


class ValidationConversations:
    """At most `num_rows` packed rows of held-out conversations, the same at any number of ranks."""

    def __init__(
        self,
        tasks: Sequence[Task],
        tokenizer: Tokenizer,
        *,
        context: int,
        micro_batch: int,
        packing: Packing,
        num_rows: int,
        rank: int,
        world: int,
    ) -> None:
        rows = micro_batch * world
        self._stream = ConversationStream(
            tasks,
            tokenizer,
            context=context,
            rows=rows,
            micro_batch=micro_batch,
            seed=0,
            packing=packing,
            rank=rank,
            world=world,
        )
        self._stream.keep_first(num_rows)

    @functools.cached_property
    def identity(self) -> dict[str, int | str]:
        """Tokens, rows and checksum of what is evaluated, the same on every rank."""
        return self._stream.identity()

    def __iter__(self) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        return self._stream.batches()
