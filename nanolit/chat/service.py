"""One queue in front of a model's engines: the page's and the API's replies share their batches.

Every engine, one per GPU, has its own thread, and only that thread touches it. Before each step the thread
takes requests for its engine from the queue and ends those whose clients have left. So no client waits for a
step in order to ask or to leave, and no event loop is ever blocked.
"""

import asyncio
import contextlib
import functools
import math
import queue
import threading
import time
import weakref
from collections import Counter
from collections.abc import AsyncGenerator, Callable, Generator, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Unpack

from nanolit.inference.engine import Engine, Sampling, longest_beginning
from nanolit.inference.launch import bucket_of
from nanolit.inference.request import Handle, Request, Token
from nanolit.machine.device import use_device
from nanolit.machine.terminal import one_line

PLACES = 40  # replies at once for each engine, those that wait for a slot included. Untuned
REPLY_SECONDS = 600.0  # after which a reply ends as if its length were reached
LONGEST_WAIT = 60  # seconds that a client is asked to wait: the most that OpenAI's own client respects
# An engine that failed is given nothing for so long while another one works: a broken GPU fails at once, has
# the least to do, and would be given every request. Untuned
REST_SECONDS = 60.0
REHEARSED = 3  # steps: the prompt, a captured step, a replayed one
ENDED = "the server has stopped"

News = list[Token] | Exception | None  # some tokens, what went wrong, or the end


class Failed(RuntimeError):
    """The model or the server, not the request, is at fault: out of memory, say."""


class Busy(ValueError):
    """All places are taken; `seconds` is how long one that asks should wait."""

    def __init__(self, places: int, seconds: int) -> None:
        self.seconds = seconds
        super().__init__(f"all {places} places are taken; try again in about {seconds} s")


@dataclass(eq=False)
class Ticket:
    """One request on its way: `tell` is called with its news, in an engine's thread."""

    request: Request
    tell: Callable[[News], None]
    deadline: float
    handle: Handle | None = None
    told: int = 0  # tokens
    left: bool = False  # its client no longer waits

    @property
    def is_over(self) -> bool:
        return self.left or time.monotonic() > self.deadline


@dataclass(eq=False)
class Worker:
    """An engine and its thread's requests; the other threads read them to share the queue."""

    engine: Engine
    tickets: list[Ticket] = field(default_factory=list)  # in the order in which they came
    kept: list[tuple[int, ...]] = field(default_factory=list)  # conversations whose slots the engine keeps
    full: bool = False  # it had no room for the next request in the queue
    rests_until: float = 0.0
    step_seconds: float = 0.0  # of the last steps, averaged
    unrehearsed: list[int] = field(default_factory=list)  # numbers of replies at once
    rehearsing: bool = False


class Post:
    """News on their way from the engines' threads to an event loop, which is woken once for all of them.

    Waking it for every token of forty streams took the loop and the engine more time than everything else.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._letters: list[tuple[asyncio.Queue[News], News]] = []

    def send(self, loop: asyncio.AbstractEventLoop, to: asyncio.Queue[News], item: News) -> None:
        with self._lock:
            self._letters.append((to, item))
            is_first = len(self._letters) == 1
        if is_first:
            with contextlib.suppress(RuntimeError):  # the loop is closed: the server ends
                loop.call_soon_threadsafe(self._deliver)

    def _deliver(self) -> None:
        with self._lock:
            letters, self._letters = self._letters, []
        for to, item in letters:
            to.put_nowait(item)


class Service:
    """Serves `engines` of one model to at most `places` requests for each at once; the others get `Busy`."""

    def __init__(
        self,
        engines: Sequence[Engine],
        *,
        places: int = PLACES,
        reply_seconds: float = REPLY_SECONDS,
        rehearses: bool = False,
    ) -> None:
        first = engines[0]
        self.tokenizer, self.context, self.end_ids = first.tokenizer, first.context, first.end_ids
        self.max_positions = first.max_positions
        self.places, self.reply_seconds = places * len(engines), reply_seconds
        self._totals = Counter(replies=0, tokens=0, cancelled=0, refused=0)  # since the start
        self._queue: list[Ticket] = []  # not yet taken by an engine
        self._changed = threading.Condition()
        self._posts: weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, Post] = weakref.WeakKeyDictionary()
        self._closed = False
        self._workers = [Worker(engine) for engine in engines]
        for worker in self._workers if rehearses else ():
            worker.unrehearsed = _rehearsals(worker.engine, places)
        self._threads = [
            threading.Thread(target=self._run, args=(worker,), name=f"engine {number}", daemon=True)
            for number, worker in enumerate(self._workers)
        ]
        for thread in self._threads:
            thread.start()

    @property
    def num_open(self) -> int:
        """Return how many requests are being answered or wait for a slot."""
        with self._changed:
            taken = [ticket for worker in self._workers for ticket in worker.tickets]
            return sum(not ticket.left for ticket in (*self._queue, *taken))

    def generate(
        self, prompt_ids: Sequence[int], **sampling: Unpack[Sampling]
    ) -> Generator[list[Token | None]]:
        """Generate one sample like `Engine.generate`, for threads such as the page's."""
        request = Request(prompt_ids=list(prompt_ids), **sampling)
        request.check(max_positions=self.max_positions)
        return self._steps(request)

    def _steps(self, request: Request) -> Generator[list[Token | None]]:
        news: queue.SimpleQueue[News] = queue.SimpleQueue()
        with self._entered(request, news.put):
            while (tokens := _checked(news.get())) is not None:
                for token in tokens:
                    yield [token]

    async def stream(self, request: Request, *, patience: float) -> AsyncGenerator[list[Token]]:
        """Yield tokens as they come, [] after each `patience` seconds without any; leaving early cancels.

        A reader that falls behind gets several at once: pieces of text cost the event loop more than tokens.
        """
        news: asyncio.Queue[News] = asyncio.Queue()
        post = self._posts.setdefault(asyncio.get_running_loop(), Post())
        with self._entered(request, functools.partial(post.send, asyncio.get_running_loop(), news)):
            yield []
            while True:
                items: list[News] = []
                try:
                    async with asyncio.timeout(patience):  # wait_for of Python 3.11 may lose a cancellation
                        items = [await news.get()]
                except TimeoutError:
                    yield []
                while not news.empty():
                    items.append(news.get_nowait())
                if tokens := [token for item in items if isinstance(item, list) for token in item]:
                    yield tokens
                if any(_checked(item) is None for item in items):
                    return

    def wait_seconds(self) -> int:
        """Return in how many seconds the reply that is closest to its limit will have ended."""
        with self._changed:
            ends = [
                (t.request.max_tokens - t.told) * w.step_seconds for w in self._workers for t in w.tickets
            ]
        return min(max(math.ceil(min(ends, default=0)), 1), LONGEST_WAIT)

    def stats(self) -> dict[str, float]:
        """Return what /stats shows."""
        slowest = max(worker.step_seconds for worker in self._workers)
        return {
            "engines": len(self._workers),
            "places": self.places,
            "open": self.num_open,
            **self._totals,
            "milliseconds_per_step": round(1000 * slowest, 2),
            "rehearsals_left": sum(len(worker.unrehearsed) for worker in self._workers),
        }

    def close(self) -> None:
        """End all replies and the threads."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        for thread in self._threads:
            thread.join(timeout=30)
        for ticket in self._queue:
            ticket.tell(Failed(ENDED))

    @contextlib.contextmanager
    def _entered(self, request: Request, tell: Callable[[News], None]) -> Iterator[None]:
        """Hold a place for the request, and give it back, whatever its reply has come to, at the end."""
        request.check(max_positions=self.max_positions)
        ticket = Ticket(request, tell, deadline=time.monotonic() + self.reply_seconds)
        with self._changed:
            if self._closed:
                raise Failed(ENDED)
            if self.num_open >= self.places:
                self._totals["refused"] += 1
                raise Busy(self.places, self.wait_seconds())
            self._queue.append(ticket)
            self._changed.notify_all()
        try:
            yield
        finally:
            with self._changed:
                ticket.left = True
                self._changed.notify_all()

    def _run(self, worker: Worker) -> None:
        use_device(worker.engine.model.device)
        while True:
            with self._changed:
                worker.rehearsing = False
                new = self._take(worker)
                if self._queue:  # what was this engine's may be another's now
                    self._changed.notify_all()
                while not (worker.tickets or worker.unrehearsed or self._closed):
                    self._changed.wait(REST_SECONDS)
                    new = self._take(worker)
                if self._closed:
                    break
                worker.rehearsing = not worker.tickets
            if worker.rehearsing:
                self._rehearse(worker)
                continue
            began = time.monotonic()
            try:
                self._drop_those_who_left(worker)
                self._submit(worker, new)
                worker.engine.step()
            except Exception as error:  # out of memory, say: these replies end, the next ones are served
                self._fail(worker, Failed(one_line(error)))
            worker.step_seconds += 0.1 * (time.monotonic() - began - worker.step_seconds)
            for ticket in [*worker.tickets]:
                self._tell(worker, ticket)
        self._fail(worker, Failed(ENDED))

    def _rehearse(self, worker: Worker) -> None:
        """Give the engine made-up requests, so that later ones find slots, kernels and graphs.

        The first step with a new number of replies makes them, for seconds, in which all replies would pause.
        Whoever asks meanwhile, or ends the service, waits for one step at most.
        """
        engine, rows = worker.engine, worker.unrehearsed[-1]
        # One prompt of each length comes alone, so that a graph reads it; the first time all come at once
        length = max(1, min(32 << len(worker.unrehearsed), engine.context - REHEARSED - 1))
        lengths, alone = [length] + (rows - 1) * [1], 1 if engine.launcher else rows
        try:
            handles = list[Handle]()
            for joining in (lengths[:alone], lengths[alone:], *([[]] * (REHEARSED - 2))):
                if self._closed or self._queue:
                    break
                handles += [
                    engine.submit(
                        Request(prompt_ids=[self.tokenizer.bos_id] * n, max_tokens=engine.context - n)
                    )
                    for n in joining
                ]
                engine.step()
            else:
                worker.unrehearsed.pop()
            for handle in handles:
                engine.cancel(handle)
            engine.step()
            if engine.decoder and 0 < engine.decoder.fused_rows < rows:
                raise MemoryError  # too little is left for kernels: better smaller slots
        except Exception:  # a person's request will say what is wrong
            worker.unrehearsed.clear()
            with contextlib.suppress(Exception):
                engine.release()

    def _take(self, worker: Worker) -> list[Ticket]:
        """Take this engine's requests off the queue, in order: a small one never overtakes a larger one."""
        new: list[Ticket] = []
        worker.kept, worker.full = [*worker.engine.kept], False
        for ticket in [*self._queue]:
            if not ticket.is_over:
                if self._worker_for(ticket) is not worker:
                    continue
                requests = [other.request for other in (*new, ticket)]
                worker.full = bool(worker.tickets) and not worker.engine.has_room(requests)
                if worker.full:
                    break
            self._queue.remove(ticket)
            worker.tickets.append(ticket)
            new.append(ticket)
        return new

    def _worker_for(self, ticket: Ticket) -> Worker | None:
        """Return who should answer: the one that keeps the conversation, else the one with least to do.

        One that rehearses comes last.

        None while all are full. Both are asked of the engines that have room and work.
        """
        now = time.monotonic()
        working = [worker for worker in self._workers if now > worker.rests_until] or self._workers
        ready = [worker for worker in working if not worker.full]
        keepers = [worker for worker in ready if longest_beginning(worker.kept, ticket.request.prompt_ids)]
        return min(keepers or ready, key=lambda one: (one.rehearsing, len(one.tickets)), default=None)

    def _submit(self, worker: Worker, new: Sequence[Ticket]) -> None:
        for ticket in new:
            if ticket in worker.tickets:  # it may have left meanwhile
                try:
                    ticket.handle = worker.engine.submit(ticket.request)
                except ValueError as error:
                    self._end(worker, ticket, error)

    def _drop_those_who_left(self, worker: Worker) -> None:
        for ticket in [*worker.tickets]:
            if ticket.is_over:
                self._end(worker, ticket, None, cancelled=1)

    def _tell(self, worker: Worker, ticket: Ticket) -> None:
        assert ticket.handle is not None
        completion = ticket.handle.completions[0]
        new = slice(ticket.told, None)
        tokens = [*map(Token, completion.ids[new], completion.sampled[new])]
        if tokens:
            ticket.told += len(tokens)
            with self._changed:
                self._totals["tokens"] += len(tokens)
            ticket.tell(tokens)
        try:
            if ticket.handle.done:
                self._end(worker, ticket, None, replies=1)
        except ValueError as error:
            self._end(worker, ticket, error)

    def _end(self, worker: Worker, ticket: Ticket, error: Exception | None, **counts: int) -> None:
        if ticket.handle is not None:
            worker.engine.cancel(ticket.handle)
        with self._changed:
            worker.tickets.remove(ticket)
            self._totals.update(counts)
        if error is not None:
            ticket.tell(error)
        ticket.tell(None)

    def _fail(self, worker: Worker, error: Exception) -> None:
        """End all that this engine has, which then begins anew."""
        with self._changed:
            worker.rests_until = time.monotonic() + REST_SECONDS
        for ticket in [*worker.tickets]:
            ticket.handle = None  # a broken engine may not be able to cancel it
            self._end(worker, ticket, error)
        with contextlib.suppress(Exception):
            worker.engine.release()


def _rehearsals(engine: Engine, places: int) -> list[int]:
    """Return the numbers of replies to rehearse, from the last to the first.

    The first needs the largest slots, which serve all others; the second is what a first person needs.
    """
    if engine.model.device.type != "cuda":
        return []
    powers = [1 << power for power in range(bucket_of(places).bit_length() - 1)]
    return [*reversed(powers), places]


def _checked(news: News) -> list[Token] | None:
    if isinstance(news, Exception):
        raise news
    return news
