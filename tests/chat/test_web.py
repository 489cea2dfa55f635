"""The chat page in a real headless browser: it streams, stops, and asks nothing of any other machine."""

import json
import re
import shutil
import signal
import socket
import subprocess
import urllib.request

import pytest

from nanolit.chat import web

BROWSERS = ("chromium-headless-shell", "chromium", "chromium-browser", "google-chrome")
LOOPBACK = re.compile(r"^(http|ws)://127\.0\.0\.1:\d+/|^(data|blob):")


@pytest.fixture(scope="module")
def browser():
    executable = next(filter(None, map(shutil.which, BROWSERS)), None)
    if executable is None:
        pytest.skip("no Chromium here; on Debian: apt-get install chromium-headless-shell")
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed (extra: dev)")
    with playwright.sync_playwright() as engine:
        browser = engine.chromium.launch(executable_path=executable, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def page(browser):
    """A page that notes in `page.left_loopback` every request beyond this machine, sent or blocked."""
    page = browser.new_page()
    page.set_default_timeout(180_000)  # machines that do much else answer late
    page.left_loopback = []
    page.on(
        "request",
        lambda request: page.left_loopback.append(request.url) if not LOOPBACK.match(request.url) else None,
    )
    yield page
    page.close()


def serve(start_chat, *arguments: str) -> tuple[subprocess.Popen[str], str]:
    """The chat's process and the address that it printed."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    process = start_chat(*arguments, "web=true", f"port={port}", "temperature=0")
    line = process.stdout.readline()
    assert f"http://127.0.0.1:{port}" in line, line + process.stderr.read()
    return process, f"http://127.0.0.1:{port}/"


def say(page, text: str) -> None:
    """Type and send: Enter again while the text is still there, for a busy page may not have read it yet."""
    box = page.get_by_role("textbox").first
    box.fill(text)
    for _ in range(20):
        box.press("Enter")
        for _ in range(30):
            page.wait_for_timeout(100)
            if not box.input_value():
                return
    raise AssertionError(f"{text!r} was not sent; the page: {page.inner_text('body')[-500:]!r}")


def test_the_page_chats_without_leaving_this_machine(start_chat, page):
    process, address = serve(start_chat, "run=taught", "top_k=500")  # beyond what the page offers by itself
    page.goto(address)
    say(page, "Hello")
    page.get_by_text("Hi! I am tiny 😀.", exact=True).wait_for()
    say(page, "x" * 200)
    page.get_by_text("(the message (203 tokens) and max_tokens (64) don't fit").wait_for()
    page.get_by_label("Clear").first.click()
    page.get_by_text("Hi! I am tiny").wait_for(state="detached")
    say(page, "Sum?")  # answered rightly only where the cleared turns are forgotten
    page.get_by_text("It is [12*3][= 36]").wait_for()
    page.get_by_label("Toggle Sidebar").click()
    for control in ("Temperature", "Top-k", "Max tokens"):
        page.get_by_label(control).first.wait_for()
    assert page.left_loopback == []
    with urllib.request.urlopen(f"{address}config", timeout=60) as answer:
        assert json.load(answer)["analytics_enabled"] is False
    blocked = []
    page.on("console", lambda message: blocked.append(message.text))
    say(page, "![image](http://192.0.2.1/image.png)")  # an address kept for documentation
    page.get_by_alt_text("image").wait_for(state="attached")
    page.wait_for_timeout(500)
    assert any("192.0.2.1" in text and "Content Security Policy" in text for text in blocked)
    process.send_signal(signal.SIGINT)
    assert process.wait(timeout=60) == 0


def test_stop_ends_a_reply_and_the_next_message_is_answered(start_chat, page):
    _, address = serve(start_chat, "run=rambling", "max_tokens=16000")
    page.goto(address)
    say(page, "Once")
    page.get_by_text(re.compile("aaaa")).first.wait_for()
    page.locator("button.stop-button").click()
    page.locator("button.submit-button").wait_for()
    said = page.get_by_text(re.compile("^a+$")).first.inner_text()
    assert 0 < len(said) < 15_000
    page.wait_for_timeout(1_000)
    assert page.get_by_text(re.compile("^a+$")).first.inner_text() == said
    say(page, "Again")
    page.get_by_text(re.compile("^a+$")).nth(1).wait_for()


def test_a_host_that_is_not_here_is_refused_at_once():
    """192.0.2.1 is kept for documentation: no machine has it."""
    with pytest.raises(ValueError, match=r"host 192\.0\.2\.1 is no address of this machine .* another host="):
        web.serve(None, host="192.0.2.1", port=None)  # pyright: ignore[reportArgumentType]
