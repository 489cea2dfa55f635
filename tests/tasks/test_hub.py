"""Every source of the recipes from the hub: the real client, a stand-in on loopback, then its cache alone."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from stand_in_hub import StandInHub

from nanolit.config.compose import compose

CHAT = {
    "messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}],
    "source": "x",
}
BROKEN = {"messages": [{"role": "assistant", "content": "Hello"}], "source": "x"}
CHOICE = {"question": "2+2?", "subject": "sums", "choices": ["1", "2", "3", "4"], "answer": 3}
SCIENCE = {
    "id": "a",
    "question": "What is wet?",
    "choices": {"text": ["sand", "water"], "label": ["A", "B"]},
    "answerKey": "B",
}
SUM = {"question": "1+1?", "answer": "It is <<1+1=2>>2\n#### 2"}
PROGRAM = {
    "task_id": "0",
    "prompt": "def f():\n",
    "canonical_solution": "    return 1\n",
    "test": "",
    "entry_point": "f",
}
TABLES: dict[tuple[str, str, str], list[dict[str, Any]]] = {  # columns as on the hub; no two files equal
    ("HuggingFaceTB/smol-smoltalk", "data", "train"): [CHAT, BROKEN, CHAT],
    ("HuggingFaceTB/smol-smoltalk", "data", "test"): [CHAT],
    ("cais/mmlu", "auxiliary_train", "train"): [{"train": CHOICE}] * 2,
    ("cais/mmlu", "all", "test"): [CHOICE],
    ("openai/gsm8k", "main", "train"): [SUM] * 3,
    ("openai/gsm8k", "main", "test"): [SUM],
    ("allenai/ai2_arc", "ARC-Easy", "train"): [SCIENCE] * 2,
    ("allenai/ai2_arc", "ARC-Easy", "test"): [{**SCIENCE, "id": "b"}],
    ("allenai/ai2_arc", "ARC-Challenge", "train"): [{**SCIENCE, "id": "c"}],
    ("allenai/ai2_arc", "ARC-Challenge", "test"): [{**SCIENCE, "id": "d"}],
    ("openai/openai_humaneval", "openai_humaneval", "test"): [PROGRAM],
}
BUILD = """\
import json, sys
from nanolit.config.build import build
from nanolit.tokenizer.conversation import check_conversation
found = []
for node in json.loads(sys.argv[1]):
    try:
        task = build(node)
        good = 0
        for index in range(len(task)):
            try:
                check_conversation(task[index], place=task.place(index))
                good += 1
            except ValueError as error:
                assert task.skips_malformed, error
        found.append([task.name, good])
    except ValueError as error:
        found.append(str(error))
print(json.dumps(found))
"""


def built(nodes: list[dict[str, Any]], hub: StandInHub, cache: Path, **environment: str) -> list[Any]:
    """(name, well-formed rows) of each task, or its complaint; in a process of its own, whose hub is ours."""
    process = subprocess.run(
        [sys.executable, "-c", BUILD, json.dumps(nodes)],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "HF_ENDPOINT": hub.endpoint, "HF_HOME": str(cache), **environment},
    )
    assert process.returncode == 0, process.stderr
    return json.loads(process.stdout.splitlines()[-1])


@pytest.fixture(scope="module")
def nodes() -> list[dict[str, Any]]:
    """All sources, validation sources and chat tasks of both recipes, each once, that are the hub's."""
    found: list[dict[str, Any]] = []
    for recipe in ("classic", "modern"):
        job: Any = compose([f"recipe={recipe}"])
        for stage in ("mid", "sft"):
            mixture = job["stage"].get(stage, {}).get("mixture", {})
            found += [*mixture.get("sources", []), *mixture.get("validation", [])]
        found += job["chat_tasks"]["tasks"]
    hubs = [
        {key: node[key] for key in node if key != "max_rows"} for node in found if node.get("source") == "hub"
    ]
    return [node for number, node in enumerate(hubs) if node not in hubs[:number]]


def test_all_sources_come_from_the_hub_and_then_from_its_cache(
    nodes: list[dict[str, Any]], tmp_path: Path
) -> None:
    """The oracle is what the stand-in was given; the broken row of SmolTalk is not well-formed."""
    with StandInHub(TABLES) as hub:
        found = built(nodes, hub, tmp_path)
        assert sorted({(name, good) for name, good in found}) == [
            ("ARC-Challenge", 1),
            ("ARC-Easy", 1),
            ("ARC-Easy", 2),
            ("GSM8K", 1),
            ("GSM8K", 3),
            ("HumanEval", 1),
            ("MMLU", 1),
            ("MMLU", 2),
            ("SmolTalk", 1),
            ("SmolTalk", 2),
        ]
        fetched = [line for line in hub.asked if line.startswith("GET") and line.endswith(".parquet")]
        assert len(fetched) == len(set(fetched)) == len(TABLES)
        hub.asked.clear()
        assert built(nodes, hub, tmp_path, HF_HUB_OFFLINE="1") == found
        assert hub.asked == []


def test_a_dataset_that_the_hub_lacks_is_named(nodes: list[dict[str, Any]], tmp_path: Path) -> None:
    chats = [node for node in nodes if node["_target_"].endswith("SmolTalk")][:1]
    empty = {("openai/gsm8k", "main", "train"): [SUM]}
    with StandInHub(empty) as hub:
        (complaint,) = built(chats, hub, tmp_path)
    assert complaint.startswith("the dataset HuggingFaceTB/smol-smoltalk train can't be read from the hub (")
    assert complaint.endswith("; go online, or use a mirror folder: recipe.mirror=FOLDER")


COPY = """\
import sys
from pathlib import Path
from nanolit.data.parquet import read_texts
from nanolit.data.shards import LocalFolder
for name in sys.argv[2:]:
    dataset = LocalFolder(path=name, text_column="text", validation=None)
    try:
        corpus = dataset.open_corpus(Path(sys.argv[1]))
    except ValueError as error:
        print(error)
        continue
    for shard, group in (*corpus.train_groups(), *corpus.validation_groups()):
        print(*read_texts(shard, group).to_pylist(), sep=",")
    print(corpus.summary)
"""


def copied(hub: StandInHub, folder: Path, *names: str) -> list[str]:
    """The lines that COPY prints; in a process of its own, whose hub is ours."""
    process = subprocess.run(
        [sys.executable, "-c", COPY, str(folder / "root"), *names],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "HF_ENDPOINT": hub.endpoint, "HF_HOME": str(folder / "cache")},
    )
    assert process.returncode == 0, process.stderr
    return process.stdout.splitlines()


def test_own_text_from_the_hub_keeps_its_splits_and_is_read_once(tmp_path: Path) -> None:
    splits = {"train": ["one", "two", None], "validation": ["three"], "test": ["never"]}
    tables: Any = {("a/stories", "default", split): [{"text": t} for t in ts] for split, ts in splits.items()}
    for name in ("x", "y"):
        tables["a/two", name, "train"] = [{"text": f"{name}{n}"} for n in range(40)]
    with StandInHub(tables) as hub:
        lines = copied(hub, tmp_path, "hf:a/stories", "hf:a/two:y", "hf:a/two", "hf:a/absent")
        counts = "2 documents, 0.00 MB, and 1 held out; 1 without text left out"
        stories = ["one,two", "three", f"hf:a/stories, 1 skipped (test); {counts}"]
        assert lines[:4] == ["  data: reading hf:a/stories", *stories]
        assert sorted(",".join(lines[5:7]).split(",")) == sorted(f"y{n}" for n in range(40))
        assert "data=hf:a/two can't be read from the hub (Config name is missing" in lines[-2]
        assert lines[-2].endswith("choose one of several configurations: data=hf:OWNER/NAME:CONFIGURATION")
        assert "data=hf:a/absent can't be read from the hub" in lines[-1]
        hub.asked.clear()
        assert copied(hub, tmp_path, "hf:a/stories") == stories
        assert hub.asked == []
