"""Shards from the Hugging Face hub to a folder: in parallel, resumed, verified; whole or absent.

A shard grows in `.partial/` and gets its name once its size and sha256 are what the hub states. `hub.json`
keeps those figures and the revision: later fetches take the same one, and a shard whose size has changed is
fetched again. With nothing missing the hub is never asked.
"""

import functools
import hashlib
import http
import os
import re
import shutil
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from pathlib import Path
from typing import TypeVar, cast

from typing_extensions import TypedDict

from nanolit.machine.locks import held
from nanolit.machine.numbers import chunked, listed
from nanolit.machine.paths import read_json, remove_leftovers, write_json
from nanolit.machine.terminal import duration, one_line

FORMAT = 1
RECORD = "hub.json"
PARTIAL = ".partial"
PARALLEL = 8  # shards at a time
ATTEMPTS = 6  # in a row without a byte more; with the pauses between them half a minute, or as the hub says
LONGEST_PAUSE_SECONDS = 900.0  # that the hub may ask for; its limits are for five minutes
TIMEOUT_SECONDS = 20.0  # without a byte, after which a connection counts as lost
ASKED_AT_ONCE = 500  # file names in one request
POLL_SECONDS = 0.5
TOLD_EVERY_SECONDS = 10.0  # where the output is not a terminal
SPEED_OVER_POLLS = 30
LARGEST_SHARD = 1 << 62  # bytes: what a file can have
TRANSIENT = (408, 425, 429)  # of the client's errors, those that pass

Answer = TypeVar("Answer")


class Stated(TypedDict):
    """A shard's size in bytes and its sha256, as the hub states them."""

    size: int
    sha256: str


class Record(TypedDict):
    """hub.json without its format."""

    repository: str
    revision: str
    shards: dict[str, Stated]


def missing_shards(folder: Path, names: Sequence[str]) -> list[str]:
    """Return the shards that are not there, or not in the size that the hub stated when they were fetched."""
    record = _record(folder)
    stated = record["shards"] if record else {}

    def whole(name: str) -> bool:
        size = _size(folder / name)
        return size is not None and (name not in stated or size == stated[name]["size"])

    return [name for name in names if not whole(name)]


def fetch_shards(
    folder: Path, repository: str, names: Sequence[str], *, offline: bool, first_pause: float = 1.0
) -> None:
    """Bring the missing ones of `names` into the folder; ValueError says what stands in the way.

    Lost connections, 5xx answers, truncated and damaged files are tried again after pauses that double from
    `first_pause` seconds. What was received stays, also after an interruption: the next call resumes there.
    Waits while another process fetches into the folder.
    """
    missing = missing_shards(folder, names)
    if not missing:
        return
    if offline or os.environ.get("HF_HUB_OFFLINE", "0").upper() in ("1", "ON", "YES", "TRUE"):
        raise ValueError(
            f"{folder} lacks {len(missing):,} of {len(names):,} shards ({listed(missing)}), and "
            "offline=true (or HF_HUB_OFFLINE) forbids downloading them; allow it, or copy them there from "
            f"https://huggingface.co/datasets/{repository}"
        )
    fetch = _Fetch(folder, repository, first_pause=first_pause)
    try:
        with held(folder / ".lock", wait=True):  # another process may be fetching into the same .partial/
            remove_leftovers(folder)
            if missing := missing_shards(folder, names):
                fetch.run(missing)
    except BrokenPipeError:  # of whoever read the progress
        raise
    except OSError as error:
        raise ValueError(fetch.unwritable(error)) from error


class _Fetch:
    """One call of `fetch_shards`: its threads share the revision, what the hub states, and `stopped`."""

    def __init__(self, folder: Path, repository: str, *, first_pause: float) -> None:
        self.folder, self.repository, self.first_pause = folder, repository, first_pause
        self.partial = folder / PARTIAL
        self.endpoint = os.environ.get("HF_ENDPOINT") or None
        self.stopped = threading.Event()

    def run(self, names: Sequence[str]) -> None:
        self.partial.mkdir(exist_ok=True)
        self.stated = self._ask(names)
        self._check_room(names)
        executor = ThreadPoolExecutor(PARALLEL, thread_name_prefix="nanolit-fetch")
        line = _ProgressLine(self, names)
        try:
            pending = {executor.submit(self._fetch, name) for name in names}
            while pending:
                done, pending = wait(pending, timeout=POLL_SECONDS, return_when=FIRST_EXCEPTION)
                for future in done:
                    future.result()
                line.show(last=not pending)
        finally:  # a fault of one shard, or Ctrl-C: the others stop where they are
            self.stopped.set()
            executor.shutdown(cancel_futures=True)
        shutil.rmtree(self.partial, ignore_errors=True)

    def _ask(self, names: Sequence[str]) -> dict[str, Stated]:
        """Return size and sha256 of each, from hub.json or else from the hub, and keep them there."""
        from huggingface_hub import HfApi
        from huggingface_hub.hf_api import RepoFile

        hub, record = HfApi(endpoint=self.endpoint), _record(self.folder)
        if record is None or record["repository"] != self.repository:
            revision = self._answer(lambda: str(hub.dataset_info(self.repository).sha))
            record = Record(repository=self.repository, revision=revision, shards={})
        self.revision = revision = record["revision"]
        shards = record["shards"]
        for some in chunked((name for name in names if name not in shards), ASKED_AT_ONCE):
            where = {"revision": revision, "repo_type": "dataset"}
            ask = functools.partial(hub.get_paths_info, self.repository, some, **where)
            for file in self._answer(ask):
                if isinstance(file, RepoFile) and file.lfs and file.path in some and _is_size(file.lfs.size):
                    shards[file.path] = {"size": file.lfs.size, "sha256": str(file.lfs.sha256)}
        if absent := [name for name in names if name not in shards]:
            raise ValueError(
                f"{self.repository} on the hub has no {listed(absent)} at revision {revision[:8]}; "
                "choose fewer shards (a smaller max_steps), or another data=…"
            )
        write_json(self.folder / RECORD, {"format": FORMAT, **record})
        return shards

    def _answer(self, ask: Callable[[], Answer]) -> Answer:
        """Return what the hub answers; ValueError for what is no answer of a hub, a login page, say."""

        def attempt() -> Answer:
            try:
                return ask()
            except OSError:
                raise
            except (ValueError, LookupError, TypeError, AttributeError) as error:
                raise ValueError(
                    f"{self.repository}: {self.endpoint or 'huggingface.co'} answers, but not like a hub "
                    f"({one_line(error)}); is there a login page in between, or is HF_ENDPOINT wrong?"
                ) from error

        return self._patiently(self.repository, attempt)

    def _check_room(self, names: Sequence[str]) -> None:
        needed = sum(self.stated[name]["size"] for name in names) - self.received(names)
        free = shutil.disk_usage(self.folder).free
        # A Modal volume grows, and answers a question for its size with placeholders
        if needed > free and os.environ.get("MODAL_IS_REMOTE") != "1":
            raise ValueError(
                f"{self.folder} needs {needed / 1e9:,.1f} GB more for {len(names):,} shards, and the disk "
                f"has {free / 1e9:,.1f} GB left; free some space, or give another root=…"
            )

    def _fetch(self, name: str) -> None:
        """Receive, verify, rename; runs on a thread."""
        partial, target = self.partial / name, self.folder / name

        def attempt() -> None:
            self._receive(name, partial)
            self._verify(name, partial)
            os.replace(partial, target)

        self._patiently(name, attempt, progress=lambda: _size(partial) or 0)

    def _receive(self, name: str, partial: Path) -> None:
        """Append to `partial` what is missing of the shard."""
        from huggingface_hub import hf_hub_url
        from huggingface_hub.utils import build_hf_headers, get_session, hf_raise_for_status

        size, have = self.stated[name]["size"], _size(partial) or 0
        if have == size:
            return
        url = hf_hub_url(
            self.repository, name, repo_type="dataset", revision=self.revision, endpoint=self.endpoint
        )
        headers = {**build_hf_headers(), "Accept-Encoding": "identity"}
        if 0 < have < size:
            headers["Range"] = f"bytes={have}-"
        with get_session().stream("GET", url, headers=headers, timeout=TIMEOUT_SECONDS) as response:
            hf_raise_for_status(response)
            with partial.open(
                "ab" if response.status_code == http.HTTPStatus.PARTIAL_CONTENT else "wb"
            ) as file:
                for chunk in response.iter_bytes():  # as it comes: a chunk size would hold bytes back
                    file.write(chunk)
                    if self.stopped.is_set():
                        raise _Stopped

    def _verify(self, name: str, partial: Path) -> None:
        """OSError unless the file is what the hub states; one that can't be completed is removed."""
        stated, size = self.stated[name], partial.stat().st_size
        if size < stated["size"]:
            raise OSError(f"only {size:,} of {stated['size']:,} bytes arrived")
        with partial.open("rb") as file:
            right = (
                size == stated["size"] and hashlib.file_digest(file, "sha256").hexdigest() == stated["sha256"]
            )
            os.fsync(file.fileno())  # before it gets its name: a crash must not leave an empty shard under it
        if not right:
            partial.unlink()
            raise OSError("the download is damaged (its sha256 differs from the hub's)")

    def _patiently(
        self, what: str, attempt: Callable[[], Answer], *, progress: Callable[[], int] = lambda: 0
    ) -> Answer:
        """Return what `attempt` gives, tried again after what may pass; more bytes restart the count."""
        from huggingface_hub.utils import HfHubHTTPError

        # The library's HTTP errors share a base with the errors of the HTTP package that it uses
        faults = cast("tuple[type[Exception], ...]", (OSError, *HfHubHTTPError.__bases__))
        failures = 0
        while True:
            before = progress()
            try:
                return attempt()
            except faults as error:
                if isinstance(error, OSError) and error.errno is not None:
                    raise ValueError(self.unwritable(error)) from error
                failures = 1 if progress() > before else failures + 1
                if failures == ATTEMPTS or not _passes(error):
                    raise ValueError(
                        f"could not download {what} from the hub: {_reason(error)}; what was received is "
                        "kept: repeat the same command later, or train on data=PATH or data=sample"
                    ) from error
                reason, asked = _reason(error), _asked_pause(error)
            pause = max(self.first_pause * 2 ** (failures - 1), asked)
            _say(f"{what}: {reason}; trying again in {pause:.0f} s")
            if self.stopped.wait(pause):
                raise _Stopped

    def unwritable(self, error: OSError) -> str:
        return (
            f"{self.folder} cannot be written ({error.strerror}); what was received is kept: free some space "
            "or give another root=…, then repeat the same command"
        )

    def received(self, names: Sequence[str]) -> int:
        """Count the bytes of these shards that are on the disk."""
        return sum(_size(self.partial / name) or _size(self.folder / name) or 0 for name in names)


class _Stopped(Exception):
    """Another shard failed, or the user interrupted: this one stops without a fault of its own."""


class _ProgressLine:
    """`climbmix: 12 of 241 shards, 1.2 of 24.1 GB, 85.3 MB/s, 4:32 left`."""

    def __init__(self, fetch: _Fetch, names: Sequence[str]) -> None:
        self.fetch, self.names = fetch, names
        self.total = sum(fetch.stated[name]["size"] for name in names)
        self.polls = deque([(time.monotonic(), fetch.received(names))], maxlen=SPEED_OVER_POLLS)
        self.told = -TOLD_EVERY_SECONDS

    def show(self, *, last: bool) -> None:
        now, received = time.monotonic(), self.fetch.received(self.names)
        self.polls.append((now, received))
        begun, before = self.polls[0]
        speed = max(received - before, 0) / max(now - begun, 1e-9)
        whole = sum((self.fetch.folder / name).exists() for name in self.names)
        left = f"{duration((self.total - received) / speed)} left" if speed else "stalled"
        line = (
            f"  {self.fetch.folder.name}: {whole:,} of {len(self.names):,} shards, {received / 1e9:,.2f} of "
            f"{self.total / 1e9:,.2f} GB, {speed / 1e6:,.1f} MB/s{'' if last else f', {left}'}"
        )
        if sys.stdout.isatty():
            print(f"\r\033[K{line}", end="\n" if last else "", flush=True)
        elif last or now - self.told >= TOLD_EVERY_SECONDS:
            self.told = now
            print(line, flush=True)


def _record(folder: Path) -> Record | None:
    path = folder / RECORD
    if not path.is_file():
        return None
    record = read_json(path, Record, remedy="delete it, and the shards next to it are checked again")
    if record.get("format") != FORMAT:
        raise ValueError(
            f"{path} has format {record.get('format')!r}, this version reads {FORMAT}; delete it, or update "
            "NanoLit"
        )
    if odd := [name for name, stated in record["shards"].items() if not _is_size(stated["size"])]:
        raise ValueError(f"{path} is damaged: {odd[0]!r} has an impossible size; delete it")
    return cast(Record, record)


def _is_size(size: object) -> bool:
    return type(size) is int and 0 < size <= LARGEST_SHARD


def _passes(error: Exception) -> bool:
    """Tell whether trying again may help: not where the hub says no."""
    status = getattr(getattr(error, "response", None), "status_code", None)
    return status is None or status >= http.HTTPStatus.INTERNAL_SERVER_ERROR or status in TRANSIENT


def _asked_pause(error: Exception) -> float:
    """Return the seconds that the hub asks to wait: `Retry-After: 45` or `RateLimit: "…";r=0;t=45`, else 0.

    Source: https://huggingface.co/docs/hub/rate-limits.
    """
    response = getattr(error, "response", None)
    if response is None:
        return 0.0
    told = re.fullmatch(r"(\d+)", response.headers.get("retry-after", ""))
    if response.status_code == http.HTTPStatus.TOO_MANY_REQUESTS:
        told = told or re.search(r"\br=0;t=(\d+)", response.headers.get("ratelimit", ""))
    # A second more, as the hub counts whole ones
    return min(float(told[1]) + 1, LONGEST_PAUSE_SECONDS) if told else 0.0


def _reason(error: Exception) -> str:
    response = getattr(error, "response", None)
    if response is not None:
        return f"it answered {response.status_code} {response.reason_phrase}"
    return one_line(error) or type(error).__name__


def _size(path: Path) -> int | None:
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return None


def _say(text: str) -> None:
    prefix = "\r\033[K" if sys.stdout.isatty() else ""
    print(f"{prefix}  {text}", flush=True)
