"""The web page of a report. Oracle: Python's own HTML parser, and Chromium where it is installed."""

from html.parser import HTMLParser
from pathlib import Path

import pytest
from run_folders import write_demo, write_stage

from nanolit.report import card

HOSTILE = "</p><script>alert(1)</script><img src=http://example.com/x.png>"
VOID = {"meta", "img", "source"}


class Elements(HTMLParser):
    """The elements of a page in order, with their attributes, and the text of each name."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict]] = []
        self.open: list[str] = []
        self.texts: dict[str, list[str]] = {}
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list) -> None:
        self.found.append((tag, dict(attrs)))
        self.open += [] if tag in VOID else [tag]

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.texts.setdefault(self.open[-1] if self.open else "", []).append(data)


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run whose model wrote HTML."""
    root = tmp_path_factory.mktemp("root")
    folder = write_demo(root)
    (folder / "rl" / "samples.md").write_text(f"## Step 20\n\n- {HOSTILE!r} → {HOSTILE!r}\n")
    return card.write_report(root, "demo").with_suffix(".html")


def test_every_element_is_closed_and_nothing_comes_from_elsewhere(page: Path) -> None:
    elements = Elements(page.read_text())
    assert elements.open == []
    assert not {"script", "link", "iframe"} & {tag for tag, _ in elements.found}
    addresses = [
        attrs.get(key) for _, attrs in elements.found for key in ("src", "srcset", "href") if key in attrs
    ]
    assert addresses
    assert all(address.startswith("data:image/png;base64,") for address in addresses)
    assert "url(" not in page.read_text()


def test_what_a_model_wrote_is_text(page: Path) -> None:
    assert Elements(page.read_text()).texts["p"].count(HOSTILE) == 2


def test_the_page_says_what_the_markdown_says(page: Path) -> None:
    """Every cell of the final table, in the same order."""
    table = card.final_scores(card.open_run(page.parent.parent.parent, "demo"))
    assert table is not None
    cells = [cell.replace("-", "–") if cell == "-" else cell for row in table.rows for cell in row]
    assert Elements(page.read_text()).texts["td"][: len(cells)] == cells


def test_a_base_alone_continues_texts(tmp_path: Path) -> None:
    samples = "## Step 9\n\n- 'Once' → ' upon a time'\n"
    write_stage(tmp_path / "runs" / "b" / "base", result={"status": "done"}, samples=samples)
    text = card.write_report(tmp_path, "b").with_suffix(".html").read_text()
    assert "<p>Once<em> upon a time</em></p>" in text


def test_the_page_fits_every_width(page: Path, browser) -> None:
    """In Chromium, at the widths of a phone, a tablet and a laptop: no sideways scroll, nothing refused."""
    for width in (390, 768, 1280):
        tab = browser.new_page(viewport={"width": width, "height": 800}, color_scheme="dark")
        said: list[str] = []
        tab.on("console", lambda message, said=said: said.append(message.text))
        tab.goto(page.as_uri())
        assert tab.evaluate("document.documentElement.scrollWidth") == width
        assert tab.evaluate("[...document.images].every(image => image.naturalWidth > 0)")
        assert said == []
