"""A mixture of tasks: its conversations rendered as flat arrays of ids and masks, and packed into rows.

Everything is rendered at once, so that a malformed row is reported before training begins, and lengths are
exact. A row has `capacity` = context + 1 tokens: its inputs are all but the last, its targets all but the
first. It holds slices of conversations; nothing is cropped.
"""

import bisect
import hashlib
import warnings
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from nanolit.machine.numbers import chunked
from nanolit.machine.system import ENCODERS
from nanolit.machine.terminal import one_line
from nanolit.tasks.task import Conversation, Task
from nanolit.tokenizer.bpe import Tokenizer
from nanolit.tokenizer.conversation import check_conversation, render_batch

CHUNK = 1024  # conversations encoded at once
BUFFER = 100  # conversations that best fit chooses from, as in nanochat

Packing = Literal["bestfit", "single", "flat"]
Slice = tuple[int, int, int]  # conversation, first token, end
Row = list[Slice]


@dataclass(kw_only=True)
class LeftOut:
    """Count what a mixture holds and doesn't train on; a conversation counts once, in however many epochs.

    num_malformed: rows left out (only of sources that the user can't mend).
    num_cut, num_cut_tokens, num_cut_learned: conversations longer than a row; the tokens cut off their ends,
        and those of them that would have been learned.
    num_unlearned: conversations without a learned token within a row; left out.
    """

    num_malformed: int = 0
    num_cut: int = 0
    num_cut_tokens: int = 0
    num_cut_learned: int = 0
    num_unlearned: int = 0

    def parts(self) -> list[str]:
        """Return what is left out in words, a part for each kind."""
        cut = f"the ends of {self.num_cut:,} conversations that are longer than a row"
        learned = f"{self.num_cut_tokens:,} tokens, {self.num_cut_learned:,} of them trained on"
        counted = {
            f"{self.num_malformed:,} malformed rows": self.num_malformed,
            f"{cut} ({learned})": self.num_cut,
            f"{self.num_unlearned:,} conversations with nothing to train on within a row": self.num_unlearned,
        }
        return [part for part, number in counted.items() if number]


class Mixture:
    """`deck` lists the conversations of one epoch, unshuffled, each as often as its source's `epochs` say.

    Conversations are cut at `max_tokens`. With `learn_all` every token is learned, as in nanochat's
    midtraining of 2025; else those that the rendering marks. Memory: 3 or 5 bytes a token (SmolTalk: about
    0.6 GB).
    """

    def __init__(
        self,
        tasks: Sequence[Task],
        tokenizer: Tokenizer,
        *,
        max_tokens: int | None,
        learn_all: bool = False,
        threads: int = ENCODERS,
    ) -> None:
        if not tasks:
            raise ValueError("the mixture has no sources; give at least one")
        self.left_out = LeftOut()
        self._max_tokens = max_tokens
        self._learn_all = learn_all
        ids, learned, epochs = [], [], []
        for task in tasks:
            before = len(ids)
            for conversations in chunked(self._checked(task), CHUNK):
                for rendered in render_batch(conversations, tokenizer, threads=threads):
                    kept = self._cut(*rendered)
                    if kept is not None:
                        ids.append(kept[0].astype(tokenizer.dtype))
                        learned.append(kept[1])
            if len(ids) == before:
                raise ValueError(
                    f"{task.name}: none of {len(task)} conversations has a token to train on within "
                    f"{max_tokens} tokens; leave it out of the mixture, or give a longer context"
                )
            epochs += [task.epochs] * (len(ids) - before)
        self.lengths = np.array([len(conversation) for conversation in ids])
        self.deck = np.repeat(np.arange(len(ids)), epochs)
        self._starts = np.cumsum(self.lengths) - self.lengths
        self._ids, self._learned = np.concatenate(ids), np.concatenate(learned)

    def __len__(self) -> int:
        """Return the number of different conversations."""
        return len(self.lengths)

    def slice(self, number: int, start: int, stop: int) -> tuple[np.ndarray, np.ndarray]:
        """Return the ids and the mask of tokens `start` to `stop` of one conversation."""
        begin = self._starts[number]
        return self._ids[begin + start : begin + stop], self._learned[begin + start : begin + stop]

    def fingerprint(self) -> str:
        """Return a hash of all that a stream makes of this mixture."""
        digest = hashlib.blake2b(digest_size=8)
        for array in (self._ids, self._learned, self.lengths, self.deck):
            digest.update(array.tobytes())
        return digest.hexdigest()

    def _checked(self, task: Task) -> Iterator[Conversation]:
        """Yield the task's conversations, checked; ValueError names the first malformed one."""
        malformed: list[ValueError] = []
        for index in range(len(task)):
            try:
                conversation = task[index]
                check_conversation(conversation, place=task.place(index))
            except ValueError as error:
                if not task.skips_malformed:
                    raise
                malformed.append(error)
            else:
                yield conversation
        if malformed:
            self.left_out.num_malformed += len(malformed)
            count = f"{len(malformed)} of {len(task)} rows are malformed and left out"
            warnings.warn(f"{task.name}: {count}; the first: {one_line(malformed[0])}", stacklevel=2)

    def _cut(self, ids: np.ndarray, learned: np.ndarray) -> tuple[np.ndarray, np.ndarray] | None:
        """Return the conversation cut to its limit, or None when nothing of it is learned."""
        if self._learn_all:
            learned = np.ones_like(learned)
        if self._max_tokens is not None and len(ids) > self._max_tokens:
            self.left_out.num_cut += 1
            self.left_out.num_cut_tokens += len(ids) - self._max_tokens
            self.left_out.num_cut_learned += int(learned[self._max_tokens :].sum())
            ids, learned = ids[: self._max_tokens], learned[: self._max_tokens]
        if not learned.any():
            self.left_out.num_unlearned += 1
            return None
        return ids, learned


def pack(
    lengths: Sequence[int] | np.ndarray, order: np.ndarray, *, capacity: int, packing: Packing
) -> list[Row]:
    """Return the rows of the conversations in `order`, each of `lengths[conversation]` tokens."""
    if packing == "bestfit":
        return pack_bestfit(lengths, order, capacity=capacity)
    if packing == "single":
        return [[(int(number), 0, int(lengths[number]))] for number in order]
    if packing == "flat":
        return pack_flat(lengths, order, capacity=capacity)
    raise ValueError(f"packing is {packing!r}; allowed: bestfit, single, flat")


def pack_bestfit(
    lengths: Sequence[int] | np.ndarray, order: Iterable[int], *, capacity: int, buffer: int = BUFFER
) -> list[Row]:
    """Fill row after row with the longest conversation of the buffer that still fits; the rest is padding.

    Every conversation is placed once and whole; the longest may be of `capacity`. O(n · buffer) at worst, by
    insertion into a sorted list; 0.8M conversations take seconds.
    """
    coming = iter(order)
    # (length, minus arrival, conversation): of equally long ones the first goes first
    waiting: list[tuple[int, int, int]] = []
    num_arrived = 0
    rows: list[Row] = []
    while True:
        row: Row = []
        space = capacity
        while True:
            while len(waiting) < buffer and (number := next(coming, None)) is not None:
                assert lengths[number] <= capacity, "cut conversations to the capacity first"
                bisect.insort(waiting, (int(lengths[number]), -num_arrived, int(number)))
                num_arrived += 1
            fitting = bisect.bisect_right(waiting, (space, 1, 0))
            if fitting == 0:
                break
            length, _, number = waiting.pop(fitting - 1)
            row.append((number, 0, length))
            space -= length
        if not row:
            return rows
        rows.append(row)


def pack_flat(lengths: Sequence[int] | np.ndarray, order: np.ndarray, *, capacity: int) -> list[Row]:
    """Lay all tokens end to end and cut them into rows.

    A row begins with the last token of the one before, so each token is a target once.
    """
    ends = np.cumsum(np.asarray(lengths)[order])
    total = int(ends[-1])
    rows: list[Row] = []
    for start in range(0, max(total - 1, 1), capacity - 1):
        stop = min(start + capacity, total)
        row: Row = []
        turn = int(np.searchsorted(ends, start, side="right"))
        while start < stop:
            number = int(order[turn])
            begin = int(ends[turn]) - int(lengths[number])
            end = min(stop, int(ends[turn]))
            row.append((number, start - begin, end - begin))
            start, turn = end, turn + 1
        rows.append(row)
    return rows
