"""A mixture of tasks, rendered: all its conversations as flat arrays of ids and masks.

Everything is rendered at once, so that a malformed row is reported before training begins, and lengths are
exact.
"""

import hashlib
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from nanolit.machine.numbers import chunked
from nanolit.machine.system import ENCODERS
from nanolit.machine.terminal import one_line
from nanolit.tasks.task import Conversation, Task
from nanolit.tokenizer.bpe import Tokenizer
from nanolit.tokenizer.conversation import check_conversation, render_batch

CHUNK = 1024  # conversations encoded at once


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
        learned = f"{self.num_cut_tokens:,} tokens, {self.num_cut_learned:,} of them to be learned"
        counted = {
            f"{self.num_malformed:,} malformed rows": self.num_malformed,
            f"{cut} ({learned})": self.num_cut,
            f"{self.num_unlearned:,} conversations with nothing to learn within a row": self.num_unlearned,
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
                    f"{task.name}: none of {len(task)} conversations has a token to learn within "
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
