"""`python -m nanolit.chat run=RUN`: chat in the terminal or (web=true) in the browser."""

import argparse
import difflib
import sys
from collections.abc import Callable
from dataclasses import dataclass

import nanolit
from nanolit.machine.exit import leave

HELP = """\
Talk to a trained model.

  python -m nanolit.chat run=demo                      in the terminal, with the run's last stage
  python -m nanolit.chat run=demo/sft -p "Hello"       one message, one reply
  python -m nanolit.chat release=FOLDER web=true       a page in the browser

settings (key=value):
  run=RUN[/STAGE]    a run below root; STAGE is base, mid, sft or rl (default: the last there is)
  release=FOLDER     a release folder instead of a run
  root=FOLDER        where runs live (default: NANOLIT_HOME, else ./runs)
  temperature=0.6    0 takes the likeliest token
  top_k=50           sample from the k likeliest tokens; 0 from all
  max_tokens=256     longest reply (default: at most half of the model's context)
  seed=N             the same replies every time (default: other ones)
  web=true           open a page; port=N, host=ADDRESS (default: 127.0.0.1, this machine only)
"""


@dataclass
class Settings:
    """What the command line chose; None = decided when the model is known."""

    run: str | None = None
    release: str | None = None
    root: str | None = None
    temperature: float = 0.6
    top_k: int = 50
    max_tokens: int | None = None
    seed: int | None = None
    web: bool = False
    host: str = "127.0.0.1"
    port: int | None = None
    prompt: str | None = None


def parse(arguments: list[str]) -> Settings:
    """The settings on the command line; ValueError names the key, what is allowed, the nearest spelling."""
    parser = argparse.ArgumentParser(
        prog="python -m nanolit.chat",
        usage="python -m nanolit.chat run=RUN [-p TEXT] [key=value ...]",
        description=HELP,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("settings", nargs="*", metavar="key=value", help="see above")
    parser.add_argument("-p", "--prompt", metavar="TEXT", help="answer this one message and leave")
    parsed = parser.parse_intermixed_args(arguments)
    settings = Settings(prompt=parsed.prompt)
    for word in parsed.settings:
        key, equals, text = word.partition("=")
        if not equals or key not in _READERS:
            near = difflib.get_close_matches(key, _READERS, n=1)
            hint = f"did you mean {near[0]}=…?" if near else f"the settings are {', '.join(_READERS)}"
            raise ValueError(f"don't know {word!r}; {hint}")
        setattr(settings, key, _READERS[key](key, text))
    if (settings.run is None) == (settings.release is None):
        raise ValueError("give either run=RUN or release=FOLDER; --help shows the settings")
    if settings.web and settings.prompt is not None:
        raise ValueError("-p answers in the terminal; leave out either it or web=true")
    if not settings.web and (settings.port, settings.host) != (None, Settings.host):
        raise ValueError("port and host are for the page; add web=true")
    return settings


def _words(key: str, text: str) -> str:
    if not text:
        raise ValueError(f"{key}= is empty; write {key}=VALUE or leave it out")
    return text


def _whole(key: str, text: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise ValueError(f"{key} ({text!r}) must be a whole number, such as {key}=50") from None


def _positive(key: str, text: str) -> int:
    if (value := _whole(key, text)) < 1:
        raise ValueError(f"{key} ({value}) must be 1 or more")
    return value


def _port(key: str, text: str) -> int:
    if not 1 <= (value := _whole(key, text)) <= 65535:
        raise ValueError(f"{key} ({value}) must be from 1 to 65535")
    return value


def _number(key: str, text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise ValueError(f"{key} ({text!r}) must be a number, such as {key}=0.6") from None


def _switch(key: str, text: str) -> bool:
    if text.lower() not in ("true", "false"):
        raise ValueError(f"{key} ({text!r}) must be true or false")
    return text.lower() == "true"


_READERS: dict[str, Callable[[str, str], object]] = {
    "run": _words,
    "release": _words,
    "root": _words,
    "temperature": _number,
    "top_k": _whole,
    "max_tokens": _positive,
    "seed": _whole,
    "web": _switch,
    "host": _words,
    "port": _port,
}


def talk(settings: Settings) -> None:
    """Load the model and chat with it; torch is imported only here, so that --help and mistakes are quick."""
    from nanolit.chat.dialogue import Talker, usual_max_tokens
    from nanolit.inference.engine import Engine
    from nanolit.inference.sampling import check_settings

    top_k = settings.top_k or None
    check_settings(temperature=settings.temperature, top_k=top_k)
    loaded = nanolit.load(settings.release or settings.run or "", root=settings.root)
    engine = Engine(loaded.model, loaded.tokenizer)
    stage = loaded.meta.get("stage", "")
    talker = Talker(engine, continues_text=stage == "base")
    max_tokens = settings.max_tokens or usual_max_tokens(engine.context)
    if max_tokens >= engine.context:
        raise ValueError(
            f"max_tokens ({max_tokens:,}) must be below the model's context ({engine.context:,})"
        )
    name = "/".join(part for part in (loaded.meta.get("run"), stage) if part) or "this model"
    if settings.web:
        from nanolit.chat.web import build_demo, serve

        demo = build_demo(
            talker,
            name=name,
            temperature=settings.temperature,
            top_k=top_k,
            max_tokens=max_tokens,
            seed=settings.seed,
        )
        serve(demo, host=settings.host, port=settings.port)
        return

    from nanolit.chat.terminal import Terminal

    terminal = Terminal(
        talker,
        temperature=settings.temperature,
        top_k=top_k,
        max_tokens=max_tokens,
        seed=settings.seed,
    )
    if settings.prompt is not None:
        terminal.answer(settings.prompt)
    else:
        terminal.greet(name)
        terminal.converse()


def main(arguments: list[str] | None = None) -> int:
    """Parse, load, talk; the exit code: 2, with one line on stderr, for a mistake of the user."""
    try:
        talk(parse(sys.argv[1:] if arguments is None else arguments))
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    leave(main)
