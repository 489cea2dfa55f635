"""The models that a server offers, loaded when they are asked for."""

import contextlib
import threading
from collections import OrderedDict, deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from nanolit.chat.dialogue import Talker
from nanolit.chat.service import PLACES, Busy, Service
from nanolit.inference.engine import engines_on
from nanolit.model.gpt import GPT
from nanolit.tokenizer.bpe import Tokenizer

MOST_LOADED = 2  # the one that talks and one to compare it with
LOADING_SECONDS = 10  # that one is asked to wait while every loaded model talks


@dataclass(frozen=True, kw_only=True)
class Defaults:
    """Defaults for drawing replies; max_tokens=None is derived from the model's context."""

    temperature: float = 0.6
    top_k: int | None = 50
    max_tokens: int | None = None
    seed: int | None = None


class Loaded(Protocol):
    """The part of what `nanolit.load` gives that is needed here."""

    model: GPT
    tokenizer: Tokenizer
    meta: dict[str, Any]


@dataclass(frozen=True)
class Served:
    """A model that answers: `talker` for threads, `service` for the event loop."""

    name: str
    service: Service
    talker: Talker
    borrowers: deque[None] = field(default_factory=deque)  # one entry for each

    @property
    def is_base(self) -> bool:
        return self.talker.continues_text


class Models:
    """Models by name; the first name is the default. At most `MOST_LOADED` are in memory at once.

    Each answers on `devices` devices, with `places` for each of them.
    """

    def __init__(
        self,
        names: Sequence[str],
        load: Callable[[str], Loaded],
        *,
        places: int = PLACES,
        devices: int = 1,
    ) -> None:
        self.names = list(names)
        self._load, self._places, self._devices = load, places, devices
        self._loaded: OrderedDict[str, Served] = OrderedDict()
        self._lock = threading.RLock()

    def find(self, wish: str) -> str | None:
        """Return the name of an offered model, if there is one; a run's name means its last stage."""
        names = [wish, *(f"{wish}/{stage}" for stage in ("rl", "sft", "mid", "base"))]
        return next((name for name in names if name in self.names), None)

    def get(self, name: str | None = None) -> Served:
        """Return a model, loading it first if need be: seconds. ValueError for a name that is not offered."""
        wish = name or self.names[0]
        name = self.find(wish)
        if name is None:
            raise ValueError(f"there is no model {wish!r}; available: {', '.join(self.names)}")
        with self._lock:
            if name not in self._loaded:
                self._make_room()
                loaded = self._load(name)
                meta, engines = loaded.meta, engines_on(self._devices, loaded.model, loaded.tokenizer)
                alone = len(self.names) == 1  # rehearsals take the memory that all replies at once may need
                service = Service(engines, places=self._places, rehearses=alone)
                talker = Talker(
                    service,
                    continues_text=meta.get("stage") == "base",
                    questions=meta.get("questions", ()),
                )
                self._loaded[name] = Served(name, service, talker)
            self._loaded.move_to_end(name)
            return self._loaded[name]

    @contextlib.contextmanager
    def lent(self, name: str | None = None) -> Iterator[Served]:
        """Lend a model, as `get` gives it: it stays until the block ends, and while it answers."""
        with self._lock:
            served = self.get(name)
            served.borrowers.append(None)
        try:
            yield served
        finally:
            served.borrowers.pop()  # without the lock: another model's loading holds it for seconds

    def loaded(self) -> list[Served]:
        """Return the models in memory."""
        return [*self._loaded.values()]

    def close(self) -> None:
        """End all replies."""
        for served in self.loaded():
            served.service.close()

    def _make_room(self) -> None:
        """Drop the least recently used of the idle models; Busy if every model is talking."""
        if len(self._loaded) < MOST_LOADED:
            return
        for name, served in self._loaded.items():
            if not (served.borrowers or served.service.num_open):  # in this order: borrowers open replies
                served.service.close()
                del self._loaded[name]
                return
        raise Busy(self._places * self._devices, LOADING_SECONDS)
