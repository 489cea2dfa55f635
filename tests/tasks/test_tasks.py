"""Tasks: their conversations, their verdicts, and what they say about a source that is missing or broken."""

import gzip
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import zstandard

from nanolit.tasks import rows as rows_module
from nanolit.tasks.arc import ARC
from nanolit.tasks.gsm8k import GSM8K, extract_answer, parts_of, same_number
from nanolit.tasks.humaneval import HumanEval, extract_program, imports_of
from nanolit.tasks.identity import Identity
from nanolit.tasks.jsonl import ConversationFile
from nanolit.tasks.mmlu import MMLU
from nanolit.tasks.smoltalk import SmolTalk
from nanolit.tasks.spelling import SimpleSpelling, SpellingBee, words_of
from nanolit.tasks.sums import Sums, WorkedSums
from nanolit.tasks.task import Task
from nanolit.tokenizer.conversation import check_conversation

FIXTURE = json.loads(
    (Path(__file__).parents[1] / "fixtures/nanochat_2026/eval/conversations.json").read_text(encoding="utf-8")
)
HELLO = {"messages": [{"role": "user", "content": "Hello"}, {"role": "assistant", "content": "Hi"}]}


def write_lines(path: Path, *lines: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(line if isinstance(line, str) else json.dumps(line) + "\n" for line in lines))
    return path


SAMPLE_TASKS: dict[str, Task] = {
    "arc-easy": ARC(subset="ARC-Easy", split="train", source="sample"),
    "arc-challenge": ARC(subset="ARC-Challenge", split="test", source="sample"),
    "mmlu": MMLU(split="test", source="sample"),
    "mmlu-auxiliary": MMLU(split="auxiliary_train", source="sample"),
    "gsm8k": GSM8K(split="train", source="sample"),
    "gsm8k-test": GSM8K(split="test", source="sample"),
    "humaneval": HumanEval(source="sample"),
    "chat": ConversationFile(path="chat/chat-train", source="sample"),
    "chat-test": ConversationFile(path="chat/chat-test", source="sample"),
    "identity": Identity(),
    "identity-stories": Identity(source="stories"),
    "spelling": SimpleSpelling(split="train", size=50, source="sample"),
    "bee": SpellingBee(split="train", size=50, source="sample"),
    "sums": Sums(split="train", size=50),
    "worked-sums": WorkedSums(split="train", below=50, size=50),
}


@pytest.mark.parametrize("name", SAMPLE_TASKS)
def test_every_conversation_of_the_sample_is_well_formed(name: str) -> None:
    task = SAMPLE_TASKS[name]
    assert len(task) > 0
    for index in range(len(task)):
        check_conversation(task[index], place=task.place(index))


def reference(conversation: dict[str, Any]) -> str:
    """The reference answer as the model would say it."""
    content = conversation["messages"][-1]["content"]
    return content if isinstance(content, str) else "".join(part["text"] for part in content)


@pytest.mark.parametrize(
    "name",
    ["arc-easy", "arc-challenge", "mmlu", "gsm8k", "gsm8k-test", "spelling", "bee", "sums", "worked-sums"],
)
def test_the_reference_is_right_and_nonsense_is_wrong(name: str) -> None:
    task = SAMPLE_TASKS[name]
    for conversation in list(task)[:50]:
        assert task.evaluate(conversation, reference(conversation))
        assert task.reward(conversation, reference(conversation)) == 1.0
        assert not task.evaluate(conversation, "banana")
        assert not task.evaluate(conversation, "")


def test_a_wrong_letter_is_wrong() -> None:
    task = SAMPLE_TASKS["arc-easy"]
    conversation = task[0]
    right = reference(conversation)
    verdicts = {letter: task.evaluate(conversation, letter) for letter in conversation["letters"]}
    assert verdicts == {letter: letter == right for letter in conversation["letters"]}


def test_multiple_choice_and_gsm8k_are_worded_as_nanochat_does(tmp_path: Path) -> None:
    """Oracle: conversations that nanochat made; here they are made again from their own parts."""
    cases = [case["conversation"]["messages"] for case in FIXTURE["conversations"] if case["task"] == "GSM8K"]
    for _, assistant in cases:
        pieces = [
            f"<<{part['text']}="
            if part["type"] == "python"
            else f"{part['text']}>>"
            if part["type"] == "python_output"
            else part["text"]
            for part in assistant["content"]
        ]
        assert parts_of("".join(pieces)) == assistant["content"]
    case = next(case for case in FIXTURE["conversations"] if case["task"] == "ARC-Easy")
    user, assistant = case["conversation"]["messages"]
    head, *choices = user["content"].split("\n\n")[0].split("\n- ")
    row = {
        "question": head.removeprefix("Multiple Choice question: "),
        "choices": {"text": [choice[:-2] for choice in choices], "label": [choice[-1] for choice in choices]},
        "answerKey": assistant["content"],
    }
    write_lines(tmp_path / "eval/arc/ARC-Easy-test.jsonl", row)
    task = ARC(subset="ARC-Easy", split="test", source=str(tmp_path))
    assert task[0]["messages"] == [user, assistant]


@pytest.mark.parametrize(("text", "answer"), FIXTURE["gsm8k_extracted"])
def test_extracted_answers_equal_nanochats(text: str, answer: str | None) -> None:
    assert extract_answer(text) == answer


@pytest.mark.parametrize(
    ("first", "second", "same"),
    [
        ("10", "10.", True),
        ("10", "10.0", True),
        ("-3", "-3.00", True),
        ("10", "1", False),
        ("10", "100", False),
        ("0.5", ".5", True),
        (".", "0", False),
        ("1.2.3", "1.2.3", True),
        ("1.2.3", "1.2", False),
    ],
)
def test_answers_are_compared_as_numbers(first: str, second: str, same: bool) -> None:
    assert same_number(first, second) == same


def test_a_broken_calculator_annotation_is_named() -> None:
    with pytest.raises(ValueError, match="<<48/2>> is not"):
        parts_of("half is <<48/2>>24")


def test_humaneval_judges_by_running() -> None:
    task = SAMPLE_TASKS["humaneval"]
    conversation = task[0]
    solution = reference(conversation)
    assert task.evaluate(conversation, f"Here it is:\n```python\n{solution}\n```\nEnjoy.")
    assert not task.evaluate(conversation, f"def {conversation['entry_point']}(*_): return None")
    assert not task.evaluate(conversation, "import os; os._exit(0)")


def test_programs_are_taken_from_fences_and_imports_from_prompts() -> None:
    assert extract_program("so:\n```python\nx = 1\n```\nand\n```\ny\n```") == "x = 1"
    assert extract_program("```\nx = 1\n```") == "x = 1"
    assert extract_program("  x = 1\n") == "x = 1"
    for opened in (
        "```py",
        "```Python",
        "```python3",
        '```python title="x"',
        "~~~python",
        "````python",
        "```{.python}",
    ):
        closed = opened.split("p")[0].split("P")[0].split("{")[0]
        assert extract_program(f"Here it is:\n{opened}\nx = 1\n{closed}\nThat's it.") == "x = 1", opened
    assert extract_program("```text\n5\n```\n```python\nx = 1\n```") == "x = 1"
    assert extract_program("```python\nx = 1\ny = 2") == "x = 1\ny = 2"  # the reply was cut
    docstring = 'def f():\n    """\n    ```\n    f()\n    ```\n    """\n    return 1'
    assert extract_program(f"```python\n{docstring}\n```") == docstring
    assert imports_of("# c\nimport math\nfrom typing import List\n\ndef f():\n    import os\n") == (
        "import math\nfrom typing import List"
    )


def test_test_words_are_never_train_words() -> None:
    train, test = set(words_of("sample", "train")), set(words_of("sample", "test"))
    assert not train & test
    assert len(test) > len(train) / 20


def test_no_held_out_prompt_is_trained_on() -> None:
    def prompts(name: str) -> set[str]:
        return {conversation["messages"][0]["content"] for conversation in SAMPLE_TASKS[name]}

    assert not prompts("chat") & prompts("chat-test")
    assert not prompts("gsm8k") & prompts("gsm8k-test")
    sums = {
        split: {numbers_of(conversation) for conversation in Sums(split=split, below=100, size=10_000)}
        for split in ("train", "test")
    }
    assert len(sums["test"]) >= 200
    assert len(sums["train"] | sums["test"]) == 100 * 100
    assert not sums["train"] & sums["test"]


def numbers_of(conversation: dict[str, Any]) -> tuple[str, ...]:
    return tuple(re.findall(r"\d+", conversation["messages"][0]["content"]))


def test_a_sum_is_right_however_it_is_asked_and_worked() -> None:
    """Oracle: Python's addition of the numbers in the question, and of each step's."""
    task = WorkedSums(split="train", below=50, size=300)
    sums = list(task)
    for conversation in sums:
        right = sum(map(int, numbers_of(conversation)))
        assert task.extract(reference(conversation)) == str(right)
        assert task.evaluate(conversation, f"It is {right}.")
        assert not task.evaluate(conversation, f"{right}+1={right + 1}")
    wordings = {re.sub(r"\d+", "N", task["messages"][0]["content"]) for task in sums}
    assert {"What is N+N?", "N+N", "what is N plus N"} <= wordings
    for step in ", ".join(map(reference, sums)).split(", "):
        assert eval(step.replace("=", "=="))


def test_spelling_bee_counts_rightly() -> None:
    """Oracle: str.count."""
    for conversation in SAMPLE_TASKS["bee"]:
        parts = {part["type"]: part["text"] for part in conversation["messages"][-1]["content"]}
        assert str(eval(parts["python"], {"__builtins__": {}})) == parts["python_output"]
        assert parts["text"].endswith(f"#### {parts['python_output']}")


def test_spelling_from_the_hub_takes_the_words_of_the_package() -> None:
    assert words_of("hub", "train") == words_of("sample", "train")
    assert len(SpellingBee(split="train", size=80_000, source="hub")) == 80_000


def test_spelling_rewards_every_letter_in_its_place(tmp_path: Path) -> None:
    write_lines(tmp_path / "words_lower.txt", "able\n", "bake\n", "cake\n")
    task = SimpleSpelling(split="train", size=1, source=str(tmp_path))
    conversation = {
        "messages": [{"role": "user", "content": ""}, {"role": "assistant", "content": "a,b,l,e"}]
    }
    assert task.reward(conversation, "a,b,l,e") == 1.0
    assert task.reward(conversation, "a,b,x,e") == 0.75
    assert task.reward(conversation, "a,b,l,e,e,e,e,e") == 0.5
    assert task.reward(conversation, "able") == 0.0


def test_max_rows_keeps_a_fixed_random_subset() -> None:
    first = [SAMPLE_TASKS["gsm8k"].place(0)]
    task, again = (GSM8K(split="train", source="sample", max_rows=20) for _ in range(2))
    assert len(task) == 20
    assert list(task) == list(again)
    assert [task.place(index) for index in range(20)] != [
        SAMPLE_TASKS["gsm8k"].place(index) for index in range(20)
    ]
    assert len(GSM8K(split="test", source="sample", max_rows=10**6)) == 153
    assert first[0].endswith("line 1")


@pytest.mark.parametrize("ending", [".jsonl", ".jsonl.zst", ".jsonl.gz"])
def test_a_conversation_file_may_be_compressed_or_bare(ending: str, tmp_path: Path) -> None:
    content = (json.dumps(HELLO) + "\n\n" + json.dumps(HELLO["messages"]) + "\n").encode()
    pack = {".jsonl": bytes, ".jsonl.zst": zstandard.compress, ".jsonl.gz": gzip.compress}[ending]
    (tmp_path / f"mine{ending}").write_bytes(pack(content))
    for task in (
        ConversationFile(path="mine", source=str(tmp_path)),
        ConversationFile(path=str(tmp_path / f"mine{ending}")),
        Identity(path=str(tmp_path / f"mine{ending}")),
    ):
        assert list(task) == [HELLO, HELLO]
        assert task.place(1).endswith(f"mine{ending} line 3")
        assert task.name == "mine"


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        (b"", "no rows"),
        (b"\n\n", "no rows"),
        (b'{"messages": 1}\n{"mess', "line 2: not valid JSON"),
        (b'"hello"\n', "line 1: got '\"hello\"'"),
        (b'{"messages": []}\n\xff\xfe\n', r"line 2: not UTF-8 \(byte 0xff\)"),
        (
            b'{"id": 1, "messages": []}\n{"id": 2, "messages": []}\n{"id": 1, "messages": []}\n',
            "line 3: same id 1 and content as",
        ),
        (b'{"text": "hello"}\n', "line 1: not a conversation; it has text: name the fields messages, "),
        (b"null\n", "line 1: got 'null'"),
        (b'{"messages": []}\n' + b"[" * 100_000, "line 2: not valid JSON"),
    ],
)
def test_a_bad_file_is_reported_with_its_line(content: bytes, complaint: str, tmp_path: Path) -> None:
    (tmp_path / "bad.jsonl").write_bytes(content)
    with pytest.raises(ValueError, match=rf"bad\.jsonl.*{complaint}"):
        list(ConversationFile(path="bad", source=str(tmp_path)))


def test_an_id_may_be_used_again_for_another_conversation_of_any_form(tmp_path: Path) -> None:
    other = {"messages": [HELLO["messages"][0]], "id": 1}
    asked = [{"question": f"What is {n}?", "answer": "A number", "id": 1} for n in range(2)]
    write_lines(tmp_path / "mine.jsonl", {**HELLO, "id": 1}, other, *asked)
    assert len(ConversationFile(path="mine", source=str(tmp_path))) == 4
    write_lines(tmp_path / "mine.jsonl", *asked, asked[1])
    with pytest.raises(ValueError, match=r"line 3: same id 1 and content as .*line 2; remove one of them"):
        ConversationFile(path="mine", source=str(tmp_path))


@pytest.mark.parametrize("pack", [zstandard.compress, gzip.compress])
def test_archives_are_read_frame_by_frame_and_a_damaged_or_cut_one_is_reported(
    pack: Callable[[bytes], bytes], tmp_path: Path
) -> None:
    path = tmp_path / ("mine.jsonl.zst" if pack is zstandard.compress else "mine.jsonl.gz")
    frames = [pack((json.dumps(HELLO) + "\n").encode()) for _ in range(2)]
    path.write_bytes(b"".join(frames))
    assert list(ConversationFile(path=str(path))) == [HELLO, HELLO]
    for content in (b"this is no archive", frames[0] + frames[1][:-1], frames[0] + frames[1][:-20]):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=rf"{path.name} can't be read \(.*\); download it again"):
            ConversationFile(path=str(path))


def test_a_byte_order_mark_and_windows_line_ends_are_read(tmp_path: Path) -> None:
    (tmp_path / "mine.jsonl").write_bytes(b"\xef\xbb\xbf" + (json.dumps(HELLO) + "\r\n").encode() * 2)
    assert list(ConversationFile(path="mine", source=str(tmp_path))) == [HELLO, HELLO]


@pytest.mark.parametrize(
    ("make", "complaint"),
    [
        (
            lambda source: ARC(subset="ARC-Easy", split="validation", source=source),
            "ARC-Easy-validation: no such file",
        ),
        (
            lambda source: MMLU(split="auxiliary_train", source=source),
            r"auxiliary_train\*\.jsonl\*: no such file",
        ),
        (lambda source: MMLU(split="dev", source=source), "mmlu/dev: no such file"),
        (
            lambda source: GSM8K(split="train", source=source),
            "gsm8k/train: no such file .*; put the rows of openai/gsm8k main train there",
        ),
        (lambda source: Identity(path=source + "/who.jsonl"), "who.jsonl: no such .*nanolit.identity name="),
        (lambda source: HumanEval(source=source), "HumanEval: no such file"),
        (lambda source: SmolTalk(split="train", source=source), "chat/smoltalk-train: no such file"),
        (lambda source: SpellingBee(split="train", size=1, source=source), "words_lower: no such file"),
        (lambda source: ConversationFile(path="mine", source=source), "mine: no such file"),
        (
            lambda source: GSM8K(split="train", source=source + "/absent"),
            "is not a folder; allowed: sample, stories, hub",
        ),
    ],
)
def test_a_missing_source_is_an_error_that_names_the_file(make: Any, complaint: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=complaint):
        make(str(tmp_path))


@pytest.mark.parametrize(
    ("row", "complaint"),
    [
        ({"choices": {"text": ["a"], "label": ["A"]}, "answerKey": "A"}, "line 1: no field 'question'"),
        (
            {"question": "q", "choices": {"text": ["a"], "label": ["A"]}, "answerKey": "B"},
            "line 1: answer 'B' among 1",
        ),
        ({"question": "q", "choices": None, "answerKey": "B"}, "line 1: 'NoneType'"),
    ],
)
def test_a_bad_row_is_reported_with_its_line(row: dict[str, Any], complaint: str, tmp_path: Path) -> None:
    write_lines(tmp_path / "eval/arc/ARC-Easy-train.jsonl", row)
    with pytest.raises(ValueError, match=rf"ARC-Easy-train\.jsonl {complaint}"):
        list(ARC(subset="ARC-Easy", split="train", source=str(tmp_path)))


@pytest.mark.parametrize(
    ("make", "complaint"),
    [
        (lambda: GSM8K(split="dev", source="sample"), "GSM8K's split is 'dev'; allowed: train, test"),
        (lambda: GSM8K(split="test", source="sample", epochs=0), "epochs is 0"),
        (lambda: GSM8K(split="test", source="sample", max_rows=0), "max_rows is 0"),
        (lambda: Sums(split="train", size=0), "size is 0"),
        (lambda: Sums(split="test", size=1, below=1), "no test pairs"),
    ],
)
def test_a_bad_setting_says_what_is_allowed(make: Any, complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        make()


def test_a_task_without_answers_refuses_to_judge() -> None:
    with pytest.raises(ValueError, match="no right answers"):
        SAMPLE_TASKS["chat"].evaluate(HELLO, "Hi")


def test_the_hub_is_read_through_datasets(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A local folder stands in for the hub's dataset; the client that reads it is the real one."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    write_lines(
        tmp_path / "gsm8k" / "train.jsonl", {"question": "1+1?", "answer": "It is <<1+1=2>>2\n#### 2"}
    )
    rows = rows_module.HubRows(str(tmp_path / "gsm8k"), None, "train")
    assert len(rows) == 1
    assert rows[0]["question"] == "1+1?"
    assert rows.place(0).endswith("gsm8k train row 0")


def test_rows_of_the_hub_are_the_same_in_any_order(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Rows asked for in order come in blocks, others alone; the file is the oracle."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    lines = [{"question": str(number), "other": {"deep": [number]}} for number in range(23)]
    write_lines(tmp_path / "numbers" / "train.jsonl", *lines)
    rows = rows_module.HubRows(str(tmp_path / "numbers"), None, "train")
    monkeypatch.setattr(rows_module, "BLOCK", 5)
    for order in (range(23), [3, 4, 5, 22, 0, 0, 1, 2, 9, 8, 21, 22], range(22, -1, -1)):
        assert [rows[number] for number in order] == [lines[number] for number in order]


def test_a_dataset_that_the_hub_does_not_give_is_named(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=r"absent main train can't be read from the hub .*mirror folder"):
        rows_module.HubRows(str(tmp_path / "absent"), "main", "train")


def test_a_fault_of_the_hub_without_words_is_named_by_its_class(monkeypatch: pytest.MonkeyPatch) -> None:
    def load_dataset(*_: Any, **__: Any) -> None:
        raise ConnectionError

    monkeypatch.setattr("datasets.load_dataset", load_dataset)
    with pytest.raises(ValueError, match=r"can't be read from the hub \(ConnectionError\)"):
        rows_module.HubRows("absent", "main", "train")
