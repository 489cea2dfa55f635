"""Chat with a trained model, in the terminal, in the browser, or through an API.

nanolit chat demo                          in the terminal, with the run's last stage
nanolit chat demo/sft -p "Hello"           one message, one reply; -p - reads it from standard input
nanolit chat demo web=true                 a page, and an OpenAI-compatible API at /v1
nanolit chat release=FOLDER web=true       the same with a release folder
nanolit chat demo web=true devices=8       the same on eight GPUs with one queue
nanolit chat demo web=true cluster=modal_a10g    deploy both to Modal; dry_run=true shows the cost

NANOLIT_CHAT_PASSWORD, if set, is the page's password and the API's key.
"""

import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Literal

import nanolit
from nanolit.machine.arguments import Root, read, setting
from nanolit.machine.exit import command
from nanolit.machine.system import chat_password

LOOPBACK = "127.0.0.1"
HERE = ("host", "port", "devices", "prompt")
DEPLOYED = ("name", "public", "auth", "keep_warm", "gpu_snapshot", "dry_run")


@dataclass(frozen=True, kw_only=True)
class Settings(Root):
    """Settings of the chat; None is decided when the model is known."""

    run: str | None = setting(
        "a run; STAGE is base, mid, sft or rl (default: the run's last)",
        None,
        value="RUN[/STAGE]",
        positional=True,
    )
    release: str | None = setting("a release folder instead of a run", None, value="FOLDER")
    temperature: float = setting("0 always picks the most likely token", 0.6, least=0)
    top_k: int = setting("sample from the N most likely tokens; 0: from all", 50, least=0)
    max_tokens: int | None = setting(
        "longest reply in tokens (default: 256, or half of a smaller context)", None, least=1
    )
    seed: int | None = setting("random seed for the same replies every time (default: new replies)", None)
    web: bool = setting("serve a page for the browser and the API", False)
    devices: int = setting("GPUs that serve the page and the API", 1, least=1)
    host: str = setting("address to listen on; by default only this machine can reach it", LOOPBACK)
    cluster: str | None = setting("deploy to this Modal cluster (one GPU)", None)
    name: str | None = setting("the deployed chat's name, part of its address (default: the run's)", None)
    public: bool = setting("deploy it without a password", False)
    auth: Literal["password", "modal"] = setting("modal: only the API, for Modal's proxy tokens", "password")
    domains: tuple[str, ...] = setting("domains of yours at which it is reached", (), value="DOMAIN,…")
    keep_warm: int = setting("number of containers kept awake", 0, least=0, most=1)
    gpu_snapshot: bool = setting("keep the GPU's memory for the next start (alpha at Modal)", False)
    dry_run: bool = setting("show what would be deployed and its cost", False)
    port: int | None = setting("the page's port (default: a free one)", None, least=1, most=65535)
    prompt: str | None = setting("answer one message and exit", None, value="TEXT", short="-p")


def parse(words: Sequence[str]) -> Settings:
    """Return the settings; ValueError for a combination that makes no sense."""
    settings = read(Settings, words, about=__doc__)
    if (settings.run is None) == (settings.release is None):
        raise ValueError("give either run=RUN or release=FOLDER; --help shows the settings")
    if settings.web and settings.prompt is not None:
        raise ValueError("-p answers in the terminal; leave out either -p or web=true")
    of_page = (settings.port, settings.host, settings.devices, settings.domains)
    if not settings.web and of_page != (None, LOOPBACK, 1, ()):
        raise ValueError("port, host, devices and domains are for the page; add web=true")
    # Here a name may be one word, such as that of a machine
    name = r"[\w.-]+" if settings.cluster is None else r"([a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?\.)+[a-z]{2,63}"
    for domain in settings.domains:
        if not re.fullmatch(name, domain, re.ASCII):
            raise ValueError(
                f"domains={domain} is not a domain; give only its name, such as chat.example.org"
            )
    for name in changed(settings):
        if settings.cluster is None and name in DEPLOYED:
            raise ValueError(f"{name} is for a deployed chat; add cluster=modal_a10g")
        if settings.cluster is not None and name in HERE:
            raise ValueError(f"{name} is for a chat on this machine; leave out either this or cluster=")
    if settings.cluster is not None and (settings.run is None or not settings.web):
        raise ValueError("cluster= deploys a run's page; add run=RUN web=true")
    return settings


def changed(settings: Settings) -> dict[str, str]:
    """Return the settings that differ from their defaults, as they are typed."""
    values = {field.name: (getattr(settings, field.name), field.default) for field in fields(settings)}
    return {name: typed(value) for name, (value, default) in values.items() if value != default}


def typed(value: object) -> str:
    """Return a setting's value as a word of the command line."""
    if isinstance(value, tuple):
        return ",".join(value)
    return str(value).lower() if isinstance(value, bool) else str(value)


def talk(settings: Settings) -> None:
    """Load the model and chat with it; torch is imported only here, so that --help is quick."""
    from nanolit.chat.dialogue import Talker, room_for, usual_max_tokens
    from nanolit.chat.terminal import Drawing, Terminal
    from nanolit.inference.sampling import check_settings

    check_settings(temperature=settings.temperature, top_k=settings.top_k or None)
    if settings.cluster is not None:
        deploy_page(settings)
        return
    if settings.web:
        serve_page(settings)
        return
    loaded = nanolit.load(settings.release or settings.run or "", root=settings.root)
    context = loaded.model.context
    drawing = Drawing(
        temperature=settings.temperature,
        top_k=settings.top_k or None,
        max_tokens=room_for(settings.max_tokens or usual_max_tokens(context), context),
        seed=settings.seed,
    )
    terminal = Terminal(Talker(loaded.engine, continues_text=loaded.is_base), drawing)
    if settings.prompt is not None:
        message = sys.stdin.read() if settings.prompt == "-" else settings.prompt
        if not message.strip():
            raise ValueError("the message is empty; give -p TEXT, or -p - to read it from standard input")
        terminal.answer(message.strip())
        return
    if terminal.interactive:
        terminal.greet(loaded.name)
    terminal.converse()


def deploy_page(settings: Settings) -> None:
    """Deploy the run's page and API to a rented GPU."""
    from launch.deploy import deploy

    deploy(settings, words=[f"{name}={text}" for name, text in changed(settings).items() if name != "run"])


def serve_page(settings: Settings) -> None:
    """Serve the page and the API: a run's stages and all other runs, or the one release."""
    from nanolit.chat.dialogue import room_for
    from nanolit.chat.models import Defaults, Models
    from nanolit.chat.server import build_app, listen, serve
    from nanolit.language_model import find_release, list_releases
    from nanolit.machine.device import pick_devices

    pick_devices(settings.devices)  # ValueError where there are fewer
    listening = listen(settings.host, settings.port)  # before the seconds that loading takes
    folder = find_release(settings.release or settings.run or "", root=settings.root)
    folders = {} if settings.release else list_releases(settings.root)
    first = next((name for name, other in folders.items() if other == folder), None)
    folders = {first: folder} | folders if first else {str(settings.run or folder.resolve().name): folder}
    models = Models([*folders], lambda name: nanolit.load(folders[name]), devices=settings.devices)
    context = models.get().service.context
    defaults = Defaults(
        temperature=settings.temperature,
        top_k=settings.top_k or None,
        max_tokens=settings.max_tokens and room_for(settings.max_tokens, context),
        seed=settings.seed,
    )
    hosts = [name.lower() for name in (settings.host, *settings.domains)]
    app = build_app(models, defaults=defaults, password=chat_password(), hosts=hosts)
    serve(app, models, listening, host=settings.host)


@command
def main(words: Sequence[str]) -> None:
    talk(parse(words))


if __name__ == "__main__":
    sys.exit(main())
