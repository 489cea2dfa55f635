"""Inputs for fuzz.py that people, models and a hub send: command lines, chats, requests, sums, programs."""

import asyncio
import contextlib
import functools
import importlib
import io
import json
import os
import re
import shutil
import sys
import warnings
from collections.abc import Callable
from http.server import ThreadingHTTPServer
from pathlib import Path
from random import Random
from threading import Thread
from typing import Any

import httpx
import yaml
from hub import Handler, Hub  # pyright: ignore[reportMissingImports]
from huggingface_hub.utils import HfHubHTTPError

from dev.fuzz_files import BYTE_TOKENIZER, FIXTURES, Kind, Opener, Wrong
from dev.fuzz_inputs import INPUTS, damaged, edited, tampered, text, typed, value
from launch.__main__ import COMMANDS as LAUNCH
from nanolit import identity, language_model, plan, train
from nanolit.chat import __main__ as chat
from nanolit.chat.dialogue import Talker, as_parts
from nanolit.chat.guard import COOKIE
from nanolit.chat.models import Defaults, Models
from nanolit.chat.server import build_app
from nanolit.chat.terminal import COMMANDS, Drawing, Terminal
from nanolit.config.compose import compose, options
from nanolit.config.names import flatten
from nanolit.config.schema import Choices
from nanolit.data.download import LONGEST_PAUSE_SECONDS, _asked_pause, fetch_shards
from nanolit.inference.calculator import calculate
from nanolit.machine.arguments import choose, read
from nanolit.machine.paths import CONF
from nanolit.model.release import load_release
from nanolit.tasks.gsm8k import parts_of, same_answer
from nanolit.tasks.humaneval import extract_program, imports_of
from nanolit.tasks.sandbox import judge_python

RELEASE = FIXTURES / "release_format_1"


def loaded(stage: str) -> language_model.LanguageModel:
    """Return a tiny model that says anything, as if it came from this stage."""
    model, meta = load_release(RELEASE, device="cpu")
    return language_model.LanguageModel(model, BYTE_TOKENIZER, meta={**meta, "stage": stage})


def at_home(folder: Path) -> None:
    """Make a folder the working and home folder, so that nothing else is read or written."""
    os.chdir(folder)
    os.environ["HOME"] = str(folder)


# Command lines


def open_commands(folder: Path) -> Kind:
    """Command lines of every command but those of Hydra's, in a folder of their own."""
    at_home(folder)
    shutil.copytree(FIXTURES / "run_format_1", "root")
    shutil.copytree(FIXTURES / "nanochat_2026", "nanochat")
    shutil.copytree(RELEASE, "release")
    Path("facts.md").write_text("It is small.")

    def make(random: Random) -> list[str]:
        name, *words = random.choice(INPUTS["commands"]).split()
        return [name, *typed(random, words)]

    def feed(words: list[str]) -> Any:
        name, rest = words[0], words[1:]
        sys.stdin = io.StringIO("Hello\n")
        keys = {word.lstrip("-").partition("=")[0] for word in rest}
        asks = {"launch": True, "chat": keys & {"web", "cluster"}, "identity": "dry_run=true" not in rest}
        if asks.get(name):
            return parsed(name, rest)
        module = importlib.import_module(f"nanolit.{name}" + ".__main__" * (name in ("chat", "report")))
        return module.main(rest)

    return Kind(make, feed)


def parsed(name: str, words: list[str]) -> object:
    """Read the words of a command that would start a server or ask another one."""
    if name == "chat":
        return chat.parse(words)
    if name == "identity":
        return identity.order_of(read(identity.Settings, words, about=""))
    settings, _ = LAUNCH[choose((words or [""])[0], LAUNCH, kind="command")]
    return read(settings, words[1:], about="")


def open_overrides(folder: Path) -> Kind:
    """Words that Hydra reads: any key of a job with any value, and words that aren't overrides at all."""
    at_home(folder)
    job = compose(["experiment=demo"])
    keys = [*flatten({**job}), *job, *Choices.__annotations__]
    keys += ["experiment", "hydra.mode", "hydra/launcher", "mixture"]
    groups = ("model", "recipe", "data", "cluster", "phase", "logger")
    values = [name for group in groups for name in options(group)]
    starts = (["phase=base", "model=d2", "data=sample"], ["experiment=demo"], ["phase=speedrun"])

    def make(random: Random) -> list[str]:
        words = random.choice(starts)
        for _ in range(random.choice((1, 1, 2))):
            likely = *random.choices(INPUTS["plausible"], k=6), random.choice(values), "{a: [1, b]}"
            odd, key = random.choice((*likely, text(random), json.dumps(value(random)))), random.choice(keys)
            key = random.choice((*[key] * 6, key.rpartition(".")[0] or key, f"+{key}", f"~{key}", key + "x"))
            words = [*words, f"{key}={odd}"]
            words = typed(random, [word[:20_000] for word in words]) if random.random() < 0.3 else words
        return [word.replace("\0", "") for word in words]

    return Kind(make, lambda words: plan.main([*words, *(["--json"] if len(words[-1]) % 5 == 0 else [])]))


def open_train(folder: Path) -> Kind:
    """The same words for the training command, which only plans here."""
    make, _ = open_overrides(folder)

    def feed(words: list[str]) -> int:
        sys.argv = ["nanolit.train", *words, "dry_run=true"]
        try:
            return train.main(sys.argv[1:])
        finally:
            os.environ.pop("HYDRA_FULL_ERROR", None)  # which the command sets for the rest of its process

    return Kind(make, feed)


def open_yaml(folder: Path) -> Kind:
    """The user's own mixtures and chat evaluations, and configuration files on a search path."""
    sources = {
        "mixture": (CONF / "mixture" / "demo_sft.yaml", ["phase=sft", "model=d2"]),
        "chat_tasks": (CONF / "chat_evaluation" / "demo.yaml", ["phase=sft", "model=d2"]),
        "experiment": (CONF / "experiment" / "quick_d12.yaml", []),
    }

    def make(random: Random) -> tuple[list[str], bytes]:
        key = random.choice([*sources])
        path, words = sources[key]
        content = path.read_bytes()
        own = [f"hydra.searchpath=[file://{folder}]", "experiment=own"]
        chosen = own if key == "experiment" else [f"{key}={folder / 'own.yaml'}"]
        return [*words, *chosen], tampered(random, content, yaml.safe_load(content))

    def feed(asked: tuple[list[str], bytes]) -> int:
        words, content = asked
        for file in (folder / "experiment" / "own.yaml", folder / "own.yaml"):
            file.parent.mkdir(exist_ok=True)
            file.write_bytes(content)
        return plan.main(words)

    return Kind(make, feed)


# Chats

LONG = {"NINES": "9" * 5000, "COOKIE": COOKIE}
HEADERS = {
    name: [re.sub("NINES|COOKIE", lambda match: LONG[match[0]], word) for word in words]
    for name, words in INPUTS["headers"].items()
}
PATHS = ("/v1/chat/completions",) * 6 + (*INPUTS["paths"],)


def open_requests(folder: Path) -> Kind:
    """Requests for the chat's API with damaged bodies and headers; half of them meet a password."""
    models = Models(["tiny/sft", "tiny/base"], lambda name: loaded(name.partition("/")[2]))
    build = functools.partial(build_app, models, defaults=Defaults(seed=1), page=False)
    apps = {word: build(password=word) for word in (None, "secret-word")}

    def make(random: Random) -> tuple[str | None, str, str, list[tuple[bytes, bytes]], bytes]:
        method, path = random.choice(("POST", "POST", "POST", "GET", "PUT", "OPTIONS")), random.choice(PATHS)
        path = text(random) if random.random() < 0.05 else path
        node = random.choice(INPUTS["requests"])
        body = tampered(random, json.dumps(node).encode(), node)
        headers = {"host": "127.0.0.1", "content-type": "application/json"}
        for name in random.sample([*HEADERS], random.choice((0, 0, 1, 1, 2))):
            headers[name] = random.choice((*HEADERS[name], text(random)[:3000]))
        return random.choice((None, None, "secret-word")), method, path, raw(headers), body[:4_000_000]

    def feed(asked: tuple[str | None, str, str, list[tuple[bytes, bytes]], bytes]) -> None:
        password, method, path, headers, body = asked
        status, answer = asyncio.run(request(apps[password], method, path, headers, body))
        known = any(name == b"authorization" and b"secret-word" in word for name, word in headers)
        if password and not known and status == 200 and path not in ("/health", "/login"):
            raise Wrong(f"{path} was answered without the password")
        if status >= 500 or status < 200:
            raise Wrong(f"status {status}: {answer[:200]!r}")
        said = answer.decode()
        pieces = said.removesuffix("\n\n").split("\n\n") if said.startswith(":") else [said]
        for piece in pieces if path.startswith("/v1/") else ():
            if piece.startswith((":", "data: [DONE]")) or not piece or status in (204, 303, 307, 404, 405):
                continue
            json.loads(piece.removeprefix("data: "), parse_constant=refuse_constant)
        if status >= 400:
            raise ValueError(f"{status}")

    return Kind(make, feed)


def raw(headers: dict[str, str]) -> list[tuple[bytes, bytes]]:
    """Return headers as a server passes them on: in Latin-1, without line breaks."""
    words = {name: re.sub("[\r\n\0]", "", word) for name, word in headers.items()}
    return [(name.encode(), word.encode("latin-1", "replace")) for name, word in words.items()]


def refuse_constant(name: str) -> None:
    raise Wrong(f"{name} in JSON")


async def request(
    app: Any, method: str, path: str, headers: list[tuple[bytes, bytes]], body: bytes
) -> tuple[int, bytes]:
    """Ask an ASGI app; return the status and the whole answer."""
    scope = {"type": "http", "http_version": "1.1", "method": method, "scheme": "http", "path": path}
    scope |= {"raw_path": path.encode("utf-8", "replace"), "root_path": "", "query_string": b""}
    scope |= {"headers": headers, "client": ("127.0.0.1", 9), "server": ("127.0.0.1", 80)}
    scope |= {"asgi": {"version": "3.0"}}
    sent, messages = [{"type": "http.request", "body": body, "more_body": False}], []

    async def receive() -> dict[str, Any]:
        return sent.pop() if sent else await asyncio.Event().wait() and {}

    async def send(message: dict[str, Any]) -> None:
        messages.append(message)

    await app(scope, receive, send)
    return messages[0]["status"], b"".join(message.get("body", b"") for message in messages)


def open_terminal(folder: Path) -> Kind:
    """Lines typed into the chat in a terminal, including bytes that are not text."""
    at_home(folder)
    models = [loaded("sft"), loaded("base")]
    words = ("0", "1", "-1", "1e30", "0.5", "none", "")
    settings = [f"{name}={word}" for name in vars(Drawing()) for word in words]
    reply = {"role": "assistant", "content": "[1+1][= 2] Ho"}
    talk = {"messages": [{"role": "user", "content": "Hi"}, reply]}

    def make(random: Random) -> tuple[bytes, bytes]:
        lines = []
        for _ in range(random.randint(1, 5)):
            command = random.choice([*COMMANDS, "/load", "/set", "", "", ""])
            rest = random.choice((text(random), "talk.json", "saved.json", "Hello", random.choice(settings)))
            lines.append(f"{command} {rest}"[:2000])
        typed_lines = "\n".join(lines).encode("utf-8", "surrogatepass")
        typed_lines = damaged(random, typed_lines)[:5000] if random.random() < 0.3 else typed_lines
        return re.sub(rb"(?<= )[/~.]+", b"", typed_lines), tampered(random, json.dumps(talk).encode(), talk)

    def feed(asked: tuple[bytes, bytes]) -> None:
        Path("talk.json").write_bytes(asked[1])
        Path("saved.json").unlink(missing_ok=True)
        for model in models:
            sys.stdin = io.TextIOWrapper(io.BytesIO(asked[0]), encoding="utf-8")
            talker = Talker(model.engine, continues_text=model.is_base)
            Terminal(talker, Drawing(max_tokens=4, seed=1)).converse()

    return Kind(make, feed)


# What models write


def sum_of(random: Random) -> str:
    if random.random() < 0.8:
        return "".join(random.choice((*INPUTS["sums"], "9" * 60)) for _ in range(random.randrange(12)))
    return random.choice(
        (text(random), "(" * 90, "-" * 90, "1+" * 120, "9*" * 100, "'a'.count('a')", "2*(3+4)")
    )


def check_sum(expression: str) -> None:
    """Check that the calculator answers what Python prints."""
    answer = calculate(expression)
    if answer is None:
        raise ValueError("not a sum")
    comma = r"(?!)" if "count" in expression else r"(?<=\d),(?=\d{3}(?!\d))"
    cleaned = re.sub(comma, "", expression).strip()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if answer != str(eval(cleaned, {"__builtins__": {}})):  # only what the calculator took
            raise Wrong(f"{expression!r} was calculated as {answer}")


def call_of(random: Random) -> str:
    ends = (
        ("[", "][= 3]"),
        ("<<", "=3>>"),
        ("<|python_start|>", "<|python_end|>"),
        ("#### ", "\n"),
        ("[[", "]"),
    )
    pieces = [
        (sum_of(random), random.choice(ends), random.choice((" ", text(random)[:500]))) for _ in range(3)
    ]
    return "".join(call.join(around) + after for call, around, after in pieces)


def check_call(reply: str) -> None:
    """Calls in a reply become parts without losing a character, and annotations are read or refused."""
    parts = as_parts({"role": "assistant", "content": reply})["content"]
    if isinstance(parts, list):
        shown = {"text": "{}", "python": "[{}]", "python_output": "[= {}]"}
        if "".join(shown[part["type"]].format(part["text"]) for part in parts) != reply:
            raise Wrong("a reply loses characters on its way into the next prompt")
    same_answer(reply, "#### 3")
    parts_of(reply)


NAMES, CODE = ("python", "py", "{.python}", "", " "), ("def f(x): return x", "import os", '"""')


def fenced(random: Random) -> str:
    marks = ("```", "~~~", "````", "``", " ```", "    ```", "\t```")
    lines = []
    for _ in range(random.randrange(9)):
        mark = random.choice(marks) + random.choice((*NAMES, text(random)[:200]))
        lines.append(random.choice((mark, mark, *CODE, text(random)[:2000])))
    return random.choice(("\n", "\n", "\r\n", "\r")).join(lines)


def check_fences(reply: str) -> None:
    program = extract_program(reply)
    imports_of(reply)
    if not set(program.split("\n")) <= set(reply.strip().replace("\r\n", "\n").split("\n")) | {""}:
        flat = [line.strip() for line in program.split("\n")]
        if not all(line in reply for line in flat):
            raise Wrong("the program has lines that are not in the reply")


def open_programs(folder: Path) -> Kind:
    """Programs that a model may write; none that cheats may pass, whatever surrounds it."""

    def make(random: Random) -> tuple[str, bool]:
        lies, strange = (
            random.random() < 0.3,
            random.choice(INPUTS["strange"]).replace("{file}", str(folder / "new")),
        )
        program = random.choice(INPUTS["liars"]) if lies else INPUTS["honest"]
        if lies:  # as it is, or behind what cannot define another function
            return random.choice(("", "import math\n", "x = 1\n" * 1000)) + program, True
        program = random.choice((program + strange, strange + "\n" + program, program))
        return tampered(random, program.encode()).decode("utf-8", "surrogateescape")[:100_000], False

    def feed(asked: tuple[str, bool]) -> None:
        program, lies = asked
        outcome = judge_python(program, entry_point="square", test=INPUTS["check"], timeout_seconds=5)
        if outcome.passed and lies:
            raise Wrong("a program that cheats passed")
        if (folder / "new").exists():
            raise Wrong("a program wrote a file")
        if not outcome.passed:
            raise ValueError("failed")

    return Kind(make, feed)


# What a hub answers

PAUSES = (*INPUTS["pauses"], "9" * 400, '"a";r=0;t=' + "9" * 400)
ASKING = ("retry-after", "ratelimit", "ratelimit-policy", "content-length")


def check_pause(asked: tuple[int, dict[str, str]]) -> None:
    """Check that the pause is between none and the longest, however a hub asks for it."""
    status, headers = asked
    response = httpx.Response(status, headers=raw(headers), request=httpx.Request("GET", "http://127.0.0.1"))
    error = HfHubHTTPError("no", response=response)  # pyright: ignore[reportArgumentType]
    if not 0 <= _asked_pause(error) <= LONGEST_PAUSE_SECONDS:
        raise Wrong("the pause is out of bounds")


def pause_of(random: Random) -> tuple[int, dict[str, str]]:
    names = random.sample(ASKING, random.randint(0, 3))
    words = {name: random.choice((*PAUSES, text(random)[:3000])) for name in names}
    return random.choice((429, 429, 503, 404, 200)), words


class Lying(Handler):
    """A hub whose JSON is changed on its way."""

    random = Random(0)

    def answer_json(self, content: object) -> None:
        super().answer_json(edited(self.random, content, most=2))

    def handle_one_request(self) -> None:
        with contextlib.suppress(OSError, ValueError, KeyError):
            super().handle_one_request()


def open_hub(folder: Path) -> Kind:
    """A hub with strange metadata and faults; a file with a shard's name is that shard."""
    files = {f"shard_{n:05d}.parquet": bytes([n]) * 5000 for n in range(2)}
    hub = Hub("someone/texts", files)
    bound: Any = type("Bound", (Lying,), {"hub": hub})
    server = ThreadingHTTPServer(("127.0.0.1", 0), bound)
    server.daemon_threads = True
    Thread(target=server.serve_forever, daemon=True).start()
    os.environ["HF_ENDPOINT"] = f"http://127.0.0.1:{server.server_port}"
    faults = (503, 500, 404, 416, 302, (429, {"RateLimit": "²"}))
    faults += ("reset", "truncate", "damage", "more", "ignore range")

    def make(random: Random) -> tuple[int, list[Any]]:
        return random.randrange(10**9), [random.choice(faults) for _ in range(random.choice((0, 1, 2, 6)))]

    def feed(asked: tuple[int, list[Any]]) -> None:
        Lying.random = Random(asked[0])
        hub.faults.clear()
        hub.faults["shard_00000.parquet"] = [*asked[1]]
        there = folder / "shards"
        shutil.rmtree(there, ignore_errors=True)
        try:
            fetch_shards(there, hub.repository, [*files], offline=False, first_pause=0.001)
        finally:
            for path in there.glob("*.parquet"):
                if path.read_bytes() != files[path.name]:
                    raise Wrong(f"{path.name} differs from the hub's")

    return Kind(make, feed)


def plainly(make: Callable[[Random], Any], feed: Callable[[Any], object]) -> Opener:
    return lambda folder: Kind(make, feed)


WORDS: dict[str, Opener] = {
    "command lines": open_commands,
    "overrides": open_overrides,
    "train": open_train,
    "yaml": open_yaml,
    "requests": open_requests,
    "terminal": open_terminal,
    "sums": plainly(sum_of, check_sum),
    "calls": plainly(call_of, check_call),
    "fences": plainly(fenced, check_fences),
    "programs": open_programs,
    "pauses": plainly(pause_of, check_pause),
    "hub": open_hub,
}
