"""The stories and chats of the demo: dev/make_stories.py writes them, and nothing held out is learned."""

import json
import random
import re
from itertools import islice
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from dev import make_stories, stories
from nanolit.data.shards import Stories
from nanolit.tasks.jsonl import ConversationFile
from nanolit.tasks.rows import STORIES, find_file, read_lines
from nanolit.tasks.spelling import words_of
from nanolit.tasks.sums import pairs_of
from nanolit.tokenizer.conversation import check_conversation


def texts(split: str) -> list[str]:
    return pq.read_table(STORIES / f"{split}.parquet")["text"].to_pylist()


def turns(name: str) -> list[tuple[str, str]]:
    """(question, answer) of every exchange of a file of chats."""
    rows = [json.loads(line) for line in read_lines(find_file("stories", f"chat/{name}")) if line]
    contents = [[message["content"] for message in row["messages"]] for row in rows]
    return [pair for row in contents for pair in zip(row[::2], row[1::2], strict=True)]


def test_the_script_makes_the_stories_and_chats_again() -> None:
    """The first of each: a text depends on the seed and on the texts before it."""
    for split, held_out in (("train", False), ("validation", True)):
        again = list(islice(make_stories.pretraining_texts(split, 10_000, held_out=held_out), 100))
        assert again == texts(split)[:100]
    words = make_stories.spelled_words(texts("train"))
    chance = random.Random("chat-train")
    rows = [make_stories.chat(chance, words, held_out=False) for _ in range(100)]
    assert rows == list(islice(ConversationFile(path="chat/chat-train", source="stories"), 100))
    chance = random.Random("identity")
    rows = [make_stories.identity_chat(chance) for _ in range(100)]
    assert rows == list(islice(ConversationFile(path="chat/identity", source="stories"), 100))


def test_each_of_sixteen_lanes_owns_several_row_groups_of_the_stories(tmp_path: Path) -> None:
    (shard,) = Stories().open_corpus(tmp_path).train_shards
    assert len(shard.group_sizes) // 16 >= 5


def test_the_stories_are_a_few_megabytes_none_of_them_twice() -> None:
    train, held_out = texts("train"), texts("validation")
    assert 4_000_000 < sum(map(len, train)) < 6_000_000
    assert len(set(train) | set(held_out)) == len(train) + len(held_out)
    assert sum(path.stat().st_size for path in STORIES.rglob("*.*")) < 2_000_000


@pytest.mark.parametrize("plot", stories.PLOTS)
def test_every_plot_is_told_in_whole_sentences(plot: str) -> None:
    """No mark of the grammar is left, and articles fit what follows them."""
    for seed in range(40):
        text = stories.tell(random.Random(seed), plot=plot).text
        assert not set(text) & set("{}[]|")
        assert "  " not in text
        assert text[-1] in '."!'
        assert text.count('"') % 2 == 0
        assert not re.search(r"\ba [aeio]|\ban [^aeio]", text, re.IGNORECASE)


def test_a_story_is_told_about_what_was_asked() -> None:
    story = stories.tell(random.Random(1), hero="queen", name="Ruby", friend="owl")
    assert "queen" in story.text
    assert "Ruby" in story.text
    assert story.words["he"] == "she"
    assert make_stories.is_held_out("queen", "owl") == make_stories.is_held_out("queen", "owl")


def test_no_pair_of_characters_is_in_both_splits() -> None:
    """Oracle: the kinds that a text names; a held-out pair is never that of a story to learn from."""
    kinds = re.compile(rf"\b({'|'.join(stories.HEROES)})\b")

    def pairs(split: str) -> set[tuple[str, ...]]:
        named = (tuple(dict.fromkeys(kinds.findall(text)))[:2] for text in texts(split))
        return {pair for pair in named if len(pair) == 2}

    assert len(pairs("validation")) > 50
    assert not pairs("validation") & pairs("train")


@pytest.mark.parametrize("name", ["chat-train", "chat-test", "identity"])
def test_every_chat_is_well_formed(name: str) -> None:
    task = ConversationFile(path=f"chat/{name}", source="stories")
    for index in range(len(task)):
        check_conversation(task[index], place=task.place(index))


def test_sums_in_the_chats_are_right_and_none_is_held_out() -> None:
    """Oracle: Python's addition of the two numbers of a question."""
    held_out = set(pairs_of("test", 100))
    sums = [
        (first, second, answer)
        for question, answer in turns("chat-train")
        if len(numbers := re.findall(r"\d+", question)) == 2
        for first, second in [map(int, numbers)]
    ]
    assert len(sums) > 500
    assert all(int(re.findall(r"\d+", answer)[-1]) == first + second for first, second, answer in sums)
    assert not held_out & {(first, second) for first, second, _ in sums}


def test_words_in_the_chats_are_spelled_rightly_and_none_is_held_out() -> None:
    spelled = [
        (question, answer)
        for question, answer in turns("chat-train")
        if re.fullmatch(r"[a-z](,[a-z])+", answer)
    ]
    assert len(spelled) > 500
    assert all(answer.replace(",", "") in question for question, answer in spelled)
    assert not set(words_of("sample", "test")) & {answer.replace(",", "") for _, answer in spelled}
