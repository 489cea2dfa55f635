"""Make the conversations and problems that ship with the package: `python dev/make_sample_chat.py FOLDER`.

FOLDER is a mirror with chat/{dolly15k,self_instruct_human,oasst_sample,fastchat_identity}, eval/… as the
tasks read it, and words_lower.txt. Rows are chosen by their own length and the checksum of their text alone,
so the splits stay the same when a source grows. ATTRIBUTION.md in nanolit/data/sample/chat lists origins,
licenses and changes.
"""

import json
import sys
import zlib
from collections.abc import Iterable
from typing import Any

import zstandard

from nanolit.tasks.rows import SAMPLE, FileRows, Row, find_file, read_lines

CHATS = {
    "dolly15k": (600, 27),
    "self_instruct_human": (2000, 100),
    "oasst_sample": (2000, 100),
}  # characters, percent
ORGANISATION = "Large Model Systems Organization (LMSYS)"
NAMES = {  # in this order
    f"researchers from {ORGANISATION}": "researchers of the NanoLit project",
    f"the researchers at {ORGANISATION}": "the researchers of the NanoLit project",
    f"{ORGANISATION} researchers": "researchers of the NanoLit project",
    ORGANISATION: "the NanoLit project",
    "Vicuna": "NanoLit",
}


def percentile(text: str) -> int:
    """Return a number from 0 to 99 that depends only on the text."""
    return zlib.crc32(text.encode()) % 100


def chats(folder: str) -> list[dict[str, Any]]:
    """Return the short conversations of three sets, each once, in the order of their checksums."""
    found = {}
    for source, (longest, percent) in CHATS.items():
        for row in FileRows([find_file(folder, f"chat/{source}")]).rows:
            key = json.dumps(row["messages"])
            contents = [message["content"].strip() for message in row["messages"]]
            if all(contents) and sum(map(len, contents)) <= longest and percentile(key) < percent:
                turns = zip(row["messages"], contents, strict=True)
                messages = [{"role": message["role"], "content": content} for message, content in turns]
                found[key] = {"messages": messages, "source": source}
    return sorted(found.values(), key=lambda row: zlib.crc32(json.dumps(row).encode()))


def identity(folder: str) -> list[dict[str, Any]]:
    rows = FileRows([find_file(folder, "chat/fastchat_identity")]).rows
    return [
        {"messages": [{**message, "content": renamed(message["content"])} for message in row["messages"]]}
        for row in rows
    ]


def renamed(text: str) -> str:
    for old, new in NAMES.items():
        text = text.replace(old, new)
    return text


def write(name: str, rows: Iterable[Row]) -> None:
    write_lines(name, [json.dumps(row, ensure_ascii=False, separators=(",", ":")) for row in rows])


def write_lines(name: str, lines: list[str]) -> None:
    path = SAMPLE / f"{name}.zst"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(zstandard.ZstdCompressor(level=22).compress(("\n".join(lines) + "\n").encode()))
    print(f"{name}: {len(lines):,} lines, {path.stat().st_size:,} bytes")


def main(folder: str) -> None:
    def rows(name: str) -> list[Row]:
        return FileRows([find_file(folder, name)]).rows

    def first(row: Row) -> str:
        return row["messages"][0]["content"]

    conversations = chats(folder)
    held_out = {
        first(row) for row in conversations if row["source"] == "dolly15k" and percentile(first(row)) < 5
    }
    write("chat/chat-train.jsonl", (row for row in conversations if first(row) not in held_out))
    write("chat/chat-test.jsonl", (row for row in conversations if first(row) in held_out))
    write("chat/identity.jsonl", identity(folder))
    short = [row for row in rows("eval/gsm8k/train") if len(row["question"] + row["answer"]) <= 520]
    write("eval/gsm8k/train.jsonl", (row for row in short if percentile(row["question"]) < 85))
    write(
        "eval/gsm8k/test.jsonl", (row for row in rows("eval/gsm8k/test") if percentile(row["question"]) < 12)
    )
    for subset in ("ARC-Easy", "ARC-Challenge"):
        write(f"eval/arc/{subset}-train.jsonl", rows(f"eval/arc/{subset}-train"))
        test = rows(f"eval/arc/{subset}-test")
        write(f"eval/arc/{subset}-test.jsonl", (row for row in test if percentile(row["question"]) < 15))
    test = [row for row in rows("eval/mmlu/test") if len(row["question"]) < 1200]
    write("eval/mmlu/test.jsonl", (row for row in test if percentile(row["question"]) < 2))
    write("eval/mmlu/auxiliary_train.jsonl", rows("eval/mmlu/auxiliary_train_science_middle"))
    write("eval/humaneval/HumanEval.jsonl", rows("eval/humaneval/HumanEval"))
    words = read_lines(find_file(folder, "words_lower", endings=(".txt", ".txt.zst")))
    plain = [word for word in words if word.isascii() and word.isalpha() and 3 <= len(word) <= 12]
    write_lines("words_lower.txt", [word for word in plain if percentile(word) < 28])


if __name__ == "__main__":
    main(sys.argv[1])
