"""One thread that drives an engine for many people at once: the page's and the API's replies share a batch.

Only this thread touches the engine. Requests and cancellations wait in an inbox that it empties before each
step, so nobody waits for a step to ask or to leave, and no event loop is ever held up.
"""

import asyncio
import contextlib
import math
import queue
import threading
import time
from collections import deque
from collections.abc import AsyncGenerator, Callable, Generator, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Unpack

from nanolit.inference.engine import Engine, Sampling
from nanolit.inference.request import Handle, Request, Token
from nanolit.machine.terminal import one_line

PLACES = 40  # replies at once, those that wait for a slot included. Untuned
REPLY_SECONDS = 600.0  # after which a reply ends as if its length were reached
LONGEST_WAIT = 60  # seconds that a client is asked to wait: the most that OpenAI's own client respects
ENDED = "the server has ended"

News = list[Token] | Exception | None  # some tokens, what went wrong, or the end


class Failed(RuntimeError):
    """The model, not the request, is at fault: out of memory, say."""


class Busy(ValueError):
    """All places are taken; `seconds` is how long one that asks should wait."""

    def __init__(self, places: int, seconds: int) -> None:
        self.seconds = seconds
        super().__init__(f"all {places} places are taken; try again in about {seconds} s")


@dataclass(eq=False)
class Ticket:
    """One request on its way: `tell` is called with its news, in the service's thread."""

    request: Request
    tell: Callable[[News], None]
    deadline: float
    handle: Handle | None = None
    told: int = 0  # tokens
    left: bool = False  # nobody waits for it any more


@dataclass
class Totals:
    """What /stats adds up since the start."""

    replies: int = 0
    tokens: int = 0
    cancelled: int = 0
    refused: int = 0


class Service:
    """Serves `engine` to at most `places` requests at once; the others get `Busy`."""

    def __init__(self, engine: Engine, *, places: int = PLACES, reply_seconds: float = REPLY_SECONDS) -> None:
        self.tokenizer, self.context, self.end_ids = engine.tokenizer, engine.context, engine.end_ids
        self.max_positions = engine.max_positions
        self.places, self.reply_seconds, self.totals = places, reply_seconds, Totals()
        self._engine = engine
        self._tickets: list[Ticket] = []  # in the order in which they came
        self._inbox: deque[Ticket] = deque()
        self._changed = threading.Condition()
        self._closed = False
        self._step_seconds = 0.0  # of the last steps, averaged
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)
        self._thread.start()

    @property
    def num_open(self) -> int:
        """Return how many requests are being answered or wait for a slot."""
        with self._changed:
            return sum(not ticket.left for ticket in (*self._tickets, *self._inbox))

    def generate(
        self, prompt_ids: Sequence[int], **sampling: Unpack[Sampling]
    ) -> Generator[list[Token | None]]:
        """As `Engine.generate` for one sample: for threads, the page's among them."""
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
        """Yield tokens as they come, [] after each `patience` seconds without any; leaving early cancels."""
        news: asyncio.Queue[News] = asyncio.Queue()
        loop = asyncio.get_running_loop()

        def tell(item: News) -> None:
            with contextlib.suppress(RuntimeError):  # the loop is closed: the server ends
                loop.call_soon_threadsafe(news.put_nowait, item)

        with self._entered(request, tell):
            yield []
            while True:
                try:
                    tokens = _checked(await asyncio.wait_for(news.get(), patience))
                except TimeoutError:
                    tokens = []
                if tokens is None:
                    return
                yield tokens

    def wait_seconds(self) -> int:
        """Return in how many seconds the reply that is closest to its limit will have ended."""
        with self._changed:
            left = [t.request.max_tokens - t.told for t in self._tickets] or [1]
        return min(max(math.ceil(min(left) * self._step_seconds), 1), LONGEST_WAIT)

    def stats(self) -> dict[str, float]:
        """Return what /stats shows."""
        return {
            "places": self.places,
            "open": self.num_open,
            **asdict(self.totals),
            "milliseconds_per_step": round(1000 * self._step_seconds, 2),
        }

    def close(self) -> None:
        """End all replies and the thread."""
        with self._changed:
            self._closed = True
            self._changed.notify()
        self._thread.join(timeout=30)

    @contextlib.contextmanager
    def _entered(self, request: Request, tell: Callable[[News], None]) -> Iterator[None]:
        """Hold a place for the request, and give it back, whatever its reply has come to, at the end."""
        request.check(max_positions=self.max_positions)
        ticket = Ticket(request, tell, deadline=time.monotonic() + self.reply_seconds)
        with self._changed:
            if self._closed:
                raise ValueError(ENDED)
            if self.num_open >= self.places:
                self.totals.refused += 1
                raise Busy(self.places, self.wait_seconds())
            self._inbox.append(ticket)
            self._changed.notify()
        try:
            yield
        finally:
            with self._changed:
                ticket.left = True
                self._changed.notify()

    def _run(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._inbox or self._tickets or self._closed)
                if self._closed:
                    break
                new, self._inbox = self._inbox, deque()
                self._tickets += new
            self._submit(new)
            self._drop_those_who_left()
            began = time.monotonic()
            try:
                self._engine.step()
            except Exception as error:  # out of memory, say: these replies end, the next ones are served
                self._fail(error)
            self._step_seconds += 0.1 * (time.monotonic() - began - self._step_seconds)
            for ticket in [*self._tickets]:
                self._tell(ticket)
        self._fail(ValueError(ENDED))

    def _submit(self, new: Sequence[Ticket]) -> None:
        for ticket in new:
            try:
                ticket.handle = self._engine.submit(ticket.request)
            except ValueError as error:
                self._end(ticket, error)

    def _drop_those_who_left(self) -> None:
        now = time.monotonic()
        for ticket in [*self._tickets]:
            if ticket.left or now > ticket.deadline:
                self.totals.cancelled += 1
                self._end(ticket, None)

    def _tell(self, ticket: Ticket) -> None:
        assert ticket.handle is not None
        completion = ticket.handle.completions[0]
        new = slice(ticket.told, None)
        tokens = [*map(Token, completion.ids[new], completion.sampled[new])]
        if tokens:
            ticket.told += len(tokens)
            self.totals.tokens += len(tokens)
            ticket.tell(tokens)
        try:
            if ticket.handle.done:
                self.totals.replies += 1
                self._end(ticket, None)
        except ValueError as error:
            self._end(ticket, error)

    def _end(self, ticket: Ticket, error: Exception | None) -> None:
        if ticket.handle is not None:
            self._engine.cancel(ticket.handle)
        with self._changed:
            self._tickets.remove(ticket)
        if error is not None:
            ticket.tell(error)
        ticket.tell(None)

    def _fail(self, error: Exception) -> None:
        self._engine.release()
        for ticket in [*self._tickets]:
            self._end(ticket, error if str(error) == ENDED else Failed(one_line(error)))


def _checked(news: News) -> list[Token] | None:
    if isinstance(news, Exception):
        raise news
    return news
