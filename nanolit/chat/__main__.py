"""Chat with a trained model, in the terminal or in the browser.

nanolit chat run=demo                      in the terminal, with the run's last stage
nanolit chat run=demo/sft -p "Hello"       one message, one reply
nanolit chat release=FOLDER web=true       a page in the browser
"""

import sys
from collections.abc import Sequence
from dataclasses import dataclass

import nanolit
from nanolit.machine.arguments import Root, read, setting
from nanolit.machine.exit import command

LOOPBACK = "127.0.0.1"


@dataclass(frozen=True, kw_only=True)
class Settings(Root):
    """What was typed; None is decided when the model is known."""

    run: str | None = setting(
        "a run; STAGE is base, mid, sft or rl (default: its last)", None, value="RUN[/STAGE]"
    )
    release: str | None = setting("a release folder instead of a run", None, value="FOLDER")
    temperature: float = setting("0 takes the likeliest token", 0.6, least=0)
    top_k: int = setting("sample from the N likeliest tokens; 0: from all", 50, least=0)
    max_tokens: int | None = setting("longest reply (default: at most half of the context)", None, least=1)
    seed: int | None = setting("give the same replies every time (default: new ones)", None)
    web: bool = setting("open a page in the browser", False)
    host: str = setting("the page's address; by default only this machine sees it", LOOPBACK)
    port: int | None = setting("the page's port (default: a free one)", None, least=1, most=65535)
    prompt: str | None = setting("answer this one message and leave", None, value="TEXT", short="-p")


def parse(words: Sequence[str]) -> Settings:
    """Return the settings; ValueError for a combination that makes no sense."""
    settings = read(Settings, words, about=__doc__)
    if (settings.run is None) == (settings.release is None):
        raise ValueError("give either run=RUN or release=FOLDER; --help shows the settings")
    if settings.web and settings.prompt is not None:
        raise ValueError("-p answers in the terminal; leave out either it or web=true")
    if not settings.web and (settings.port, settings.host) != (None, LOOPBACK):
        raise ValueError("port and host are for the page; add web=true")
    return settings


def talk(settings: Settings) -> None:
    """Load the model and chat with it; torch is imported only here, so that --help is quick."""
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


@command
def main(words: Sequence[str]) -> None:
    talk(parse(words))


if __name__ == "__main__":
    sys.exit(main())
