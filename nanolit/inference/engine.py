"""A model that talks: requests in, tokens out, many texts at once.

A request joins the batch at any step and leaves it at its end. `step` is the timeline: waiting prompts are
read into slots and their first tokens drawn (`_admit`), every running text gets one more token (`_decode`),
and the draws are read, where tools and stops are followed (`_read`). On a GPU the draws of a launch are read
while the next one runs. The engine knows of no roles, files or rewards: phases/rl.py,
evaluation/ and chat/ build on it.
"""

import functools
import itertools
import threading
from collections import OrderedDict, deque
from collections.abc import Generator, Iterator, Sequence
from typing import NotRequired, TypedDict, Unpack

import numpy as np
import torch
from torch import Tensor

from nanolit.inference.decode import MAX_ROWS, Decoder, places_of, versions_of
from nanolit.inference.launch import (
    COLUMNS,
    FORCED,
    PENALTY,
    POSITION,
    TEMPERATURE,
    TOP_K,
    TOP_P,
    UNIFORM,
    Draws,
    Launcher,
    bucket_of,
    settings,
)
from nanolit.inference.request import TURN_TOKENS, Completion, Handle, Request, Row, Token
from nanolit.inference.sampling import Needs, sample, uniforms
from nanolit.inference.slots import Slots, Snapshot, row_bytes
from nanolit.model.gpt import GPT
from nanolit.tokenizer.bpe import Tokenizer

FREE_SHARE = 0.8  # of a GPU's free memory that slots may take; the rest is for prompts and logits. Untuned
HOST_BYTES = 4 * 2**30  # that slots may take where there is no GPU memory to ask for
KEPT_SHARE = 0.25  # of the slots' memory, for conversations between two turns
GRAIN = 64  # positions that capacities are rounded up to, so that few requests make slots grow
FEW = 16  # a full batch goes on until a sixteenth of it has room: each joining holds up all others
PREFILL_TOKENS = 8192  # of prompts read at once, padding included: enough to keep a GPU busy


NOT_FINITE = "the model's logits are not finite numbers; load another checkpoint or release"


class Sampling(TypedDict):
    """How tokens are drawn; `Request` has the defaults."""

    max_tokens: int
    temperature: NotRequired[float]
    top_k: NotRequired[int | None]
    top_p: NotRequired[float]
    repetition_penalty: NotRequired[float]
    seed: NotRequired[int]
    keep: NotRequired[bool]


class Engine:
    """Generates from `model` with `tokenizer`; both stay as they are (no training mode is switched).

    Nothing is allocated before the first request. Threads may share an engine: whoever calls `step` works for
    all requests.
    """

    def __init__(self, model: GPT, tokenizer: Tokenizer) -> None:
        self.model, self.tokenizer = model, tokenizer
        # A reply ends at any token that begins or ends a turn: none is ever shown to a person
        self.end_ids = frozenset(map(tokenizer.special_id, TURN_TOKENS))
        self.lock = threading.RLock()
        self.waiting: deque[Row] = deque()
        self.rows: list[Row] = []  # row b has slot b
        self.launched: deque[tuple[list[Row], Draws]] = deque()
        self.kept: OrderedDict[tuple[int, ...], Snapshot] = OrderedDict()
        self.table = np.zeros((MAX_ROWS, COLUMNS), np.int32)
        self.seeds = np.zeros(MAX_ROWS, np.uint64)
        self.decoder: Decoder | None = None
        self.launcher: Launcher | None = None
        self.budget = 0
        self.plain = False  # no kernels and no graphs: what they are compared with

    @property
    def context(self) -> int:
        """The tokens, prompt and reply together, that the model was trained on at once."""
        return self.model.context

    @property
    def max_positions(self) -> int:
        """The most tokens, prompt and reply together, that the model has positions for (over `context`)."""
        return self.model.max_positions

    def generate(
        self, prompt_ids: Sequence[int], *, num_samples: int = 1, **sampling: Unpack[Sampling]
    ) -> Generator[list[Token | None]]:
        """Yield one list per step with one token per sample, None once that sample has finished.

        A sample finishes with a token of `end_ids` (yielded) or after `max_tokens`. ValueError, at once and
        not at the first step, for a request that cannot be served. Closing the iterator cancels it.
        """
        request = Request(prompt_ids=list(prompt_ids), num_samples=num_samples, **sampling)
        self._check(request)
        return self._stream(request)

    def complete(
        self, prompt_ids: Sequence[int], *, num_samples: int = 1, **sampling: Unpack[Sampling]
    ) -> list[Completion]:
        """As `generate`, run to its end: one `Completion` per sample."""
        request = Request(prompt_ids=list(prompt_ids), num_samples=num_samples, **sampling)
        return self.complete_all([request])[0]

    def complete_all(self, requests: Sequence[Request]) -> list[list[Completion]]:
        """Run requests to their ends, as many at once as fit: the completions of each, in order."""
        handles = []
        try:
            handles.extend(self.submit(request) for request in requests)
            while not all(handle.done for handle in handles):
                self.step()
        finally:
            for handle in handles:
                self.cancel(handle)
        return [handle.completions for handle in handles]

    def submit(self, request: Request) -> Handle:
        """Queue a request; ValueError, with the numbers, if it can never be served."""
        with self.lock:
            self._prepare()
            self._check(request)
            handle = Handle(request)
            samples = range(request.num_samples)
            handle.rows = [Row(handle, number, self.tokenizer, self.end_ids) for number in samples]
            self.waiting.extend(handle.rows)
            return handle

    @torch.inference_mode()
    def step(self) -> bool:
        """Read waiting prompts and add a token to every running text; False if there was nothing to do."""
        with self.lock:
            # On a GPU one launch stays unread, so that reading it costs no time of the next
            unread = 1 if self.model.device.type == "cuda" else 0
            running = bool(self.rows)
            joined = self._admit()
            self._read_all_but(unread)
            busy = (running or not joined) and self._decode()
            self._read_all_but(unread if busy or joined else 0)
            return busy or joined

    @torch.inference_mode()
    def cancel(self, handle: Handle) -> None:
        """End a request, if it hasn't ended: its slots are free at once, and what it has so far stays."""
        with self.lock:
            self.waiting = deque(row for row in self.waiting if row.handle is not handle)
            for row in handle.rows:
                if row in self.rows:
                    self._leave(row)
                row.finished = True

    @torch.inference_mode()
    def next_logits(self, prompts: Sequence[Sequence[int]]) -> Tensor:
        """Return the logits (B, V) after each prompt, without keeping anything of it."""
        with self.lock:
            self._prepare()
            assert self.decoder is not None
            logits_BV = torch.empty(len(prompts), self.model.vocab_size, device=self.model.device)
            for places in batches_of([len(prompt) for prompt in prompts]):
                logits_BV[places] = self.decoder.read([prompts[place] for place in places])
            return logits_BV

    def refresh(self) -> None:
        """Take over the model's weights, in place; what was kept of older ones is forgotten."""
        with self.lock:
            self.kept.clear()
            if self.decoder is not None:
                self.decoder.refresh()

    def release(self) -> None:
        """Free weights, slots and graphs; the next request makes them anew. Open requests are cancelled."""
        with self.lock:
            for row in [*self.waiting, *self.rows]:
                self.cancel(row.handle)
            self.launched.clear()
            self.kept.clear()
            self.decoder = self.launcher = None

    def _admit(self) -> bool:
        """Read waiting prompts, as many as have room, and launch the draws of their first tokens."""
        rows = self._rows_with_room()
        if not rows:
            return False
        by_handle = itertools.groupby(rows, key=lambda row: id(row.handle))
        groups = [[*group] for _, group in by_handle]
        beginnings = [self._kept_beginning(group[0].request) for group in groups]
        for group, beginning in zip(groups, beginnings, strict=True):
            if beginning is not None:
                self._join([group], beginning)
        groups = [group for group, beginning in zip(groups, beginnings, strict=True) if beginning is None]
        for places in batches_of([len(group[0].request.prompt_ids) for group in groups]):
            self._join([groups[place] for place in places], None)
        return True

    def _rows_with_room(self) -> list[Row]:
        """Take rows off the queue that fit into slots, and make the slots."""
        rows: list[Row] = []
        if not self.waiting:
            return rows
        capacity = max((row.request.positions for row in self.rows), default=0)
        while self.waiting:
            longest = max(capacity, self.waiting[0].request.positions)
            if len(self.rows) + len(rows) >= self._most_rows(longest):
                break
            capacity = longest
            rows.append(self.waiting.popleft())
        if len(rows) < min(len(self.rows) // FEW, len(rows) + len(self.waiting)):
            self.waiting.extendleft(reversed(rows))
            return []
        if rows:
            self._make_slots(len(self.rows) + len(rows), capacity)
        return rows

    def _join(self, groups: list[list[Row]], beginning: tuple[int, ...] | None) -> None:
        """Read each group's prompt once, copy its slot to the other samples, and draw all first tokens."""
        assert self.launcher is not None
        assert self.decoder is not None
        slots, first = self.launcher.slots, len(self.rows)
        prompts = [group[0].request.prompt_ids for group in groups]
        if beginning is None:
            logits_BV = self.decoder.read(prompts, slots, row=first)
        else:
            self.kept.move_to_end(beginning)
            slots.put_in(first, self.kept[beginning])
            logits_BV = self.decoder.read_on(prompts[0], slots, row=first, start=len(beginning))
        order = [*range(len(groups))]
        self.rows.extend(group[0] for group in groups)
        for source, group in enumerate(groups):
            for row in group[1:]:
                length = len(row.request.prompt_ids)
                slots.copy_row(first + source, len(self.rows), length=length)
                order.append(source)
                self.rows.append(row)
        joined = self.rows[first:]
        for place, row in enumerate(joined, start=first):
            self._fill_table(place, row)
        table = self.table[first : len(self.rows)]
        table.view(np.float32)[:, UNIFORM] = uniforms(self.seeds[first : len(self.rows)], table[:, POSITION])
        needs, seen_BV = self._needs(joined), None
        if needs.penalty:
            seen_BV = self._note_prompts(joined, first)
        ids_B, log_probs_B = sample(
            logits_BV[order], settings(torch.from_numpy(table).to(logits_BV.device)), needs, seen_BV=seen_BV
        )
        slots.drawn_B[first : len(self.rows)] = ids_B
        self.launched.append((joined, self.launcher.download(ids_B, log_probs_B)))

    def _fill_table(self, place: int, row: Row) -> None:
        request = row.request
        self.seeds[place] = row.seed
        numbers = self.table.view(np.float32)
        greedy = request.temperature == 0
        self.table[place, POSITION] = len(request.prompt_ids)
        self.table[place, TOP_K] = 0 if greedy else min(request.top_k or 0, self.model.vocab_size)
        numbers[place, TEMPERATURE] = request.temperature
        numbers[place, TOP_P] = 1 if greedy else request.top_p
        numbers[place, PENALTY] = request.repetition_penalty

    def _note_prompts(self, joined: list[Row], first: int) -> Tensor:
        """Return which tokens the texts of new rows hold, (B, V)."""
        assert self.launcher is not None
        slots = self.launcher.slots
        if slots.seen_BV is None:
            slots.seen_BV = torch.zeros(
                slots.rows, self.model.vocab_size, dtype=torch.bool, device=self.model.device
            )
        for place, row in enumerate(joined, start=first):
            slots.seen_BV[place] = False
            slots.seen_BV[place, torch.tensor(row.request.prompt_ids, device=self.model.device)] = True
        return slots.seen_BV[first : first + len(joined)]

    def _decode(self) -> bool:
        """Launch one more draw for every running text."""
        if not self.rows:
            return False
        assert self.launcher is not None
        table, seeds = self.table[: len(self.rows)], self.seeds[: len(self.rows)]
        table[:, FORCED] = [row.forced[0] if row.forced else -1 for row in self.rows]
        table.view(np.float32)[:, UNIFORM] = uniforms(seeds, table[:, POSITION] + 1)
        draws = self.launcher.decode(table, self._needs(self.rows))
        table[:, POSITION] += 1
        self.launched.append(([*self.rows], draws))
        return True

    def _read_all_but(self, unread: int) -> None:
        while len(self.launched) > unread:
            self._read(*self.launched.popleft())

    def _read(self, rows: list[Row], draws: Draws) -> None:
        """Give each row its draw; rows whose texts have ended leave."""
        ids, log_probs = draws.wait()
        for place, (row, id) in enumerate(zip(rows, ids, strict=True)):
            if row.finished:  # it ended after this launch had begun
                continue
            if id < 0:
                row.handle.error = NOT_FINITE
                self.cancel(row.handle)
                continue
            row.take(id, log_probs[place] if log_probs else 0.0)
            if row.finished:
                self._leave(row)

    def _leave(self, row: Row) -> None:
        """Free a row's slot: the last row takes its place."""
        assert self.launcher is not None
        slots, place, last = self.launcher.slots, self.rows.index(row), len(self.rows) - 1
        row.finished = True
        if row.request.keep and row.completion.ids:
            self._keep(row, place)
        if place != last:
            slots.copy_row(last, place, length=int(self.table[last, POSITION]))
            self.table[place], self.seeds[place] = self.table[last], self.seeds[last]
            self.rows[place] = self.rows[last]
        self.rows.pop()

    def _keep(self, row: Row, place: int) -> None:
        """Put a copy of the slot aside; of its text, not the last token: that was perhaps never fed."""
        assert self.launcher is not None
        text = (*row.request.prompt_ids, *row.completion.ids[:-1])
        for older in [older for older in self.kept if text[: len(older)] == older]:
            del self.kept[older]
        self.kept[text] = self.launcher.slots.take_out(place, length=len(text))
        while self.kept and sum(one.num_bytes for one in self.kept.values()) > KEPT_SHARE * self.budget:
            self.kept.popitem(last=False)

    def _kept_beginning(self, request: Request) -> tuple[int, ...] | None:
        """Return the longest kept text that the prompt continues."""
        prompt = tuple(request.prompt_ids) if self.kept else ()
        return max(
            (text for text in self.kept if prompt[: len(text)] == text != prompt), key=len, default=None
        )

    @staticmethod
    def _needs(rows: Sequence[Row]) -> Needs:
        """Join what the rows need; samples of a request share theirs."""
        return functools.reduce(Needs.joined, {id(row.request): row.request.needs for row in rows}.values())

    def _prepare(self) -> None:
        """Pack the weights; take changed ones over where no text is being written."""
        if self.decoder is not None and not self.rows and not self.waiting:
            if self.decoder.places != places_of(self.model):
                self.release()
            elif self.decoder.versions != versions_of(self.model):
                self.refresh()
        if self.decoder is None:
            self.decoder = Decoder(self.model, plain=self.plain)
            self.budget = self._memory()

    def _memory(self) -> int:
        """Return the bytes that slots may take."""
        device = self.model.device
        if device.type != "cuda":
            return HOST_BYTES
        free, _ = torch.cuda.mem_get_info(device)
        cached = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return int(FREE_SHARE * (free + cached))

    def _check(self, request: Request) -> None:
        request.check(max_positions=self.max_positions)
        size, budget = row_bytes(self.model, _rounded(request.positions)), self.budget or self._memory()
        if size > budget:
            raise ValueError(
                f"prompt + max_tokens ({request.positions:,}) need a slot of {size / 2**20:,.0f} MiB; there "
                f"are {budget / 2**20:,.0f} MiB for slots: shorten the prompt or lower max_tokens"
            )

    def _most_rows(self, capacity: int) -> int:
        """Return how many rows fit while the longest text may reach `capacity` positions."""
        slots, taken = self.launcher and self.launcher.slots, 0
        if slots is not None and self.rows:  # old and new slots are there at once while texts are copied over
            capacity, taken = max(capacity, slots.capacity), slots.num_bytes
        most = (self.budget - taken) // row_bytes(self.model, _rounded(capacity))
        if slots is not None and slots.capacity >= capacity:
            most = max(most, slots.rows)
        return min(most, MAX_ROWS)

    def _make_slots(self, rows: int, capacity: int) -> None:
        """Make slots for so many rows and positions, unless there are; running texts move over."""
        assert self.decoder is not None
        slots = self.launcher and self.launcher.slots
        if slots is not None:
            if slots.rows >= rows and slots.capacity >= capacity:
                return
            if self.rows:
                capacity = max(capacity, slots.capacity)
        rows = max(rows, min(bucket_of(rows), self._most_rows(capacity)))
        if not self.rows:
            self.launcher = slots = None  # frees the old ones before new ones are made
        new = Slots(self.model, rows=rows, capacity=_rounded(capacity))
        if slots is not None:
            new.adopt(slots, rows=len(self.rows))
        self.launcher = Launcher(self.decoder, new, plain=self.plain)

    def _stream(self, request: Request) -> Generator[list[Token | None]]:
        handle = self.submit(request)
        try:
            for number in range(request.max_tokens):
                while not all(row.finished or len(row.completion.ids) > number for row in handle.rows):
                    self.step()
                if handle.done and all(len(done.ids) <= number for done in handle.completions):
                    return
                yield [
                    Token(done.ids[number], done.sampled[number]) if len(done.ids) > number else None
                    for done in handle.completions
                ]
        finally:
            self.cancel(handle)


def batches_of(lengths: Sequence[int]) -> Iterator[list[int]]:
    """Yield the places of prompts to read together: of like lengths, as all are padded to the longest."""
    batch: list[int] = []
    for place in sorted(range(len(lengths)), key=lengths.__getitem__):
        if batch and (len(batch) + 1) * lengths[place] > PREFILL_TOKENS:
            yield batch
            batch = []
        batch.append(place)
    if batch:
        yield batch


def _rounded(capacity: int) -> int:
    return -(-capacity // GRAIN) * GRAIN
