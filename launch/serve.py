"""A chat's container on Modal: one release on one GPU, and the chat's app around it.

`launch/deploy.py` says on which machine and for whom. From there come NANOLIT_RELEASE, where the release is
mounted, and NANOLIT_SERVE, a JSON of the rest (`serving`).
"""

import json
import os
from collections.abc import Sequence
from typing import Any

import modal


def serving() -> dict[str, Any]:
    """Return what `deploy` asked: name, hosts, page, locked, gpu_snapshot, and the `defaults` of replies."""
    return json.loads(os.environ["NANOLIT_SERVE"])


def web(self: "Chat") -> Any:
    """Build the page and the API."""
    from nanolit.chat.models import Defaults
    from nanolit.chat.server import build_app
    from nanolit.machine.system import chat_password

    asked, password = serving(), chat_password()
    if asked["locked"] and password is None:
        raise ValueError("the chat's secret holds no password; set NANOLIT_CHAT_PASSWORD and deploy it again")
    defaults, hosts = Defaults(**asked["defaults"]), ["*.modal.run", *asked["hosts"]]
    return build_app(self.models, defaults=defaults, password=password, hosts=hosts, page=asked["page"])


class Chat:
    """Loaded once a container: what `load` does is in the memory snapshot, so a cold start skips it."""

    @modal.enter(snap=True)
    def load(self) -> None:
        """Import everything and load the release: on the CPU, for only a GPU's snapshot has a GPU."""
        import nanolit

        if serving()["page"]:
            from nanolit.chat import web  # noqa: F401  gradio is half of the seconds
        self.loaded = nanolit.load(os.environ["NANOLIT_RELEASE"], device="cpu")
        if serving()["gpu_snapshot"]:
            self.move()

    @modal.enter(snap=False)
    def wake(self) -> None:
        """Move the model to the GPU, unless the snapshot has it there, and start what answers."""
        from nanolit.chat.models import Models

        name = serving()["name"]
        if not serving()["gpu_snapshot"]:
            self.move()
        self.models = Models([name], lambda _: self.loaded)
        self.models.get()
        print(f"awake: {name} on {next(self.loaded.model.parameters()).device}", flush=True)

    def move(self) -> None:
        """Move the model to the GPU."""
        from nanolit.machine.device import pick_device

        self.loaded.model.to(pick_device())
        self.loaded.model.prepare()  # its kernels and tables are a device's own

    web = modal.asgi_app()(web)


def labelled(label: str, *, domains: Sequence[str], proxy_auth: bool) -> type:
    """Return `Chat` at an address that begins with `label`; containers import `Chat` itself by name."""
    served = modal.asgi_app(label=label, custom_domains=domains, requires_proxy_auth=proxy_auth)(web)
    names = {"__module__": Chat.__module__, "__qualname__": Chat.__qualname__}
    return type("Chat", (Chat,), {"web": served, **names})
