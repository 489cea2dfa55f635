"""A chat page for the browser, built with Gradio: streaming, stop, retry, undo, edit, sampling controls.

The browser owns the conversation: it sends all of it with every message, so a server that restarts under an
open page loses nothing. The page and the server ask nothing of any other machine, and what a model writes is
shown as written: it is never Markdown, and never HTML.
"""

import asyncio
import html
import json
import math
import os
import secrets
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import gradio

from nanolit.chat.asked import MAX_ALL_CHARACTERS, MAX_CHARACTERS, MAX_TEMPERATURE, MAX_TOP_K
from nanolit.chat.dialogue import left_out, usual_max_tokens
from nanolit.chat.guard import tell
from nanolit.chat.markup import as_html
from nanolit.chat.models import Defaults, Models
from nanolit.machine.device import derived_seed
from nanolit.machine.terminal import one_line

if TYPE_CHECKING:
    from fastapi import FastAPI
    from starlette.types import ASGIApp, Message, Receive, Scope, Send


ANSWER_SECONDS = 0.15  # more than what is on its way to a page needs, and hardly felt before a reply
REFRESH_SECONDS = 0.1  # a page that is given every token of a fast model no longer hears its user
EXAMPLES = ("Hello! Who are you?", "Why is the sky blue?", "How many r are in strawberry?", "What is 12*34?")
BEGINNINGS = (
    "The capital of France is",
    "Once upon a time",
    "The chemical symbol of gold is",
    "If 5 + 3 = 8, then",
)
MOST_KEPT = 10_000  # messages of a conversation: more than a browser keeps, few enough to look at each time
ASSETS = Path(__file__).parent

Messages = list[dict[str, str]]


def build_demo(
    models: Models, *, temperature: float, top_k: int | None, max_tokens: int, seed: int | None
) -> gradio.Blocks:
    """Return the page, not yet served; a person may choose another model than the first."""
    names, page = models.names, Page(models, seed=seed)
    name = names[0]
    with gradio.Blocks(title=f"NanoLit · {name}", fill_height=True) as demo:
        # Not a secret: it lies in the page. A fixed one lets a restarted server read what the browser kept
        messages = gradio.BrowserState([], storage_key=f"nanolit {name}", secret="nanolit")
        with gradio.Row(elem_id="top"):
            shown_name = "" if len(names) > 1 else f"<span>{html.escape(name)}</span>"
            gradio.HTML(f"<h1>NanoLit</h1>{shown_name}", elem_id="title")
            model = gradio.Dropdown(
                names, value=name, container=False, show_label=False, visible=len(names) > 1, elem_id="model"
            )
            new = gradio.Button("New chat", size="sm", elem_id="new")
        chatbot = gradio.Chatbot(
            **page.face(name), elem_id="chat", show_label=False, container=False, editable="user", scale=1,
            buttons=["copy"],  # not "share", which goes to another machine
            layout="bubble", render_markdown=False, latex_delimiters=[], allow_tags=False,
        )  # fmt: skip
        box = gradio.Textbox(
            placeholder="Message", show_label=False, container=False, autofocus=True, max_lines=8,
            submit_btn=True, elem_id="box",
        )  # fmt: skip
        status = gradio.HTML(NOTE, elem_id="status")
        controls = [model, *_controls(temperature, top_k, max_tokens, models.get().service.context)]
        page.wire(demo, messages, chatbot, box, status, controls, new)
    return demo


def _controls(temperature: float, top_k: int | None, max_tokens: int, context: int) -> list[Any]:
    """Return the sidebar's: the system prompt and how tokens are drawn."""
    with gradio.Sidebar(open=False, position="right", width=300):
        gradio.Markdown("### Settings")
        return [
            gradio.Textbox(label="System prompt", lines=3, max_lines=8, placeholder="You are …"),
            gradio.Slider(
                0, max(MAX_TEMPERATURE, temperature), temperature, step=0.05, label="Temperature",
                info="0: always the most likely token",
            ),
            gradio.Slider(
                0, max(MAX_TOP_K, top_k or 0), top_k or 0, step=1, label="Top-k",
                info="0: the whole vocabulary",
            ),
            gradio.Slider(0.05, 1, 1, step=0.05, label="Top-p", info="1: every token"),
            gradio.Slider(1, context - 1, max_tokens, step=1, label="Max tokens", info="longest reply"),
        ]  # fmt: skip


class Page:
    """What happens when something is pressed: each method is given the conversation and gives it back."""

    def __init__(self, models: Models, *, seed: int | None) -> None:
        self.models, self.seed = models, seed

    def wire(
        self,
        demo: gradio.Blocks,
        messages: gradio.BrowserState,
        chatbot: gradio.Chatbot,
        box: gradio.Textbox,
        status: gradio.HTML,
        controls: Sequence[Any],
        new: gradio.Button,
    ) -> None:
        """Connect the page's parts to these methods."""
        hidden: dict[str, Any] = {"show_progress": "hidden", "api_visibility": "private"}
        inputs, outputs = [messages, *controls], [box, messages, chatbot, status]
        for asked in (box.submit, chatbot.example_select, chatbot.retry, chatbot.edit):
            asked(None, None, status, js=f"() => {json.dumps(SENDING)}", **hidden)  # by the browser, at once
        replies: Any = [
            box.submit(self.send, [box, *inputs], outputs, **hidden),
            chatbot.example_select(self.example, inputs, outputs, **hidden),
            chatbot.retry(self.retry, inputs, outputs, **hidden),
            chatbot.edit(self.edit, inputs, outputs, **hidden),
        ]
        box.stop(lambda: (READY, "Stopped."), None, [box, status], cancels=replies, **hidden)
        chatbot.undo(self.undo, messages, outputs, cancels=replies, **hidden)
        for cleared in (chatbot.clear, new.click):
            cleared(self.clear, None, outputs, cancels=replies, **hidden)
        model, *_, max_tokens = controls
        model.change(self.clear, None, outputs, cancels=replies, **hidden).then(
            self.choose, model, [chatbot, max_tokens, status], **hidden
        )
        restored = demo.load(self.restore, messages, chatbot, **hidden)
        restored.then(None, None, None, js="() => retype()", **hidden)

    def face(self, name: str) -> dict[str, Any]:
        """Return what an empty chat shows of a model."""
        talker = self.models.get(name).talker
        what = "A base model. It continues your text, and each message starts a new text."
        if not talker.continues_text:
            what = f"A small language model with a context of {talker.engine.context:,} tokens."
        examples = BEGINNINGS if talker.continues_text else talker.questions or EXAMPLES
        return {
            "placeholder": f"<h2>{html.escape(name)}</h2><p>{what}</p>",
            "examples": [{"text": text} for text in examples],
        }

    def choose(self, name: str) -> tuple:
        """Load a model and show its face."""
        try:
            context = self.models.get(name).service.context
        except ValueError as error:
            return gradio.skip(), gradio.skip(), refusal(error)
        slider = gradio.Slider(maximum=context - 1, value=usual_max_tokens(context))
        return gradio.Chatbot(**self.face(name)), slider, NOTE

    def send(self, message: str, messages: Messages, *controls: Any) -> Iterator[tuple]:
        """Stream the reply to `message`: of an exchange, the conversation's last."""
        if not message.strip():
            yield READY, gradio.skip(), gradio.skip(), gradio.skip()
            return
        model, system, temperature, top_k, top_p, max_tokens = controls
        before, message, system = kept(messages), whole(message), whole(system)
        yield BUSY, gradio.skip(), shown([*before, said("user", message)]), "…"
        settings = {"temperature": temperature, "top_k": int(top_k) or None, "max_tokens": int(max_tokens)}
        if top_p < 1:
            settings["top_p"] = top_p
        try:
            asked = [*([said("system", system[:MAX_CHARACTERS])] if system.strip() else []), *recent(before)]
            if len(message) > MAX_CHARACTERS:
                raise ValueError(f"the message has {len(message):,} characters; at most {MAX_CHARACTERS:,}")
            seed = (
                secrets.randbits(63) if self.seed is None else derived_seed(self.seed, "reply", len(before))
            )
            with self.models.lent(model) as served:
                reply = served.talker.reply(asked, message, seed=seed, **settings)
                yield from self._stream(before, message, reply, max_tokens=int(max_tokens))
        except (ValueError, RuntimeError) as error:  # the message goes back to where it was typed
            box = gradio.Textbox(message, submit_btn=True, stop_btn=False)
            yield box, before, shown(before), refusal(error)

    def _stream(self, before: Messages, message: str, reply: Any, *, max_tokens: int) -> Iterator[tuple]:
        text, count, seen, began, error = "", 0, -math.inf, time.monotonic(), None
        try:
            for piece in reply:
                text, count = text + piece, count + 1
                if (now := time.monotonic()) - seen > REFRESH_SECONDS:
                    after = [*before, said("user", message), said("assistant", text)]
                    yield gradio.skip(), after, shown(after), gradio.skip()
                    seen = now
        except (ValueError, RuntimeError) as failed:
            if not text:
                raise
            error = failed
        after = [*before, said("user", message), said("assistant", text)]
        rate = count / max(time.monotonic() - began, 1e-9)
        note = f"{count:,} token{'s' * (count != 1)} · {rate:,.0f} tokens/s"
        if count >= max_tokens:
            note += " · cut at Max tokens"
        if reply.dropped_turns:
            note += f" · {left_out(reply.dropped_turns)}"
        yield READY, after, shown(after), refusal(error) if error else note

    def example(self, event: gradio.SelectData, messages: Messages, *controls: Any) -> Iterator[tuple]:
        yield from self.send(event.value["text"], messages, *controls)

    def retry(self, event: gradio.RetryData, messages: Messages, *controls: Any) -> Iterator[tuple]:
        """Answer a message again; what followed it is forgotten."""
        messages, place = question_at(messages, event.index)
        yield from self.send(messages[place]["content"], messages[:place], *controls)

    def edit(self, event: gradio.EditData, messages: Messages, *controls: Any) -> Iterator[tuple]:
        """Answer a message that was changed (page.js has it edited as text); what followed is forgotten."""
        messages, place = question_at(messages, event.index)
        yield from self.send(event.value, messages[:place], *controls)

    def undo(self, event: gradio.UndoData, messages: Messages) -> tuple:
        """Take the last exchange back, its message to where it was typed."""
        messages, place = question_at(messages, event.index)
        box = gradio.Textbox(messages[place]["content"], submit_btn=True, stop_btn=False)
        return box, messages[:place], shown(messages[:place]), NOTE

    def restore(self, messages: Messages) -> Any:
        """Show what the browser kept; nothing where there is nothing: somebody may have typed already."""
        return shown(kept(messages)) if messages else gradio.skip()

    def clear(self) -> tuple:
        return READY, [], [], NOTE


SENDING = "Sending … (a sleeping server takes up to a minute to wake)"
NOTE = "It makes mistakes. Check what it says."
READY = gradio.Textbox(submit_btn=True, stop_btn=False)
BUSY = gradio.Textbox("", submit_btn=False, stop_btn=True)


def refusal(error: Exception) -> str:
    """Return what the page says of an error."""
    return f'<span class="error" role="alert">{html.escape(one_line(error))}</span>'


def whole(text: str) -> str:
    """Return the text without halves of characters, which a browser can send and nobody can write."""
    return text.encode("utf-8", "replace").decode()


def said(role: str, content: str) -> dict[str, str]:
    return {"role": role, "content": content}


def recent(messages: Messages) -> Messages:
    """Return the newest exchanges that a prompt is made of, so that a long talk goes on and stays quick."""
    sizes = [len(message["content"]) for message in messages]
    start = 0
    while sum(sizes[start:]) > MAX_ALL_CHARACTERS:
        start += 2
    return messages[start:]


def kept(messages: object) -> Messages:
    """Return a conversation that a browser sent, or none if it is not one: the browser can be anybody's."""
    if not isinstance(messages, list) or len(messages) > MOST_KEPT:
        return []
    for place, message in enumerate(messages):
        role = ("user", "assistant")[place % 2]
        if not (isinstance(message, dict) and message.get("role") == role):
            return []
        if not isinstance(message.get("content"), str):
            return []
    return [said(message["role"], whole(message["content"])) for message in messages]


def question_at(messages: object, index: int | list[int] | tuple[int, int]) -> tuple[Messages, int]:
    """Return the conversation, and the place of the user's message that Gradio's index belongs to."""
    messages = kept(messages)
    index = index[0] if isinstance(index, (list, tuple)) else index
    places = [place for place, message in enumerate(messages) if message["role"] == "user" and place <= index]
    if not places:
        raise gradio.Error("There is no such message.")
    return messages, places[-1]


def shown(messages: Messages) -> list[dict[str, Any]]:
    """Return messages as the chatbot takes them."""
    return [
        {"role": message["role"], "content": [{"type": "text", "text": as_html(message["content"]) or "…"}]}
        for message in messages or []
    ]


def _quieten_gradio() -> None:
    """Let an event that fails cost a line, not a traceback, and keep no statistics of events.

    Anybody's program can send events that no page would. Statistics are for a route that is shut: every event
    took a table of the 10,000 before it, and one of a stranger's was enough that none could be made.
    """
    os.environ["GRADIO_ANALYTICS_CACHE_FREQUENCY"] = str(10**9)
    queueing: Any = gradio.queueing  # pyright: ignore[reportAttributeAccessIssue]
    queueing.traceback = SimpleNamespace(print_exc=lambda: tell(sys.exception()))


class LateAnswers:
    """Middleware that answers a page's request only once the end of its last reply has surely arrived.

    When its request is accepted, Gradio's page opens a stream for the reply unless it still has one. If the
    server has just ended that one, and the page doesn't know yet, the page waits for its reply forever.
    """

    def __init__(self, app: "ASGIApp") -> None:
        self.app = app

    async def __call__(self, scope: "Scope", receive: "Receive", send: "Send") -> None:
        async def send_late(message: "Message") -> None:
            if message["type"] == "http.response.start":
                await asyncio.sleep(ANSWER_SECONDS)
            await send(message)

        asks = scope["type"] == "http" and scope["path"] == "/gradio_api/queue/join"
        await self.app(scope, receive, send_late if asks else send)


def mount(app: "FastAPI", models: Models, defaults: Defaults) -> None:
    """Put the page at / of the app."""
    _quieten_gradio()
    app.add_middleware(LateAnswers)
    first = models.get()
    context = first.service.context
    demo = build_demo(
        models,
        temperature=defaults.temperature,
        top_k=defaults.top_k,
        max_tokens=defaults.max_tokens or usual_max_tokens(context),
        seed=defaults.seed,
    )
    places = first.service.places
    demo.queue(default_concurrency_limit=places, max_size=2 * places)
    gradio.mount_gradio_app(
        app,
        demo,
        path="/",
        ssr_mode=False,
        footer_links=[],
        run_history=False,
        show_error=True,
        enable_monitoring=False,
        mcp_server=False,
        pwa=False,
        max_file_size="1kb",
        theme=gradio.themes.Base(  # pyright: ignore[reportPrivateImportUsage]
            primary_hue="indigo",
            neutral_hue="slate",
            font=["system-ui", "sans-serif"],
            font_mono=["ui-monospace", "monospace"],
        ),
        css=(ASSETS / "page.css").read_text(encoding="utf-8"),
        head=f"<script>{(ASSETS / 'page.js').read_text(encoding='utf-8')}</script>",
    )
