"""Text to the markup that the page shows: its text is exactly what was written."""

import html
import re

from nanolit.chat.dialogue import CALL

_FENCE = re.compile(r"(^```.*?(?:^```[ \t]*$\n?|\Z))", re.DOTALL | re.MULTILINE)


def as_html(text: str) -> str:
    """Return HTML whose text is exactly `text`, with fenced code and calculator calls marked for page.css."""
    pieces = _FENCE.split(text)
    return "".join(_code(piece) if place % 2 else _prose(piece) for place, piece in enumerate(pieces))


def _prose(text: str) -> str:
    return CALL.sub(
        r'<code class="call"><i>[</i>\1<i>][</i>= <b>\2</b><i>]</i></code>', html.escape(text, quote=False)
    )


def _code(text: str) -> str:
    """Return a block whose fence is still there, dimmed: copied, it is what was written."""
    return "<pre>" + re.sub("(?m)^(```.*)$", r"<i>\1</i>", html.escape(text, quote=False)) + "</pre>"
