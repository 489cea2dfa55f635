"""Chats of other programs are read, or refused with what would make them readable."""

import csv
import gzip
import json
import re
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from nanolit.config.compose import compose
from nanolit.config.schema import finetune_settings
from nanolit.jobs.inputs import check_rows
from nanolit.tasks.chat_formats import messages_of
from nanolit.tasks.jsonl import ConversationFile
from nanolit.tokenizer.conversation import check_conversation

USER, ASSISTANT = {"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}
KIND = {"role": "system", "content": "Be kind"}
TEXT_PART = {"type": "text", "text": "Hi"}


def says(role: str, content: Any, **more: Any) -> dict[str, Any]:
    return {"role": role, "content": content, **more}


@pytest.mark.parametrize(
    ("row", "messages"),
    [
        ({"messages": [USER, ASSISTANT], "source": "x"}, [USER, ASSISTANT]),
        ({"messages": [says("system", "Be kind"), USER]}, [says("system", "Be kind"), USER]),
        ({"messages": [says("developer", "Be kind"), USER]}, [says("system", "Be kind"), USER]),
        (
            {"messages": [says("system", "Be kind"), says("developer", "Be short"), USER]},
            [says("system", "Be kind\n\nBe short"), USER],
        ),
        ({"messages": [says("user", [TEXT_PART]), ASSISTANT]}, [USER, ASSISTANT]),
        (
            {"messages": [USER, {**ASSISTANT, "weight": 0, "name": "x", "refusal": None}]},
            [USER, {**ASSISTANT, "weight": 0}],
        ),
        (
            {"conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello"}]},
            [USER, ASSISTANT],
        ),
        ({"conversations": [USER, ASSISTANT]}, [USER, ASSISTANT]),
        ({"instruction": "Hi", "input": "", "output": "Hello"}, [USER, ASSISTANT]),
        (
            {"instruction": "Add", "input": "1, 2", "output": "3", "system": "Be brief"},
            [says("system", "Be brief"), says("user", "Add\n\n1, 2"), says("assistant", "3")],
        ),
        ({"instruction": "Hi", "context": None, "response": "Hello"}, [USER, ASSISTANT]),
        ({"prompt": "Hi", "completion": "Hello"}, [USER, ASSISTANT]),
        ({"prompt": [USER], "completion": [ASSISTANT]}, [USER, ASSISTANT]),
        ({"question": "Hi", "answer": "Hello"}, [USER, ASSISTANT]),
        ({"system": "Be kind", "messages": [USER, ASSISTANT]}, [KIND, USER, ASSISTANT]),
        ({"system_prompt": "Be kind", "conversations": [USER, ASSISTANT]}, [KIND, USER, ASSISTANT]),
        ({"system": "Be kind", "messages": [KIND, USER, ASSISTANT]}, [KIND, USER, ASSISTANT]),
        (
            {"system": "Be kind", "messages": [says("system", "Be short"), USER]},
            [says("system", "Be kind\n\nBe short"), USER],
        ),
        ({"system": "Be kind", "prompt": [USER], "completion": "Hello"}, [KIND, USER, ASSISTANT]),
        ({"context": "Hi", "question": "What?", "answer": "Hello"}, [says("user", "What?\n\nHi"), ASSISTANT]),
        ({"prompt": "Say", "input": "Hi", "completion": "Hello"}, [says("user", "Say\n\nHi"), ASSISTANT]),
        ({"instruction": "Hi", "output": "Hello", "history": []}, [USER, ASSISTANT]),
        ({"instruction": "Hi", "output": "Hello", "history": "[]", "system": " "}, [USER, ASSISTANT]),
        ({"system": True, "messages": [USER, ASSISTANT]}, [USER, ASSISTANT]),
    ],
)
def test_common_forms_are_read(row: dict[str, Any], messages: list[dict[str, Any]]) -> None:
    found = messages_of(row)
    check_conversation({"messages": found})
    assert found == messages


@pytest.mark.parametrize(
    ("row", "complaint"),
    [
        ({"dialog": []}, r"it has dialog: name the fields messages, conversations, instruction and output"),
        ({"text": "a story"}, r"text without roles is for base: data=FILE"),
        (
            {"messages": [USER, says("assistant", None, tool_calls=[{}])]},
            r"tool calls .*malformed: skip in a mix",
        ),
        (
            {"messages": [USER, says("tool", "3")]},
            r"tool calls in this form cannot be trained on.*malformed: skip",
        ),
        ({"messages": [says("user", [{"type": "image_url"}])]}, r"is 'image_url', but only text .*malformed"),
        ({"messages": [USER, {**ASSISTANT, "weight": 0.5}]}, r"message 2: weight is 0\.5; it is 1, or 0"),
        ({"messages": [says("narrator", "x")]}, r"message 1: unknown role 'narrator'"),
        ({"messages": ["Hi"]}, r"message 1: got 'Hi'; a message is an object with role and content"),
        (
            {"question": "What?", "answer": "b", "context": ["a", "b"]},
            r"its context is no text; write it as text, or leave the field out",
        ),
        (
            {"instruction": "And now?", "output": "b", "history": [["q", "a"]]},
            r"history are not read; write all turns as messages; malformed: skip",
        ),
        ({"conversations": [{"from": "gpt", "value": "x"}]}, r"message 1: got role assistant, expected user"),
    ],
)
def test_what_cannot_be_learned_is_one_line_with_the_remedy(tmp_path, row, complaint) -> None:
    (tmp_path / "mine.jsonl").write_text(json.dumps(row))
    with pytest.raises(ValueError, match=rf"mine\.jsonl line 1.*{complaint}") as caught:
        check_rows(ConversationFile(path=str(tmp_path / "mine.jsonl")))
    assert "\n" not in str(caught.value)


ROWS = [{"prompt": f"What is {n}?", "completion": f"It is, in short: {n}"} for n in range(3)]
CONVERSATIONS = [
    {"messages": [says("user", row["prompt"]), says("assistant", row["completion"])]} for row in ROWS
]


def write_csv(path: Path) -> None:
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, ["prompt", "completion"])
        writer.writeheader()
        writer.writerows(ROWS)


@pytest.mark.parametrize(
    ("name", "write"),
    [
        ("mine.json", lambda path: path.write_text(json.dumps(ROWS))),
        ("mine.json", lambda path: path.write_text(json.dumps(ROWS, indent=1))),
        ("mine.json", lambda path: path.write_text("\n".join(map(json.dumps, ROWS)))),
        ("mine.jsonl", lambda path: path.write_text(json.dumps([c["messages"] for c in CONVERSATIONS]))),
        (
            "MINE.JSONL.GZ",
            lambda path: path.write_bytes(gzip.compress("\n".join(map(json.dumps, ROWS)).encode())),
        ),
        ("mine.csv", write_csv),
        ("mine.parquet", lambda path: pq.write_table(pa.Table.from_pylist(ROWS), path)),
        ("mine.parquet", lambda path: pq.write_table(pa.Table.from_pylist(CONVERSATIONS), path)),
    ],
)
def test_arrays_tables_and_every_spelling_are_the_same_conversations(tmp_path, name, write) -> None:
    write(tmp_path / name)
    assert list(ConversationFile(path=str(tmp_path / name))) == CONVERSATIONS


@pytest.mark.parametrize(
    ("name", "text", "complaint"),
    [
        ("mine.csv", "prompt,completion\nHi,Hello, you\n", "has 3 fields, but there are 2 columns"),
        ("mine.csv", 'prompt,completion\nHi,"Hello\n', "is not CSV (unexpected end of data)"),
        ("mine.tsv", 'prompt\tcompletion\nHi\tHel"lo\n"a"b\tc', "is not CSV"),
        ("mine.json", '[{"instruction": {"a": 1}, "output": "b"}]', "the user's content is {'a': 1}"),
        ("mine.json", '[{"instruction": "a", "input": [1], "output": "b"}]', "its input is no text; write"),
    ],
)
def test_what_would_be_learned_in_another_form_is_refused(tmp_path, name, text, complaint) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(ValueError, match=re.escape(complaint)) as caught:
        check_rows(ConversationFile(path=str(tmp_path / name)))
    assert name in str(caught.value)


def test_no_system_message_becomes_the_word_none() -> None:
    messages = [says("system", None), says("developer", "Be short"), USER, ASSISTANT]
    with pytest.raises(ValueError, match="message 1: the system's content is None"):
        check_conversation({"messages": messages_of({"messages": messages})})


def test_a_csv_of_windows_and_a_long_field_are_read(tmp_path: Path) -> None:
    long = "Hello " * 50_000
    (tmp_path / "mine.csv").write_bytes(f'prompt,completion\r\n"Hi\r\nyou","{long}"\r\n'.encode())
    (conversation,) = ConversationFile(path=str(tmp_path / "mine.csv"))
    assert [one["content"] for one in conversation["messages"]] == ["Hi\r\nyou", long]


def part_of(path: Path, part: Any) -> list[str]:
    return [row["messages"][0]["content"] for row in ConversationFile(path=str(path), part=part)]


@pytest.mark.parametrize("count", [2, 5, 1000])
def test_a_part_is_held_out_and_equal_conversations_never_straddle(tmp_path: Path, count: int) -> None:
    lines = [json.dumps({"prompt": f"question {n}", "completion": "yes"}) for n in range(count)]
    (tmp_path / "mine.jsonl").write_text("\n".join([*lines, *lines]))
    train, held_out = part_of(tmp_path / "mine.jsonl", "train"), part_of(tmp_path / "mine.jsonl", "held_out")
    assert sorted(train + held_out) == sorted([f"question {n}" for n in range(count)] * 2)
    assert not set(train) & set(held_out)
    assert 2 <= len(held_out) <= max(2, 0.16 * count)


def test_one_conversation_alone_is_both_learned_and_validated_on(tmp_path: Path) -> None:
    (tmp_path / "mine.jsonl").write_text(f"{json.dumps(ROWS[0])}\n" * 50)
    assert part_of(tmp_path / "mine.jsonl", "train") == part_of(tmp_path / "mine.jsonl", "held_out")


def is_good(task: ConversationFile, index: int) -> bool:
    try:
        check_conversation(task[index])
    except ValueError:
        return False
    return True


@pytest.mark.parametrize("number", range(4))
def test_where_malformed_rows_are_skipped_both_parts_have_others(tmp_path: Path, number: int) -> None:
    bad = [{"question": "", "answer": "x"}, {"messages": [7]}, {"messages": [ASSISTANT]}, {"text": "x"}]
    rows = [{**row, "n": n} for row in [*bad, *bad] for n in range(2)]
    rows += [{"question": f"{number} {n}", "answer": "yes"} for n in range(2)]
    (path := tmp_path / "mine.jsonl").write_text("\n".join(map(json.dumps, rows)))
    parts = [ConversationFile(path=str(path), part=part, malformed="skip") for part in ("train", "held_out")]
    assert [sum(is_good(part, index) for index in range(len(part))) for part in parts] == [1, 1]


@pytest.mark.parametrize("choice", ["recipe=classic", "recipe=modern", "experiment=demo"])
def test_a_file_of_chats_is_what_sft_learns_from_in_every_recipe(
    choice: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "mine.jsonl").touch()
    monkeypatch.chdir(tmp_path)
    job = compose([choice, "phase=sft", "mixture=mine.jsonl"])
    mixture = finetune_settings(job, "sft")["mixture"]
    assert [(node["path"], node["part"]) for node in mixture["sources"]] == [("mine.jsonl", "train")]
    assert [(node["path"], node["part"]) for node in mixture["validation"]] == [("mine.jsonl", "held_out")]
    if choice == "recipe=classic":  # the others have no mid
        assert len(finetune_settings(job, "mid")["mixture"]["sources"]) > 1
        job = compose([choice, "phase=mid", "stage.mid.mixture=mine.jsonl"])
        assert len(finetune_settings(job, "mid")["mixture"]["sources"]) == 1
