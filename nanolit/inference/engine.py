"""The inference engine: requests in, tokens out, many texts at once.

A request joins the batch at any step and leaves when it ends. `step` has three parts: it reads waiting
prompts into slots and draws their first tokens (`_admit`), adds one token to every running text (`_decode`),
and takes the draws, following tool calls and stops (`_read`). On a GPU the draws of one launch are read
while the next one runs. The engine knows nothing of roles, files or rewards: phases/rl.py, evaluation/ and
chat/ build on it.
"""

import copy
import itertools
import threading
from collections import OrderedDict, deque
from collections.abc import Callable, Generator, Iterable, Sequence
from typing import NotRequired, TypedDict, Unpack

import numpy as np
import torch
from torch import Tensor

from nanolit.inference.decode import MAX_ROWS, Decoder, batches_of, marks_of
from nanolit.inference.launch import Launcher, bucket_of
from nanolit.inference.request import TURN_TOKENS, Completion, Handle, Request, Row, Token
from nanolit.inference.sampling import (
    COLUMNS,
    FORCED,
    LOG_PROBS,
    PENALTY,
    POSITION,
    SEED,
    TEMPERATURE,
    TOP_K,
    TOP_P,
    needs_of,
    note_tiles,
)
from nanolit.inference.slots import Slots, row_bytes
from nanolit.machine.device import pick_devices
from nanolit.model.gpt import GPT
from nanolit.tokenizer.bpe import Tokenizer

# Share of a GPU's free memory for slots and kept conversations; prompts and logits get the rest. Untuned
FREE_SHARE = 0.8
HOST_BYTES = 4 * 2**30  # for slots, on devices that do not report their free memory
KEPT_SHARE = 0.25  # extra memory, relative to the slots', for conversations between two turns
FEW = 16  # prompts join a batch once a sixteenth of it is free: each time holds up everybody else
# Prompt tokens read at once, padding included. On a GPU a d20 batch takes 14 ms to launch, so batches should
# be large. A CPU is busy with 1,024, and smaller batches of prompts of similar length have less padding: with
# d4, 32 prompts of 20 to 200 tokens take 516 ms, not 858 (439 without any padding, 698 one by one)
PREFILL_TOKENS, CPU_PREFILL_TOKENS = 8192, 1024
RENOTED = 64  # steps after which tiles are noted anew though no row joined or left
NOT_FINITE = "the model's logits are not finite numbers; load another checkpoint or release"


class Sampling(TypedDict):
    """Sampling settings; `Request` has the defaults."""

    max_tokens: int
    num_samples: NotRequired[int]
    temperature: NotRequired[float]
    top_k: NotRequired[int | None]
    top_p: NotRequired[float]
    repetition_penalty: NotRequired[float]
    seed: NotRequired[int]
    keep: NotRequired[bool]


class Engine:
    """Generates from `model` with `tokenizer` without changing either, not even the training mode.

    Nothing is allocated before the first request. Threads may share an engine: each call of `step` serves all
    requests.
    """

    def __init__(self, model: GPT, tokenizer: Tokenizer) -> None:
        self.model, self.tokenizer = model, tokenizer
        # Tokens of prompt and reply together: the length that training used, and the most that can be encoded
        self.context, self.max_positions = model.context, model.max_positions
        # A reply ends at any token that begins or ends a turn, so people never see one
        self.end_ids = frozenset(map(tokenizer.special_id, TURN_TOKENS))
        self.lock = threading.RLock()
        self.waiting: deque[Row] = deque()
        self.rows: list[Row] = []  # row b uses slot b and line b of the table
        self.table = np.zeros((MAX_ROWS, COLUMNS), np.int32)
        self.launched: deque[tuple[list[Row], Callable[[], list[list]]]] = deque()
        self.kept = OrderedDict[tuple[int, ...], list[Tensor]]()  # the ids of a text → its slot's content
        self.decoder: Decoder | None = None
        self.launcher: Launcher | None = None
        self.moved = False  # rows joined or left since the tiles were noted
        self._budget = 0  # bytes for slots, known once the weights are packed
        # On a GPU the newest launch stays unread, so that the next one can start before it is read
        self.unread = int(model.device.type == "cuda")
        self.prefill_tokens = PREFILL_TOKENS if model.device.type == "cuda" else CPU_PREFILL_TOKENS
        self.plain = False  # without kernels and graphs, as the reference that they are compared with

    def generate(
        self, prompt_ids: Sequence[int], **sampling: Unpack[Sampling]
    ) -> Generator[list[Token | None]]:
        """Yield one list per step with one token per sample, None once that sample has finished.

        A sample finishes with a token of `end_ids` (yielded) or after `max_tokens`. For a request that cannot
        be served, raises ValueError at once, not at the first step. Closing the iterator cancels the request.
        """
        request = Request(prompt_ids=list(prompt_ids), **sampling)
        self._check(request)
        return self._stream(request)

    def complete(self, prompt_ids: Sequence[int], **sampling: Unpack[Sampling]) -> list[Completion]:
        """Run one request to its end and return a `Completion` per sample."""
        return self.complete_all([Request(prompt_ids=list(prompt_ids), **sampling)])[0]

    def complete_all(self, requests: Sequence[Request]) -> list[list[Completion]]:
        """Run requests to their ends, as many at once as fit, and return the completions of each in order."""
        handles: list[Handle] = []
        try:
            handles.extend(self.submit(request) for request in requests)
            while not all(handle.done for handle in handles):
                self.step()
        finally:
            for handle in handles:
                self.cancel(handle)
        return [handle.completions for handle in handles]

    def submit(self, request: Request) -> Handle:
        """Queue a request. Raises ValueError, with the numbers, if it can never be served."""
        with self.lock:
            self._prepare()
            self._check(request)
            handle = Handle(request, self.tokenizer, self.end_ids)
            self.waiting.extend(handle.rows)
            return handle

    def has_room(self, requests: Sequence[Request]) -> bool:
        """Return whether these can run now, beside everything that runs and waits."""
        asked = [row.request for row in (*self.rows, *self.waiting)]
        longest = max(request.positions for request in (*asked, *requests))
        rows = len(asked) + sum(request.num_samples for request in requests)
        return rows <= self._most_rows(longest)

    @torch.inference_mode()
    def step(self) -> bool:
        """Read waiting prompts and add a token to every running text. Returns False if there is no work."""
        with self.lock:
            running = bool(self.rows)
            joined = self._admit()
            self._read_all_but(self.unread)
            busy = ((running or not joined) and self._decode()) or joined
            self._read_all_but(self.unread if busy else 0)
            return busy

    @torch.inference_mode()
    def cancel(self, handle: Handle) -> None:
        """End a request if it is still open. Its slots are free at once; it keeps the tokens it has."""
        with self.lock:
            self.waiting = deque(row for row in self.waiting if row.handle is not handle)
            for row in handle.rows:
                if not row.finished and row in self.rows:
                    self._leave(row)
                row.finished = True

    def refresh(self) -> None:
        """Copy the model's current weights, and forget conversations kept under the old ones."""
        with self.lock:
            self.kept.clear()
            if self.decoder is not None:
                self.decoder.refresh()

    def release(self) -> None:
        """Free weights, slots and graphs until the next request needs them. Cancels open requests."""
        with self.lock:
            for row in [*self.waiting, *self.rows]:
                self.cancel(row.handle)
            self._drop_launcher()
            self.launched.clear()
            self.kept.clear()
            self.decoder = None

    def _admit(self) -> bool:
        """Read as many waiting prompts as there is room for, and launch the draws of their first tokens."""
        rows = self._rows_with_room()
        groups = [[*group] for _, group in itertools.groupby(rows, key=lambda row: id(row.handle))]
        if not groups:
            return False
        launcher = self._make_slots(rows)
        prompts, whole = [group[0].request.prompt_ids for group in groups], list[int]()
        for place, prompt in enumerate(prompts):
            if beginning := longest_beginning(self.kept, prompt):
                self.kept.move_to_end(beginning)
                launcher.slots.put_in(len(self.rows), self.kept[beginning])
                self._join([groups[place]], launcher, start=len(beginning))
            else:
                whole.append(place)
        for places in batches_of([len(prompts[place]) for place in whole], self.prefill_tokens):
            self._join([groups[whole[place]] for place in places], launcher)
        return True

    def _rows_with_room(self) -> list[Row]:
        """Take the rows off the queue that fit beside the running ones."""
        rows, longest = list[Row](), max((row.request.positions for row in self.rows), default=0)
        while self.waiting:
            longest = max(longest, self.waiting[0].request.positions)
            if len(self.rows) + len(rows) >= self._most_rows(longest):
                break
            rows.append(self.waiting.popleft())
        if len(rows) < min(len(self.rows) // FEW, len(rows) + len(self.waiting)):
            self.waiting.extendleft(reversed(rows))
            rows = []
        return rows

    def _join(self, groups: list[list[Row]], launcher: Launcher, *, start: int = 0) -> None:
        """Read each prompt once, copy its slot for the other samples, and draw all first tokens."""
        slots, first = launcher.slots, len(self.rows)
        prompts = [group[0].request.prompt_ids for group in groups]
        logits_BV = launcher.read(prompts, row=first, start=start)
        joined, order = [group[0] for group in groups], [*range(len(groups))]
        for source, group in enumerate(groups):
            for row in group:
                row.began_with = group[0]
            copies = slice(first + len(joined), first + len(joined) + len(group) - 1)
            slots.copy_row(first + source, copies, length=len(prompts[source]))
            joined.extend(group[1:])
            order.extend([source] * (len(group) - 1))
        self.rows.extend(joined)
        self.moved = True
        table = self.table[first : len(self.rows)]
        for line, row in zip(table, joined, strict=True):
            self._fill(line, row)
        needs, seen_BV, drawn_B = needs_of(table), None, slots.drawn_B[first : len(self.rows)]
        if needs.penalty:
            seen_BV = slots.note_prompts(
                [row.request.prompt_ids for row in joined], first, self.model.vocab_size
            )
        settings = torch.from_numpy(table).to(logits_BV.device, copy=True)
        settings[:, POSITION] -= 1  # the prompt's last token has been fed
        log_probs_B = launcher.decoder.draw(
            logits_BV[order], settings, needs, seen_BV=seen_BV, drawn_B=drawn_B
        )
        self.launched.append((joined, launcher.download(drawn_B, log_probs_B)))

    def _fill(self, line: np.ndarray, row: Row) -> None:
        request, numbers = row.request, line.view(np.float32)
        greedy = request.temperature == 0
        line[SEED : SEED + 2].view(np.uint64)[0] = row.seed
        line[POSITION], line[LOG_PROBS] = len(request.prompt_ids), request.log_probs
        line[TOP_K] = 0 if greedy else min(request.top_k or 0, self.model.vocab_size)
        numbers[TEMPERATURE], numbers[TOP_P] = request.temperature, 1 if greedy else request.top_p
        numbers[PENALTY] = request.repetition_penalty

    def _decode(self) -> bool:
        """Launch one more draw for every running text."""
        if not self.rows or self.launcher is None:
            return False
        table = self.table[: len(self.rows)]
        if self.moved or table[0, POSITION] % RENOTED == 0:
            samples = dict[Row, list[int]]()
            for place, row in enumerate(self.rows):
                samples.setdefault(row.began_with, []).append(place)
            # Once most of a text is its own, a tile is slower than none
            prompts = [(places, row.start) for row, places in samples.items()]
            note_tiles(table, [(places, n) for places, n in prompts if table[places[0], POSITION] <= 2 * n])
            self.moved = False
        table[:, FORCED] = [
            row.known(place - row.start)
            for row, place in zip(self.rows, table[:, POSITION].tolist(), strict=True)
        ]
        self.launched.append(([*self.rows], self.launcher.decode(table)))
        table[:, POSITION] += 1
        return True

    def _read_all_but(self, unread: int) -> None:
        while len(self.launched) > unread:
            self._read(*self.launched.popleft())

    def _read(self, rows: list[Row], wait: Callable[[], list[list]]) -> None:
        """Give each row its draw, and remove the rows whose texts have ended."""
        for row, id, *log_prob in zip(rows, *wait(), strict=True):
            if row.finished:  # ended after this launch began
                continue
            if id < 0:
                row.handle.error = NOT_FINITE
                self.cancel(row.handle)
                continue
            row.take(id, *log_prob)
            if row.finished:
                self._leave(row)

    def _leave(self, row: Row) -> None:
        """Free a row's slot by moving the last row into it."""
        assert self.launcher is not None
        slots, place, last = self.launcher.slots, self.rows.index(row), len(self.rows) - 1
        if row.request.keep and row.completion.ids:
            self._keep(row, place, slots)
        if place != last:
            slots.copy_row(last, slice(place, place + 1), length=int(self.table[last, POSITION]))
            self.table[place], self.rows[place] = self.table[last], self.rows[last]
        self.rows.pop()
        self.moved = True

    def _keep(self, row: Row, place: int, slots: Slots) -> None:
        """Keep a copy of the slot, without the text's last token, which may never have been fed."""
        text = (*row.request.prompt_ids, *row.completion.ids[:-1])
        for older in [older for older in self.kept if text[: len(older)] == older]:
            del self.kept[older]
        self.kept[text] = slots.take_out(place, length=len(text))
        while sum(t.nbytes for kept in self.kept.values() for t in kept) > KEPT_SHARE * self.budget:
            self.kept.popitem(last=False)

    def _prepare(self) -> Decoder:
        """Return the packed weights, repacked if the model changed and no text is being written."""
        if self.decoder and not self.rows and not self.waiting and self.decoder.marks != marks_of(self.model):
            self.release()
        if self.decoder is None:
            self.decoder = Decoder(self.model, plain=self.plain)
            self._budget = free_bytes(self.model.device)
        return self.decoder

    @property
    def budget(self) -> int:
        """Return the bytes for slots; fixed once the weights are packed."""
        return self._budget or free_bytes(self.model.device)

    def _check(self, request: Request) -> None:
        request.check(max_positions=self.max_positions)
        size, budget = row_bytes(self.model, request.positions), self.budget
        if size > budget:
            raise ValueError(
                f"prompt + max_tokens ({request.positions:,}) needs a slot of {size / 2**20:,.0f} MiB; there "
                f"are {budget / 2**20:,.0f} MiB for slots: shorten the prompt or lower max_tokens"
            )

    def _most_rows(self, capacity: int) -> int:
        """Return how many rows fit if the longest text may reach `capacity` positions."""
        slots, taken = self.launcher and self.launcher.slots, 0
        if slots and self.rows:  # old and new slots coexist while texts are copied
            capacity, taken = max(capacity, slots.capacity), slots.num_bytes
        most = (self.budget - taken) // row_bytes(self.model, capacity)
        return min(max(most, slots.rows if slots and slots.capacity >= capacity else 0), MAX_ROWS)

    def _make_slots(self, joining: list[Row]) -> Launcher:
        """Return a launcher with slots for these rows and the running ones, which move if they must grow."""
        old, rows = self.launcher, len(self.rows) + len(joining)
        capacity = max(row.request.positions for row in [*self.rows, *joining])
        if old and old.slots.rows >= rows and old.slots.capacity >= capacity:
            return old
        if old and old.slots.capacity < capacity:
            # Double the capacity if it fits: else a growing chat needs new slots and graphs at every turn
            double = min(2 * old.slots.capacity, self.context)
            capacity = double if capacity < double and rows <= self._most_rows(double) else capacity
        if old and self.rows:
            capacity = max(capacity, old.slots.capacity)
        else:
            old = self._drop_launcher()  # free the old slots before allocating new ones
        rows = max(rows, min(bucket_of(rows), self._most_rows(capacity)))
        new = Slots(self.model, rows=rows, capacity=capacity)
        if old:
            new.adopt(old.slots, rows=len(self.rows))
        self.launcher = Launcher(self._prepare(), new, plain=self.plain)
        return self.launcher

    def _drop_launcher(self) -> None:
        if self.launcher and self.launcher.graphs:
            torch.cuda.synchronize(self.model.device)  # no graph may be freed while it runs
        self.launcher = None

    def _stream(self, request: Request) -> Generator[list[Token | None]]:
        handle = self.submit(request)
        try:
            for number in range(request.max_tokens):
                while not all(row.finished or len(row.completion.ids) > number for row in handle.rows):
                    self.step()
                tokens = [completion.token(number) for completion in handle.completions]
                if handle.done and not any(tokens):
                    return
                yield tokens
        finally:
            self.cancel(handle)


def engines_on(num_devices: int, model: GPT, tokenizer: Tokenizer) -> list[Engine]:
    """Return an engine per device. All but the model's own device get a copy of the model."""
    engines = []
    for device in pick_devices(num_devices) if num_devices > 1 else [model.device]:
        own = model
        if device != model.device:
            with torch.cuda.device(device):  # kernels are chosen by trying them on that device
                own = copy.deepcopy(model).to(device)
                own.prepare(dtype=model.compute_dtype)
        engines.append(Engine(own, tokenizer))
    return engines


def longest_beginning(texts: Iterable[tuple[int, ...]], prompt: Sequence[int]) -> tuple[int, ...]:
    """Return the longest text that is a proper prefix of the prompt, () if there is none."""
    fitting = (text for text in texts if len(text) < len(prompt) and (*prompt[: len(text)],) == text)
    return max(fitting, key=len, default=())


def free_bytes(device: torch.device) -> int:
    """Return the bytes of memory for slots."""
    if device.type != "cuda":
        return HOST_BYTES
    cached = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return int(FREE_SHARE / (1 + KEPT_SHARE) * (torch.cuda.mem_get_info(device)[0] + cached))
