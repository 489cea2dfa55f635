"""What a chat's container on Modal runs: one release on one GPU, and the chat's app around it.

`launch/deploy.py` says on which machine and for whom; NANOLIT_RELEASE and NANOLIT_SERVED come from there.
"""

import os
from typing import Any

import modal


def web(self: "Chat") -> Any:
    """Build the page and the API."""
    from nanolit.chat.server import build_app

    return build_app(self.models, password=os.environ.get("NANOLIT_CHAT_PASSWORD"), hosts=["*.modal.run"])


class Chat:
    """Loaded once a container: what `load` does is in the memory snapshot, so a cold start skips it."""

    @modal.enter(snap=True)
    def load(self) -> None:
        """Import everything and load the release on the CPU; there is no GPU before the snapshot."""
        import nanolit
        from nanolit.chat import web  # noqa: F401  gradio is half of the seconds

        self.loaded = nanolit.load(os.environ["NANOLIT_RELEASE"], device="cpu")

    @modal.enter(snap=False)
    def wake(self) -> None:
        """Move the model to the GPU, and start what answers."""
        from nanolit.chat.models import Models
        from nanolit.machine.device import pick_device

        device, model = pick_device(), self.loaded.model
        model.to(device)
        model.prepare()  # its kernels and tables are a device's own
        self.models = Models([os.environ["NANOLIT_SERVED"]], lambda _: self.loaded)
        self.models.get()
        print(f"awake: {os.environ['NANOLIT_SERVED']} on {device}", flush=True)

    web = modal.asgi_app()(web)


def labelled(label: str) -> type:
    """Return `Chat` with the name that its address begins with; containers import `Chat` itself by name."""
    names = {"__module__": Chat.__module__, "__qualname__": Chat.__qualname__}
    return type("Chat", (Chat,), {"web": modal.asgi_app(label=label)(web), **names})
