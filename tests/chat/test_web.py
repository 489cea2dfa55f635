"""The chat page in a real headless browser, beside the API on a real server: what a person sees and does."""

import contextlib
import html.parser
import json
import re
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import httpx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nanolit.chat import web
from nanolit.chat.__main__ import main
from nanolit.chat.markup import as_html
from nanolit.chat.service import Failed
from nanolit.chat.web import Page, kept, question_at, recent
from tests.processes import wait_until

NEXT_FRAME = "() => new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))"
# The button to send is back, and the texts are there: a question and a reply each
HEARD = """(count) => {
  const texts = [...document.querySelectorAll("#chat .message-content")].map((one) => one.innerText.trim());
  const replies = document.querySelectorAll("#chat .bot.message").length;
  const over = document.querySelector("#box button.submit-button");
  return over && replies === count && texts.length === 2 * count && texts;
}"""
# The speed of a reply is shown when it has ended
WATCH = """() => {
  const over = () => /tokens?\\/s/.test(document.querySelector("#status").innerText);
  window.answered = new Promise((done) => {
    const changes = { childList: true, subtree: true, characterData: true };
    new MutationObserver(() => over() && done()).observe(document.body, changes);
  });
}"""
LOOPBACK = re.compile(r"^(http|ws)://127\.0\.0\.1:\d+/|^(data|blob):")
ATTACK = (
    '<div style="position:fixed;inset:0;z-index:9999">FAKE LOGIN</div>'
    '<form action="http://192.0.2.1/"><input name=p></form><img src=http://192.0.2.1/i.png onerror=alert(1)>'
)


@pytest.fixture
def page(browser):
    """A page that notes in `page.left_loopback` every request beyond this machine, sent or blocked."""
    context = browser.new_context(permissions=["clipboard-read", "clipboard-write"])
    page = context.new_page()
    page.set_default_timeout(90_000)  # machines that do much else answer late
    page.left_loopback, page.failed = [], []
    page.on("request", lambda r: None if LOOPBACK.match(r.url) else page.left_loopback.append(r.url))
    page.on("response", lambda r: page.failed.append((r.status, r.url)) if r.status >= 400 else None)
    yield page
    context.close()


def serve(start_chat, *words: str, port: int | None = None) -> tuple[subprocess.Popen[str], str]:
    """The chat's process and the address that it printed, once it answers there."""
    process = start_chat(*words, "web=true", "temperature=0", *([f"port={port}"] if port else []))
    line = process.stdout.readline()
    (address,) = re.findall(r"Chat: (http://127\.0\.0\.1:\d+) ", line) or [line + process.stderr.read()]
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        with contextlib.suppress(httpx.TransportError):
            assert httpx.get(f"{address}/health").json() == {"status": "ok"}
            break
        time.sleep(0.1)
    return process, address


@pytest.fixture(scope="module")
def address(start_chat):
    """A server of both models, greedy."""
    return serve(start_chat, "taught")[1]


@contextlib.contextmanager
def answered(page) -> Iterator[None]:
    """Do something on the page that makes the model answer, and wait for the end of its reply."""
    page.evaluate(WATCH)
    yield
    page.wait_for_function("window.answered.then(() => true)")


def answered_load(page):
    """Do something that loads the page, and wait until the server has answered what the page then asks."""
    return page.expect_response(lambda response: "/gradio_api/queue/join" in response.url)


def visit(page, address: str) -> None:
    """Open the page and wait until it listens: it has asked the server, and the box has the focus."""
    with answered_load(page):
        page.goto(address)
    page.wait_for_function("document.activeElement === document.querySelector('#box textarea')")


def say(page, text: str, *, refused: str = "") -> None:
    """Type and send, and wait until it is on its way, or until the page says why not."""
    box = page.locator("#box textarea")
    box.fill(text)
    page.evaluate(NEXT_FRAME)  # Gradio hands what was typed on before it paints
    page.evaluate("window.before = document.querySelector('#status').innerText")
    box.press("Enter")
    page.wait_for_function(
        "document.querySelector('#status').innerText !== window.before"
    )  # the browser's own
    if refused:
        page.locator("#status", has_text=refused).wait_for()
    else:
        page.wait_for_function("document.querySelector('#box textarea').value === ''")


def heard(page, count: int) -> list[str]:
    """Wait until `count` replies have ended; return all that the page shows, in order."""
    return page.wait_for_function(HEARD, arg=count).json_value()


def counted(address: str, what: str) -> int:
    return sum(model[what] for model in httpx.get(f"{address}/stats").json().values())


def choose_model(page, name: str) -> None:
    page.locator("#model input").click()
    page.get_by_role("option", name=name).click()
    page.locator("#chat h2", has_text=name).wait_for()


def test_the_page_chats_without_leaving_this_machine(address, page):
    visit(page, address)
    say(page, "Hello")
    assert heard(page, 1) == ["Hello", "Hi! I am tiny 😀."]
    page.locator("#status", has_text=re.compile(r"\d+ tokens · [\d,]+ tokens/s")).wait_for()
    page.get_by_role("button", name="New chat").click()
    page.get_by_text("Hi! I am tiny").wait_for(state="detached")
    say(page, "Sum?")  # answered rightly only where what was cleared is forgotten
    page.locator(".call", has_text="[12*3][= 36]").wait_for()
    page.get_by_role("button", name="Settings").click()
    for control in ("System prompt", "Temperature", "Top-k", "Top-p", "Max tokens"):
        page.get_by_label(control).first.wait_for()
    assert (page.left_loopback, page.failed) == ([], [])
    config = httpx.get(f"{address}/config").json()
    assert (config["analytics_enabled"], config["connect_heartbeat"]) == (False, False)


def test_a_message_that_does_not_fit_goes_back_to_where_it_was_typed(address, page):
    visit(page, address)
    say(page, "x" * 200, refused="the message (203 tokens) and max_tokens (64) don't fit")
    assert page.locator("#box textarea").input_value() == "x" * 200
    assert page.locator("#chat .message").count() == 0


def test_text_is_shown_as_it_was_written(address, page):
    """Also what looks like Markdown, HTML or a form: nothing of it becomes a part of the page."""
    texts = [
        "so 2*3*4 is 24 and 5*6 is 30",
        "if a<b and c>d then stop",
        "call __init__  now\n  | a | b |",
        "&lt; &amp;",
    ]
    visit(page, address)
    choose_model(page, "rambling/base")  # it has room for them
    for number, text in enumerate([*texts, ATTACK], start=1):
        say(page, text)
        assert heard(page, number)[-2] == text
    assert page.locator("form, #chat img, #chat [style*=fixed]").count() == 0
    assert page.left_loopback == []
    policy = httpx.get(address).headers["content-security-policy"]
    assert "form-action 'self'" in policy


def test_code_stays_code_and_a_copy_is_what_was_written(address, page):
    visit(page, address)
    text = "Run\n```python\nx = 2*3 < 7\n```\n& <b>see</b>"
    say(page, text)
    assert page.locator(".user pre").inner_text().split("\n")[1] == "x = 2*3 < 7"
    heard(page, 1)
    page.get_by_label("Copy message").first.click()
    page.wait_for_function("async (text) => (await navigator.clipboard.readText()) === text", arg=text)


def test_retry_undo_and_edit_go_on_from_where_they_were_asked(address, page):
    visit(page, address)
    say(page, "Hello")
    heard(page, 1)
    say(page, "Sum?")
    first = heard(page, 2)
    before = counted(address, "replies")
    with answered(page):
        page.get_by_role("button", name="Retry").click()
    assert counted(address, "replies") == before + 1
    assert heard(page, 2) == first
    page.get_by_role("button", name="Undo").click()
    assert heard(page, 1) == first[:2]
    assert page.locator("#box textarea").input_value() == "Sum?"
    page.get_by_label("Edit").first.click()
    box = page.locator("#chat textarea")
    assert box.input_value() == "Hello"
    box.fill("Sum?")
    page.get_by_role("button", name="Submit").click()
    page.locator(".call", has_text="[12*3][= 36]").wait_for()
    assert heard(page, 1)[0] == "Sum?"


def test_what_is_edited_is_the_text_and_not_its_markup(address, page):
    visit(page, address)
    say(page, "a<b & c")
    heard(page, 1)
    page.get_by_label("Edit").first.click()
    box = page.locator("#chat textarea")
    # The page rewrites what Gradio puts there
    page.wait_for_function("document.querySelector('#chat textarea').value === 'a<b & c'")
    box.fill("a long line " * 20)
    assert box.evaluate("box => box.scrollHeight <= box.clientHeight + 1"), "it grows with what is written"
    page.locator("#chat textarea").fill("a<b &amp; d")
    page.get_by_role("button", name="Submit").click()
    page.get_by_text("a<b &amp; d", exact=True).wait_for()


def test_stop_frees_the_slot_and_keeps_what_came(address, page):
    before = counted(address, "cancelled")
    visit(page, address)
    choose_model(page, "rambling/base")
    page.get_by_role("button", name="Settings").click()
    page.get_by_label("number input for Max tokens").fill("16000")
    page.get_by_label("number input for Max tokens").press("Enter")
    page.get_by_role("button", name="Settings").click()
    say(page, "Once")
    page.get_by_text(re.compile("aaaa")).first.wait_for()
    assert counted(address, "open") == 1
    page.locator("button.stop-button").click()
    wait_until(lambda: counted(address, "open") == 0, seconds=60)
    assert counted(address, "cancelled") == before + 1
    _, said = heard(page, 1)
    assert 0 < len(said) < 15_000
    say(page, "Again")
    page.get_by_text(re.compile("^a+$")).nth(1).wait_for()
    page.close()
    wait_until(lambda: counted(address, "open") == 0, seconds=60)
    assert counted(address, "cancelled") == before + 2, "a closed tab keeps no slot"


@pytest.mark.parametrize("width", [390, 820, 1280])
def test_the_title_is_beside_or_above_the_choice_of_a_model(address, page, width):
    page.set_viewport_size({"width": width, "height": 844})
    visit(page, address)
    title, model = (page.locator(name).bounding_box() for name in ("#title h1", "#model"))
    beside = title["x"] + title["width"] <= model["x"]
    above = title["y"] + title["height"] <= model["y"]
    assert above if width == 390 else beside
    assert page.evaluate("document.documentElement.scrollWidth") <= width


@pytest.mark.parametrize(("width", "height"), [(390, 420), (844, 390)])  # a phone with its keys out, or lying
def test_a_short_screen_holds_the_title_the_box_and_something_between(address, page, width, height):
    page.set_viewport_size({"width": width, "height": height})
    visit(page, address)
    page.locator("#box textarea").fill("line\n" * 30)
    page.wait_for_function("document.querySelector('#box').offsetHeight > 100")
    assert page.evaluate("document.documentElement.scrollHeight") <= height
    assert page.locator("#chat").bounding_box()["height"] >= 90


def test_a_reply_that_is_cut_says_so(address, page):
    visit(page, address)
    page.get_by_role("button", name="Settings").click()
    page.get_by_label("number input for Max tokens").fill("5")
    page.keyboard.press("Tab")
    say(page, "Hello")
    page.locator("#status", has_text=re.compile(r"5 tokens · [\d,]+ tokens/s · cut at Max tokens")).wait_for()


def test_an_example_is_asked_and_answered(address, page):
    visit(page, address)
    page.get_by_role("button", name="Hello! Who are you?").click()
    assert heard(page, 1)[0] == "Hello! Who are you?"


def ask_and_end_the_server(start_chat, page) -> tuple[str, list[str]]:
    """Return the address that it had, and what the page shows of one exchange."""
    with socket.create_server(("127.0.0.1", 0)) as free:  # not of the ports that other tests' servers take
        port = free.getsockname()[1]
    process, address = serve(start_chat, "taught", port=port)
    visit(page, address)
    say(page, "Hello")
    first = heard(page, 1)
    process.send_signal(signal.SIGINT)
    assert process.wait(timeout=60) == 0
    return address, first


@pytest.mark.slow
def test_a_restarted_server_loses_nothing_of_an_open_page(start_chat, page):
    """Both exchanges are on the page and in the prompt, also after a reload; oracle: the API."""
    address, first = ask_and_end_the_server(start_chat, page)
    serve(start_chat, "taught", port=int(address.rpartition(":")[2]))
    say(page, "Sum?")
    both = heard(page, 2)
    assert both[:2] == first
    roles = ("user", "assistant", "user")
    messages = [{"role": role, "content": text} for role, text in zip(roles, both[:3], strict=True)]
    asked = {"messages": messages, "temperature": 0, "max_tokens": 64}
    answer = httpx.post(f"{address}/v1/chat/completions", json=asked, timeout=60).json()
    assert both[3] == answer["choices"][0]["message"]["content"].strip()
    page.reload()
    assert heard(page, 2) == both


def test_a_message_that_found_no_server_waits_in_the_box_for_its_return(start_chat, page):
    address, first = ask_and_end_the_server(start_chat, page)
    box = page.locator("#box textarea")
    box.fill("Sum?")
    page.evaluate(NEXT_FRAME)
    lost, deadline = page.get_by_text("Connection to the server was lost"), time.monotonic() + 90
    while not lost.count():  # Gradio ignores what is sent while it waits for the last words of a reply
        assert time.monotonic() < deadline
        box.press("Enter")
        page.wait_for_timeout(500)
    with answered_load(page):
        serve(start_chat, "taught", port=int(address.rpartition(":")[2]))
    page.wait_for_function("document.querySelector('#box textarea').value === 'Sum?'")
    assert heard(page, 1) == first
    box.press("Enter")
    assert heard(page, 2)[:3] == [*first, "Sum?"]


def test_what_came_of_a_reply_that_failed_stays():
    class Reply:
        dropped_turns = 0

        def __iter__(self):
            yield "Hi"
            raise Failed("out of memory")

    model = SimpleNamespace(talker=SimpleNamespace(reply=lambda *_, **__: Reply()))
    models: Any = SimpleNamespace(lent=lambda _: contextlib.nullcontext(model))
    page = Page(models, seed=1)
    *_, (_, messages, _, status) = page.send("Hello", [], "taught", "", 0.6, 50, 1.0, 9)
    assert [message["content"] for message in messages] == ["Hello", "Hi"]
    assert "out of memory" in status


@pytest.mark.parametrize(("path", "waits"), [("queue/join", True), ("queue/data", False)])
def test_a_request_is_answered_when_the_last_replys_end_has_arrived(monkeypatch, path, waits):
    """Otherwise the page takes the ended stream for open, and a reply never comes."""
    order = []

    async def app(_scope, _receive, send):
        order.append("accepted")
        await send({"type": "http.response.start"})

    async def sleep(seconds):
        order.append(seconds)

    async def send(message):
        order.append(message["type"])

    monkeypatch.setattr(web.asyncio, "sleep", sleep)
    scope = {"type": "http", "path": f"/gradio_api/{path}"}
    with pytest.raises(StopIteration):  # there is nothing to wait for, and the browser has the thread's loop
        web.LateAnswers(app)(scope, None, send).send(None)
    assert order == ["accepted", *[web.ANSWER_SECONDS] * waits, "http.response.start"]


def test_only_what_the_page_needs_is_served(address):
    """Of Gradio's routes; uploads and files above all."""
    with httpx.Client(base_url=address) as client:
        for path in ("file=/etc/passwd", "runs", "proxy=http://192.0.2.1/", "deep_link", "openapi.json"):
            assert client.get(f"/gradio_api/{path}").status_code == 404, path
        for path in ("monitoring", "monitoring/summary", "docs", "openapi.json"):
            assert client.get(f"/{path}").status_code == 404, path
        for path in (
            "gradio_api/upload",
            "gradio_api/process_recording",
            "gradio_api/run/send",
            "gradio_api/vibe-edit",
        ):
            assert client.post(f"/gradio_api/{path}", content=b"x").status_code == 404, path
        assert client.get("/gradio_api/heartbeat/abc").status_code == 204


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("POST", "/health", 405),
        ("GET", "/health/", 404),
        ("GET", "/healthy", 404),
        ("DELETE", "/stats", 405),
        ("POST", "/", 405),
        ("TRACE", "/v1/models", 405),
        ("FOO", "/v1/models", 405),
        ("PUT", "/v1/models", 404),
    ],
)
def test_what_is_for_neither_page_nor_api_is_refused_in_the_form_of_the_api(address, method, path, status):
    answer = httpx.request(method, f"{address}{path}")
    assert answer.status_code == status
    assert answer.json()["error"]["type"] == "invalid_request_error"


def test_a_watchdog_may_ask_for_the_head_of_health(address):
    assert httpx.head(f"{address}/health").status_code == 200


class Text(html.parser.HTMLParser):
    """What a browser makes of markup: its text, and the tags."""

    def __init__(self, markup: str) -> None:
        super().__init__(convert_charrefs=True)
        self.text, self.tags = "", set()
        self.feed(markup)
        self.close()

    def handle_data(self, data: str) -> None:
        self.text += data

    def handle_starttag(self, tag: str, attrs: object) -> None:
        self.tags.add(tag)


@settings(max_examples=300)
@given(st.lists(st.sampled_from([*"a*`<>&=[] \n\"'", "```", "\n```\n", "[1][= 2]", "&lt;", "<b>", "</pre>"])))
def test_markup_has_exactly_the_text_that_was_written(pieces):
    """Oracle: Python's own HTML parser."""
    text = "".join(pieces)
    parsed = Text(as_html(text))
    assert parsed.text == text
    assert parsed.tags <= {"pre", "code", "i", "b"}


def test_a_long_talk_goes_on_with_its_newest_exchanges():
    messages = [{"role": role, "content": "x" * 7_000} for role in ("user", "assistant")] * 4
    assert recent(messages) == messages[4:]
    assert recent(messages[:4]) == messages[:4]


def test_the_index_of_a_message_is_that_of_its_question():
    roles = ("user", "assistant", "user", "assistant")
    messages = [{"role": role, "content": ""} for role in roles]
    assert [question_at(messages, index) for index in (0, 1, [2, 0], 3)] == [
        (messages, n) for n in (0, 0, 2, 2)
    ]


@pytest.mark.parametrize(
    "messages",
    [
        *(None, "x", {}, [None], [{}], [[]]),
        [{"role": "user"}],
        [{"role": "user", "content": 1}],
        [{"role": "system", "content": "x"}],
        [{"role": "assistant", "content": "x"}],
    ],
)
def test_what_is_no_conversation_is_as_if_the_browser_had_kept_nothing(messages):
    assert kept(messages) == []


def test_half_a_character_of_a_browser_is_a_question_mark():
    assert kept([{"role": "user", "content": "a\ud83d"}]) == [{"role": "user", "content": "a?"}]


STRANGE_EVENTS = [
    {"fn_index": 10**9, "data": []},
    {"fn_index": -1, "data": []},
    {"fn_index": 5, "data": ["too few"]},
    {"fn_index": 4, "data": [[]] * 8},  # lists for numbers
    {"fn_index": 4, "data": ["Hello", [], "taught/sft", "", 9, 0, 1, 1e9]},
    {"fn_index": 6, "data": [[], "taught/sft", "", 1, 0, 1, 9], "event_data": {"index": "x"}},
    {"fn_index": 4, "data": ["\ud83d"] * 9, "session_hash": "\ud83d"},
]


def test_events_that_no_page_sends_cost_a_line_each(start_chat):
    """Gradio would print a traceback for each, and fail at its statistics for whoever comes later."""
    process, address = serve(start_chat, "taught")
    headers = {"content-type": "application/json"}
    for event in STRANGE_EVENTS:
        body = json.dumps({"session_hash": "abc"} | event)
        httpx.post(f"{address}/gradio_api/queue/join", content=body, headers=headers)
        with contextlib.suppress(httpx.HTTPError):  # a stream without an end
            httpx.get(f"{address}/gradio_api/queue/data?session_hash=abc", timeout=3)
    httpx.get(f"{address}/assets/{'a' * 5000}")
    process.send_signal(signal.SIGINT)
    lines = process.communicate(timeout=60)[1].splitlines()
    assert len(lines) >= 5
    assert [line for line in lines if not line.startswith("server: ") or len(line) > 350] == []


def test_a_taken_port_is_one_line(capsys):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert main(["taught", "web=true", f"port={port}"]) == 2
    output = capsys.readouterr()
    assert (output.out, output.err.count("\n")) == ("", 1)
    assert f"port {port} can't be served on 127.0.0.1" in output.err


def test_a_host_that_is_not_here_is_refused_at_once(capsys):
    """192.0.2.1 is kept for documentation: no machine has it."""
    assert main(["taught", "web=true", "host=192.0.2.1"]) == 2
    assert "host 192.0.2.1 is not an address of this machine" in capsys.readouterr().err


def test_the_api_offers_every_run_beside_the_page(address):
    names = [model["id"] for model in httpx.get(f"{address}/v1/models").json()["data"]]
    assert names == ["taught/sft", "rambling/base"]
