"""The chats that were deployed from here: `python -m launch status|logs|stop|cost|open chat:NAME`."""

from pathlib import Path
from typing import Any

import modal
from typing_extensions import TypedDict

from nanolit.machine.paths import read_json, write_json

PREFIX = "chat:"
Record = dict[str, Any]  # chats/NAME.json: a `Stored`, and more


class Stored(TypedDict):
    """The fields that are read of a chat's file."""

    name: str
    app: str
    app_name: str
    url: str
    place: str  # of the release on the volume
    environment: str | None
    gpu: str
    command: str  # that deploys the same again
    keep_warm: int
    dollars_per_hour: float | None
    deployed: str


def record_path(root: Path, name: str) -> Path:
    return root / "chats" / f"{name}.json"


def read_chat(root: Path, name: str) -> Record:
    """Return what was deployed; ValueError when nothing was."""
    path = record_path(root, name.removeprefix(PREFIX))
    if not path.exists():
        there = ", ".join(record["name"] for record in deployed(root)) or "none"
        raise ValueError(f"{name} was not deployed from {root}; chats deployed from there: {there}")
    return stored_chat(path)


def deployed(root: Path) -> list[Record]:
    return [stored_chat(path) for path in sorted((root / "chats").glob("*.json"))]


def stored_chat(path: Path) -> Record:
    return read_json(path, Stored, remedy="delete it; the command that deployed the chat writes it again")


def standing(chat: Record) -> str:
    """Return awake, asleep or stopped, with the address."""
    if chat.get("stopped"):
        return "stopped"
    try:
        function = modal.Cls.from_name(chat["app_name"], "Chat", environment_name=chat["environment"])
        awake = function().web.get_current_stats().num_total_runners
    except modal.exception.NotFoundError:
        return "stopped"
    return f"{'awake' if awake else 'asleep'}; {chat['url']}"


def stop_chat(root: Path, name: str) -> str:
    """End a chat: its containers and its address. The release and the password stay."""
    chat = read_chat(root, name)
    modal.App.lookup(chat["app"]).stop()
    write_json(record_path(root, chat["name"]), {**chat, "stopped": True})
    return f"{name}: stopped; {chat['command']} starts it again"


def cost_of(chat: Record) -> str:
    rate = chat["dollars_per_hour"]
    price = "of unknown price" if rate is None else f"about ${rate:,.2f}"
    kept = "; keep_warm=1: it is always awake" if chat["keep_warm"] else ""
    return (
        f"{PREFIX}{chat['name']}: {price} per hour while it is awake{kept}; for what was billed: "
        "modal billing report --for today --tag-names chat"
    )
