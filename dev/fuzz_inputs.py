"""Almost valid inputs for fuzz.py: strange texts and values, and files that were tampered with."""

import copy
import json
import re
from collections.abc import Iterator
from pathlib import Path
from random import Random
from typing import Any

import yaml

from dev.damages import BYTES

INPUTS: dict[str, Any] = yaml.safe_load(Path(__file__).with_name("fuzz.yaml").read_text())

TEXTS = (
    *("", " ", "\n", "\r\n", "\t", "\0", "\x1b]0;title\x07", "\x7f", "\x9b31m", "\u202e", "\u2028"),
    *("\ufeff", "é", "e\u0301", "😀", "\ud83d", "\ude00\ud83d", "é", "²", "٣", "\u00a0", "\uffff", "ﷺ"),
    *("a" * 70_000, "9" * 5_000, "-" * 300, "[" * 2_000, "(" * 500, "{" * 100, "NaN", "nan", "inf"),
    *("-Infinity", "1e309", "1e-320", "-1", "0", "0x10", "1_000", "1,234", "007", "1e3", "null", "true"),
    *("None", "~", "[]", "{}", "=", "==", ",", ":", "'", '"', "\\", "`", "%s", "{0}", "$HOME"),
    *("${oc.env:HOME}", "${run}", "${", "!!python/object/apply:os.system ['false']", "&a [*a]", "*a", "--"),
    *("-h", "~nobody-of-that-name/x", "a/b", "a=b", "[1,2", "a,b", "range(1,3)", "<|bos|>"),
    *("<|python_end|>", "con"),
)
NUMBERS = (0, 1, -1, 2, 3, 7, 255, 2**31, 2**63, -(2**63) - 1, 10**30, 10**400)
NUMBERS += (0.5, -0.0, 1e-320, 1e300, float("nan"), float("inf"), -float("inf"))
PIECES = (b"\0", b"\0\0\0\0", b"\xff", b"\xff\xfe", b"\xef\xbb\xbf", b"\xc3", b"\xed\xa0\xbd", b"\r")
PIECES += (b"\x1b[2J", b'"', b"\\u0000", b"\\ud800", b"{", b"]", b",", b"\n\n", b"9" * 5000, b"[" * 100_000)
PIECES += (b"x" * 300_000,)


def text(random: Random) -> str:
    """Return a strange text: one of the list, or several in a row."""
    return "".join(random.choice(TEXTS) for _ in range(random.choice((1, 1, 1, 2, 3))))


def value(random: Random, depth: int = 0) -> Any:
    """Return a strange value of JSON's."""
    kind = random.randrange(8 if depth < 3 else 5)
    if kind < 2:
        return random.choice(NUMBERS)
    if kind < 4:
        return text(random)
    if kind == 4:
        return random.choice((None, True, False))
    if kind == 5:
        return [value(random, depth + 1) for _ in range(random.randrange(4))]
    if kind == 6:
        return {text(random): value(random, depth + 1) for _ in range(random.randrange(3))}
    nested: Any = random.choice(([], {}, 1))
    for _ in range(random.choice((3, 50, 400))):
        nested = [nested] if random.random() < 0.5 else {"a": nested}
    return nested


def places(node: Any) -> Iterator[tuple[Any, Any]]:
    """Yield (parent, key) of everything below a value."""
    for key, below in [*(node.items() if isinstance(node, dict) else enumerate(node))]:
        yield node, key
        if isinstance(below, dict | list):
            yield from places(below)


def edited(random: Random, node: Any, *, most: int = 3) -> Any:
    """Return a copy with up to `most` changes: keys gone, added or renamed, values exchanged or strange."""
    node = copy.deepcopy(node)
    for _ in range(random.randint(0, most)):
        spots = [*places(node)] if isinstance(node, dict | list) else []
        if not spots or random.random() < 0.03:
            return value(random)
        (parent, key), (other, there) = random.choice(spots), random.choice(spots)
        kind = random.randrange(9)
        if kind == 0:
            del parent[key]
        elif kind == 1:
            parent[key] = random.choice(([parent[key]], {"a": parent[key]}, str(parent[key])))
        elif kind == 2 and isinstance(parent, dict):
            parent[text(random)] = value(random)
        elif kind == 3 and isinstance(parent, dict):
            parent[random.choice((text(random), key + "x", key.upper()))] = parent.pop(key)
        elif kind == 4:
            parent[key] = copy.deepcopy(other[there])
        else:
            parent[key] = alike(random, parent[key]) if kind < 7 else value(random)
    return node


def alike(random: Random, old: Any) -> Any:
    """Return another value of the same type."""
    if isinstance(old, bool) or old is None:
        return random.choice((True, False, None))
    if isinstance(old, int | float):
        third = old // 3 if isinstance(old, int) else old / 3
        exact = float(old) if abs(old) < 2**53 else old
        return random.choice((old + 1, -old, old * 2, old * 10, third, 10**12, exact))
    if isinstance(old, str):
        return random.choice((text(random), old[:-1], old + old, old.upper(), old[::-1], old + text(random)))
    return random.choice((old * 2 if isinstance(old, list) else {}, [*old], value(random)))


def dumped(random: Random, node: Any) -> bytes:
    """Return JSON, now and then with a key that is there twice, numbers of many digits, or as UTF-16."""
    written = json.dumps(node, ensure_ascii=random.random() < 0.5)
    if random.random() < 0.05 and (found := re.search(r'\{("[^"]*": )', written)):
        written = written.replace(found[1], found[1] + json.dumps(value(random)) + ", " + found[1], 1)
    if random.random() < 0.03:
        written = re.sub(r"\d+", "9" * 4301, written, count=1)
    encoding = random.choice(("utf-8",) * 20 + ("utf-16", "utf-8-sig"))
    return written.encode(encoding, "surrogatepass")


def dumped_lines(random: Random, rows: Any) -> bytes:
    """Return a line of JSON for each row."""
    return b"".join(dumped(random, row) + b"\n" for row in (rows if isinstance(rows, list) else [rows]))


def damaged(random: Random, content: bytes) -> bytes:
    """Return the bytes cut, flipped, repeated, with something strange in them, or as a damaged file's."""
    at, other = sorted((random.randint(0, len(content)), random.randint(0, len(content))))
    before, between, after = content[:at], content[at:other], content[other:]
    kind = random.randrange(9)
    if kind == 0:
        return random.choice((before, content[:-1]))
    if kind == 1:
        return before + after
    if kind == 2:
        return before[:-1] + bytes([byte ^ 1 << random.randrange(8) for byte in before[-1:]]) + content[at:]
    if kind == 3:
        return before + between[:500] * random.choice((2, 3, 50)) + after
    if kind == 4:
        return random.choice((random.randbytes(random.randrange(200)), content[::-1]))
    if kind == 5:
        return text(random).encode("utf-8", "surrogatepass").join((before, content[at:]))
    if kind == 6:
        return random.choice([*BYTES.values()])(content)
    return before + random.choice(PIECES) + content[at:]


def tampered(random: Random, content: bytes, node: Any = None, dump: Any = dumped) -> bytes:
    """Return a file's bytes, changed in its structure where that is given, as bytes, in both, or not."""
    if node is not None and random.random() < 0.7:
        content = dump(random, edited(random, node))
        if random.random() < 0.8:
            return content
    for _ in range(random.choice((0, 1, 1, 1, 2))):
        content = damaged(random, content)
    return content


def typed(random: Random, words: list[str]) -> list[str]:
    """Return the words of a command line, some of them gone, doubled, cut, exchanged or with strange values.

    The operating system passes no NUL, and no slash comes at the beginning: nothing is written elsewhere.
    """
    words = [*words]
    for _ in range(random.choice((0, 1, 1, 2, 3))):
        kind, at = random.randrange(8), random.randrange(len(words) + 1)
        here = words[at : at + 1]
        key, equals, after = "".join(here).partition("=")
        if kind == 0:
            del words[at : at + 1]
        elif kind == 1:
            words.insert(at, random.choice([*words, text(random)]))
        elif kind == 2:
            words[at : at + 1] = [key, after]
        elif kind == 3:
            words[at : at + 1] = [random.choice(("-", "--", "+", "++", "~")) + word for word in here]
        elif kind == 4 and key:
            words[at] = words[at][: random.randrange(len(words[at]))]
        else:
            words[at : at + 1] = [f"{key or text(random)}{equals or '='}{text(random)}"]
    safe = (re.sub(r"\0|\.\.+", "", word)[:100_000] for word in words)
    return [re.sub(r"(^|[=,\['\"])/+", r"\1", word) for word in safe]
