"""A chat page for the browser, built with Gradio: streaming, stop, retry, edit, and the sampling controls.

Served on loopback unless a host is given; the page and the server ask nothing of any other machine.
"""

import math
import os
import re
import secrets
import socket
import time
from collections.abc import Iterator
from itertools import pairwise
from typing import TYPE_CHECKING

from nanolit.chat.dialogue import Talker
from nanolit.machine.device import derived_seed

if TYPE_CHECKING:
    import gradio

# A reply is shown as Markdown: an image in it must not make the browser ask another machine.
_ONLY_THIS_SERVER = """<meta http-equiv="Content-Security-Policy" content="img-src 'self' data: blob:;
 media-src 'self' data: blob:; connect-src 'self'; frame-src 'self'">"""
REFRESH_SECONDS = 0.1  # a page that is given every token of a fast model no longer hears its user
_CALL = re.compile(r"(\[[^\]]*\]\[= [^\]]*\])")
MAX_TOP_K = 200  # nanochat's page has the same limit; 0 = the whole vocabulary


def build_demo(
    talker: Talker, *, name: str, temperature: float, top_k: int | None, max_tokens: int, seed: int | None
) -> "gradio.Blocks":
    """The page, not yet served: `.launch()` it, or mount it into another server. `name` is its heading."""
    gradio = _import_gradio()

    def answer(
        message: str,
        history: list[dict],
        turns: list[list[int]],
        temperature: float,
        top_k: int,
        max_tokens: int,
    ) -> Iterator[tuple[str, list[list[int]]]]:
        turns = turns_of(history, turns, talker)
        try:
            reply = talker.reply(
                turns,
                message,
                temperature=temperature,
                top_k=top_k or None,
                max_tokens=max_tokens,
                seed=secrets.randbits(63) if seed is None else derived_seed(seed, "reply", len(turns) + 1),
            )
        except ValueError as error:  # an empty turn keeps the page's messages and ours in step
            yield f"({error})", [*turns, []]
            return
        if reply.dropped_turns:
            gradio.Info(f"The context is full: the oldest {reply.dropped_turns} turn(s) were forgotten.")
        text, shown = "", -math.inf
        for piece in reply:
            text += piece
            if time.monotonic() - shown > REFRESH_SECONDS:
                yield as_markdown(text), [*turns, reply.turn]
                shown = time.monotonic()
        yield as_markdown(text) or "(an empty reply)", [*turns, reply.turn]

    context = talker.engine.context
    with gradio.Blocks(title=f"NanoLit · {name}", fill_height=True, analytics_enabled=False) as demo:
        turns = gradio.State([])
        with gradio.Sidebar(open=False):
            gradio.Markdown("### Sampling")
            controls = [
                gradio.Slider(
                    0,
                    max(2, temperature),
                    temperature,
                    step=0.05,
                    label="Temperature",
                    info="0: the likeliest token",
                ),
                gradio.Slider(
                    0,
                    max(MAX_TOP_K, top_k or 0),
                    top_k or 0,
                    step=1,
                    label="Top-k",
                    info="0: the whole vocabulary",
                ),
                gradio.Slider(
                    1, context - 1, max_tokens, step=1, label="Max tokens", info="the longest reply"
                ),
            ]
        gradio.ChatInterface(
            answer,
            chatbot=gradio.Chatbot(
                show_label=False,
                buttons=["copy", "copy_all"],  # not "share", which goes to another machine
                placeholder=_description(talker),
                scale=1,
            ),
            title=f"NanoLit · {name}",
            editable=True,
            additional_inputs=[turns, *controls],
            additional_outputs=[turns],
            concurrency_limit=16,  # replies at once, all in one batch of the engine; others wait in the queue
            analytics_enabled=False,
        )
    return demo


def serve(demo: "gradio.Blocks", *, host: str, port: int | None) -> None:
    """Serve the page until Ctrl-C; `port` None takes the first free one from 7860 on."""
    try:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        socket.create_server((host, 0), family=family).close()  # Gradio would try every port
    except OSError as error:
        raise ValueError(
            f"host {host} is no address of this machine ({error}); give another host="
        ) from error
    try:
        _, url, _ = demo.launch(
            server_name=host,
            server_port=port,
            share=False,
            ssr_mode=False,
            footer_links=[],
            head=_ONLY_THIS_SERVER,
            prevent_thread_lock=True,
            quiet=True,
        )
    except OSError as error:
        raise ValueError(f"port {port} can't be served on {host} ({error}); give another port=") from error
    print(f"The chat is at {url} (Ctrl-C ends it)", flush=True)
    demo.block_thread()


def _import_gradio():
    """Gradio with its telemetry off: it reads the variable while it is imported."""
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    import gradio

    return gradio


def _description(talker: Talker) -> str:
    if talker.continues_text:
        return "A base model: it continues your text. Each message begins a new one."
    return f"It can be wrong about anything. Its context is {talker.engine.context:,} tokens."


def as_markdown(reply: str) -> str:
    """Calculator calls as code: of [2*3*4][= 24] Markdown would take the asterisks."""
    return _CALL.sub(r"`\1`", reply)


def turns_of(history: list[dict], turns: list[list[int]], talker: Talker) -> list[list[int]]:
    """The turns that the page still shows: `turns`, cut where a message was edited, retried or cleared.

    Those that the server lacks (it was restarted under an open page) are rebuilt from the text; a message
    without an answer (it was stopped before its first word) has an empty turn.
    """
    rebuilt: list[list[int]] = []
    for message, following in pairwise([*history, {}]):
        if message["role"] == "user":
            answered = following.get("role") == "assistant"
            rebuilt.append(talker.turn(_text(message), _text(following)) if answered else [])
    return [*turns[: len(rebuilt)], *rebuilt[len(turns) :]]


def _text(message: dict) -> str:
    """The text of one message of Gradio's history (a string or a list of parts), `as_markdown` undone."""
    content = message["content"]
    if not isinstance(content, str):
        content = "".join(part["text"] for part in content if part["type"] == "text")
    return re.sub(f"`{_CALL.pattern}`", r"\1", content)
