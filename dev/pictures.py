"""Make README's pictures from a finished run: `python dev/pictures.py run=demo root=FOLDER`.

page.png, page-phone.png   a conversation on the chat page, served on loopback, in a headless Chromium
terminal.svg               the output of the run's own command, run again
curve.png, curve-rl.png    the report's curves of base and rl

They go to docs/images. On the page, the model is asked the questions of its own samples and gives the
likeliest replies, so the same run gives the same pictures.
"""

import contextlib
import fcntl
import io
import os
import pty
import re
import shlex
import shutil
import signal
import struct
import subprocess
import sys
import tempfile
import termios
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image
from playwright.sync_api import Browser, sync_playwright
from rich.console import Console
from rich.terminal_theme import MONOKAI
from rich.text import Text

from nanolit.machine.arguments import Root, read, setting
from nanolit.machine.exit import command
from nanolit.machine.paths import PACKAGE, run_folder, write_atomically
from nanolit.machine.terminal import train_command
from nanolit.report.card import talk
from nanolit.report.curves import PLOTS, draw_stage
from nanolit.report.folders import Run, open_run
from nanolit.report.sections import Exchange

IMAGES = PACKAGE.parent / "docs" / "images"
BROWSERS = ("chromium-headless-shell", "chromium", "chromium-browser", "google-chrome")
# Width and least height of a screen, and which of the questions are asked on it: all would fill a long one
SCREENS = {"page.png": (1000, 600, slice(0, 3)), "page-phone.png": (390, 700, slice(2, 5))}
SCALE = 1.5  # pixels of a picture for one of a plain screen
MARGIN = 24  # that the conversation gets below it
MOST_HEIGHT = 1_000  # of a screen that grows with the conversation; a longer one is scrolled
COLORS = 128  # of a picture of the page: a third of the bytes of all, and no difference that shows
CURVES = {"curve.png": ("base", "loss"), "curve-rl.png": ("rl", "reward")}
COLUMNS = 110  # of the terminal, which hold the table of scores
MAX_BYTES = 150_000  # of a picture: a repository keeps every version of it
LOAD_MS, REPLY_MS = 60_000, 120_000
SETTLE_MS = 2_000  # for the buttons that come below a whole reply, and for scrolling


@dataclass(frozen=True, kw_only=True)
class Settings(Root):
    """Settings of the pictures."""

    run: str = setting("a finished run", "demo", value="RUN")
    out: Path = setting("folder for the pictures", IMAGES)


@command
def main(words: Sequence[str]) -> None:
    settings = read(Settings, words, about=__doc__)
    run = open_run(settings.home, settings.run)
    if unfinished := [stage for stage, state in run.states().items() if state != "done"]:
        raise ValueError(f"run {run.name} is not finished ({', '.join(unfinished)}); train it to the end")
    pictures = draw_curves(run) | {"terminal.svg": draw_terminal(run, root=settings.home)}
    with served(run.name, root=settings.home) as address, chromium() as browser:
        for name, (width, height, asked) in SCREENS.items():
            pictures[name] = photograph(browser, address, (width, height), questions_of(run)[asked])
    settings.out.mkdir(parents=True, exist_ok=True)
    for name, picture in pictures.items():
        if len(picture) > MAX_BYTES:
            raise ValueError(f"{name} has {len(picture):,} bytes, more than {MAX_BYTES:,}; show less on it")
        write_atomically(settings.out / name, picture)
        print(f"{settings.out / name}  {len(picture):,} bytes")


def draw_curves(run: Run) -> dict[str, bytes]:
    """Return the report's curves as PNG files by name; ValueError if the run has no such stage."""
    stages, plots = {stage.name: stage for stage in run.stages}, {plot.name: plot for plot in PLOTS}
    if missing := {stage for stage, _ in CURVES.values()} - stages.keys():
        raise ValueError(f"run {run.name} has no stage {', '.join(missing)}; take another, such as the demo")
    return {name: draw_stage(plots[plot], run, stages[stage]) for name, (stage, plot) in CURVES.items()}


def questions_of(run: Run) -> list[str]:
    """Return the questions of the run's own samples; ValueError if it cannot chat."""
    exchanges = [block for block in talk(run) if isinstance(block, Exchange) and block.chat]
    if not exchanges:
        raise ValueError(f"run {run.name} has no stage that chats; take another, such as the demo")
    return [question for question, _ in exchanges[0].turns]


def draw_terminal(run: Run, *, root: Path) -> bytes:
    """Run the run's command again in a folder whose ./runs is the root; return the output as an SVG."""
    words = [word for word in run.job["overrides"] if not word.startswith("root=")]
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "runs").symlink_to(root)
        printed = at_terminal([sys.executable, "-m", "nanolit.train", *words], folder=Path(folder))
    return as_svg(f"$ {train_command(words)}\n{printed}").encode()


def at_terminal(words: Sequence[str], *, folder: Path) -> str:
    """Run a command at a pseudo-terminal and return all that it prints; ValueError if it fails."""
    ours, its = pty.openpty()
    fcntl.ioctl(its, termios.TIOCSWINSZ, struct.pack("HHHH", 50, COLUMNS, 0, 0))
    hidden = ("NANOLIT_HOME", "NO_COLOR", "COLUMNS", "LINES")
    environment = {name: value for name, value in os.environ.items() if name not in hidden}
    environment |= {"TERM": "xterm-256color"}
    output = bytearray()
    with subprocess.Popen(
        words, stdin=subprocess.DEVNULL, stdout=its, stderr=its, cwd=folder, env=environment
    ) as process:
        os.close(its)
        with contextlib.suppress(OSError):  # Linux's end of a pseudo-terminal
            while piece := os.read(ours, 65_536):
                output += piece
    os.close(ours)
    text = output.decode().replace("\r\n", "\n")
    if process.returncode:
        raise ValueError(f"{shlex.join(words)} ended with exit code {process.returncode}: {text.strip()}")
    return text


def as_svg(text: str) -> str:
    """Return a terminal's text, with its colors, as an SVG that loads nothing."""
    console = Console(record=True, width=COLUMNS, file=io.StringIO(), force_terminal=True)
    console.print(Text.from_ansi(text), soft_wrap=False)
    svg = console.export_svg(title="NanoLit", theme=MONOKAI, unique_id="terminal")
    return re.sub(r"@font-face \{.*?\}\s*", "", svg, flags=re.DOTALL)


@contextlib.contextmanager
def served(run: str, *, root: Path) -> Iterator[str]:
    """Serve the run's chat page on loopback; yields its address."""
    settings = ["web=true", "temperature=0", f"root={root}"]
    with subprocess.Popen(
        [sys.executable, "-m", "nanolit.chat", run, *settings], stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout
        try:
            line = process.stdout.readline()
            if not (address := re.search(r"http://[\d.:]+", line)):
                raise ValueError(f"the page of {run_folder(root, run)} can't be served; see above")
            yield address[0]
        finally:
            process.send_signal(signal.SIGINT)


@contextlib.contextmanager
def chromium() -> Iterator[Browser]:
    """Yield a headless Chromium: the system's, or playwright's if there is none."""
    executable = next(filter(None, map(shutil.which, BROWSERS)), None)
    with sync_playwright() as engine:
        browser = engine.chromium.launch(executable_path=executable, args=["--no-sandbox"])
        yield browser
        browser.close()


def photograph(browser: Browser, address: str, screen: tuple[int, int], questions: Sequence[str]) -> bytes:
    """Ask the questions one after another on the page; return a PNG of the page after them."""
    width, height = screen
    page = browser.new_page(viewport={"width": width, "height": height}, device_scale_factor=SCALE)
    page.set_default_timeout(REPLY_MS)
    page.goto(address, timeout=LOAD_MS)
    page.wait_for_load_state("networkidle")
    box = page.locator("#box textarea")
    for number, question in enumerate(questions):
        box.fill(question)
        box.press("Enter")
        page.locator(".bot.message").nth(number).wait_for()
        page.locator("#status", has_text="tokens/s").wait_for()
        page.locator("button.submit-button").wait_for()
    page.wait_for_timeout(SETTLE_MS)
    missing = page.locator("#chat .bubble-wrap").evaluate("chat => chat.scrollHeight - chat.clientHeight")
    page.set_viewport_size({"width": width, "height": min(MOST_HEIGHT, height + missing + MARGIN)})
    page.wait_for_timeout(SETTLE_MS)
    picture = Image.open(io.BytesIO(page.screenshot())).convert("RGB").quantize(COLORS)
    page.close()
    buffer = io.BytesIO()
    picture.save(buffer, format="png", optimize=True)
    return buffer.getvalue()


if __name__ == "__main__":
    sys.exit(main())
