"""The conversation stream: what is learned, in which order, on how many ranks, and what is left out."""

import json
from collections import Counter
from itertools import chain
from pathlib import Path
from typing import Any

import pytest
import torch
from corpora import row_hashes
from hypothesis import given, settings
from hypothesis import strategies as st

from nanolit.data.conversations import ConversationStream, ValidationConversations
from nanolit.data.mixture import Mixture
from nanolit.data.stream import Step
from nanolit.tasks.jsonl import ConversationFile
from nanolit.tasks.rows import GeneratedRows
from nanolit.tasks.sums import Sums
from nanolit.tasks.task import Conversation, Task
from nanolit.tokenizer.bpe import Tokenizer
from nanolit.tokenizer.conversation import render
from nanolit.tokenizer.nanochat import read_tokenizer

TOKENIZER: Tokenizer = read_tokenizer(Path(__file__).parents[1] / "fixtures" / "nanochat_2026" / "tokenizer")
PACKINGS = ("bestfit", "single", "flat")


class Chats(Task):
    """Conversations given as (question, answer) or (question, tool call, output, answer)."""

    def __init__(self, turns: list[tuple[str, ...]], *, epochs: int = 1) -> None:
        super().__init__(
            GeneratedRows(len(turns), lambda row: {"turns": turns[row]}, label="chats"), epochs=epochs
        )

    def conversation(self, row: dict[str, Any]) -> Conversation:
        question, *tool, answer = row["turns"]
        parts = (
            [{"type": "python", "text": tool[0]}, {"type": "python_output", "text": tool[1]}] if tool else []
        )
        content = [*parts, {"type": "text", "text": answer}]
        return {
            "messages": [{"role": "user", "content": question}, {"role": "assistant", "content": content}]
        }


def stream(tasks: list[Task], **changes: Any) -> ConversationStream:
    settings = {"context": 32, "rows": 4, "micro_batch": 1, "seed": 1, "packing": "bestfit"}
    return ConversationStream(tasks, TOKENIZER, **{**settings, **changes})


def learned_tokens(steps: list[Step]) -> Counter[int]:
    targets = [targets_BT[targets_BT != -1] for step in steps for _, targets_BT in step.micro_batches]
    return Counter(torch.cat(targets).tolist())


TEXT = st.text(alphabet="abc d", min_size=1, max_size=30).filter(str.strip)
CHATS = st.lists(st.one_of(st.tuples(TEXT, TEXT), st.tuples(TEXT, TEXT, TEXT, TEXT)), min_size=1, max_size=12)
PROPERTY = settings(max_examples=40)


@PROPERTY
@given(turns=CHATS, packing=st.sampled_from(["bestfit", "single"]), context=st.sampled_from([16, 32, 80]))
def test_no_learned_token_is_lost_undeclared(
    turns: list[tuple[str, ...]], packing: str, context: int
) -> None:
    """Oracle: the rendering of each conversation, cut at the row."""
    task = Chats(turns)
    wanted: Counter[int] = Counter()
    num_cut_learned = 0
    for conversation in task:
        ids, learned = render(conversation, TOKENIZER)
        wanted.update(ids[: context + 1][learned[: context + 1]].tolist())
        num_cut_learned += int(learned[context + 1 :].sum())
    if not wanted:
        with pytest.raises(ValueError, match=r"none of .* has a token to train on"):
            stream([task], context=context, packing=packing)
        return
    chats = stream([task], context=context, packing=packing)
    steps = list(chats)
    assert learned_tokens(steps) == wanted
    assert chats.left_out.num_cut_learned == num_cut_learned
    assert f", {num_cut_learned:,} of them" in "".join(chats.left_out.parts()) or not num_cut_learned
    assert sum(step.num_tokens for step in steps) == wanted.total()
    assert len(steps) == chats.num_steps


@PROPERTY
@given(turns=CHATS, context=st.sampled_from([16, 33]))
def test_flat_learns_every_token_but_the_first(turns: list[tuple[str, ...]], context: int) -> None:
    rendered = [render(conversation, TOKENIZER)[0].tolist() for conversation in Chats(turns)]
    chats = stream([Chats(turns)], context=context, packing="flat")
    wanted = Counter(token for ids in rendered for token in ids)
    wanted.subtract([TOKENIZER.bos_id])
    assert learned_tokens(list(chats)) == +wanted
    assert chats.left_out.num_cut == 0


@PROPERTY
@given(turns=CHATS, packing=st.sampled_from(["bestfit", "single"]))
def test_only_the_assistants_tokens_are_targets(turns: list[tuple[str, ...]], packing: str) -> None:
    """After a target comes the next one or the assistant's end: never a token of the user or of the tool's
    output."""
    forbidden = [
        TOKENIZER.special_id(f"<|{name}|>")
        for name in ("bos", "user_start", "user_end", "assistant_start", "output_start", "output_end")
    ]
    steps = list(stream([Chats(turns)], context=200, packing=packing))
    assert not set(learned_tokens(steps)) & set(forbidden)
    answers = Counter(token for *_, answer in turns for token in TOKENIZER.encode(answer))
    calls = Counter(token for turn in turns if len(turn) == 4 for token in TOKENIZER.encode(turn[1]))
    brackets = Counter(
        {
            TOKENIZER.special_id("<|assistant_end|>"): len(turns),
            TOKENIZER.special_id("<|python_start|>"): sum(len(turn) == 4 for turn in turns),
            TOKENIZER.special_id("<|python_end|>"): sum(len(turn) == 4 for turn in turns),
        }
    )
    assert learned_tokens(steps) == +(answers + calls + brackets)


@pytest.mark.parametrize("packing", PACKINGS)
def test_targets_are_the_inputs_shifted_and_rows_begin_with_bos(packing: str) -> None:
    for step in stream([Sums(split="train", size=30)], packing=packing):
        for ids_BT, targets_BT in step.micro_batches:
            assert ids_BT.dtype == targets_BT.dtype == torch.int64
            assert ids_BT.shape == targets_BT.shape
            following = targets_BT[:, :-1]
            assert torch.equal(following[following != -1], ids_BT[:, 1:][following != -1])
            if packing != "flat":
                assert (ids_BT[:, 0] == TOKENIZER.bos_id).all()


@pytest.mark.parametrize("packing", PACKINGS)
def test_the_rows_of_a_step_are_the_same_at_1_2_and_4_ranks(packing: str) -> None:
    """Oracle: one rank with one micro-batch."""

    def hashes(world: int, micro_batch: int) -> list[tuple[list[str], set[int]]]:
        tasks: list[Task] = [Sums(split="train", size=150, epochs=2), Chats([("why?", "because " * 9)])]
        ranks = [
            list(stream(tasks, rows=8, packing=packing, rank=rank, world=world, micro_batch=micro_batch))
            for rank in range(world)
        ]
        return [
            ([row for step in steps for row in row_hashes(step)], {step.num_tokens for step in steps})
            for steps in zip(*ranks, strict=True)
        ]

    whole = hashes(1, 8)
    assert len(whole) >= 3
    assert hashes(2, 2) == whole
    assert hashes(4, 1) == whole


@pytest.mark.parametrize("packing", PACKINGS)
@pytest.mark.parametrize("max_steps", [None, 25])
def test_resume_is_exact_with_another_number_of_ranks(packing: str, max_steps: int | None) -> None:
    """Oracle: the same stream without a break. 25 steps reach over several epochs."""
    tasks: list[Task] = [Sums(split="train", size=70)]
    whole = list(stream(tasks, packing=packing, max_steps=max_steps))
    for stop in (1, len(whole) // 2, len(whole) - 1):
        position = json.loads(json.dumps(whole[stop - 1].position))
        halves = []
        for rank in range(2):
            resumed = stream(tasks, packing=packing, max_steps=max_steps, rank=rank, world=2)
            resumed.load_position([position])
            halves.append(list(resumed))
        hashes = [row_hashes(first) + row_hashes(second) for first, second in zip(*halves, strict=True)]
        assert hashes == [row_hashes(step) for step in whole[stop:]]
        assert [step.position for step in halves[0]] == [step.position for step in whole[stop:]]


def test_iterating_again_continues_and_batches_begin_anew() -> None:
    chats = stream([Sums(split="train", size=70)])
    first = next(iter(chats))
    assert [step.position["step"] for step in chats] == list(range(2, chats.num_steps + 1))
    batches = list(chats.batches())
    assert len(batches) == 4 * chats.num_steps
    assert torch.equal(batches[0][0], first.micro_batches[0][0])
    assert first.position["progress"] == 1 / chats.num_steps


def test_a_position_of_other_data_or_settings_is_refused() -> None:
    step = next(iter(stream([Sums(split="train", size=70)])))
    for other in (
        stream([Sums(split="train", size=71)]),
        stream([Sums(split="train", size=70)], seed=2),
        stream([Sums(split="train", size=70)], rows=8),
    ):
        with pytest.raises(ValueError, match=r"can't resume, the rows would differ: \w+ was"):
            other.load_position([step.position])
    with pytest.raises(ValueError, match="format 99"):
        stream([Sums(split="train", size=70)]).load_position([{**step.position, "format": 99}])


def test_the_order_depends_on_seed_and_epoch() -> None:
    def order(seed: int) -> list[list[str]]:
        sums = Sums(split="train", size=16)
        return [row_hashes(step) for step in stream([sums], packing="single", seed=seed, max_steps=8)]

    one = order(1)
    assert one == order(1)
    assert one != order(2)
    assert one[:4] != one[4:]
    assert sorted(chain(*one[:4])) == sorted(chain(*one[4:]))


def test_epochs_are_counted_by_rows() -> None:
    steps = stream([Sums(split="train", size=16)], packing="single", max_steps=8)
    assert [step.epoch for step in steps] == [n / 4 for n in range(1, 9)]


def test_ids_beyond_65535_stay_what_they_are() -> None:
    pairs = [bytes([left, right]) for left in range(256) for right in range(256)]
    tokenizer = Tokenizer([*(bytes([byte]) for byte in range(256)), *pairs])
    task = Chats([("why?", "because")])
    ids, _ = Mixture([task], tokenizer, max_tokens=None).slice(0, 0, 99)
    assert ids.tolist() == render(task[0], tokenizer)[0].tolist()
    assert ids.max() > 65_535


def test_a_source_counts_as_often_as_its_epochs_say() -> None:
    chats = stream([Chats([("a", "bb")], epochs=3), Chats([("c", "dd")])], packing="single")
    tokens = learned_tokens(list(chats))
    assert tokens[TOKENIZER.encode("bb")[0]] == 3 * tokens[TOKENIZER.encode("dd")[0]]
    assert tokens[TOKENIZER.special_id("<|assistant_end|>")] == 4


@pytest.mark.parametrize("context", [256, 512])
@pytest.mark.parametrize("packing", ["bestfit", "single"])
def test_conversations_longer_than_the_row_do_not_clog(context: int, packing: str) -> None:
    """nanochat #590: what never fits stayed in the buffer until it held nothing else."""
    long_answer = Chats([("a" * 5, "b c d " * 300)] * 120)
    long_question = Chats([("a b " * 400, "unreachable")] * 120)
    short = Sums(split="train", size=100)
    tasks: list[Task] = [long_answer, Chats([("x" * 9, "y" * 9)]), short]
    chats = stream(tasks, context=context, packing=packing)
    steps = list(chats)
    assert chats.left_out.num_cut == 120
    num_rendered = sum(len(render(one, TOKENIZER)[0]) for task in tasks for one in task)
    assert steps[-1].cropped_fraction == chats.left_out.num_cut_tokens / num_rendered
    assert learned_tokens(steps)[TOKENIZER.special_id("<|assistant_end|>")] == 101
    assert all(step.num_tokens > 0 for step in steps)
    with pytest.raises(ValueError, match="Chats: none of 120 conversations has a token to train on within"):
        stream([long_question, short], context=context, packing=packing)


def test_every_row_of_a_step_has_a_learned_token() -> None:
    """Conversations whose answer lies behind the row's end are left out, not trained on as rows of
    nothing."""
    chats = stream([Chats([("a b " * 50, "far"), ("hi", "near")] * 40)])
    for step in chats:
        targets_BT = torch.cat([targets for _, targets in step.micro_batches])
        rows = (targets_BT != -1).any(dim=1)
        assert rows.all() or step.position["step"] == chats.num_steps
    assert chats.left_out.num_unlearned == 40


def test_the_last_step_has_empty_rows_and_counts_only_learned_tokens() -> None:
    chats = stream([Chats([("a", "b")])], rows=4)
    (step,) = chats
    assert [int((targets != -1).sum()) for _, targets in step.micro_batches] == [2, 0, 0, 0]
    assert step.num_tokens == 2


def test_rows_of_single_conversations_are_no_wider_than_needed() -> None:
    chats = stream([Chats([("a", "b" * 40)])], packing="single", context=512)
    assert {ids.shape[1] for step in chats for ids, _ in step.micro_batches} == {64}


def test_malformed_rows_are_named_or_counted(tmp_path: Path) -> None:
    good = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    lines = [json.dumps({"messages": messages}) for messages in (good, [good[1]], good)]
    (tmp_path / "mine.jsonl").write_text("\n".join(lines))
    task = ConversationFile(path="mine", source=str(tmp_path))
    with pytest.raises(ValueError, match=r"mine\.jsonl line 2, message 1: got role assistant, expected user"):
        stream([task])
    task = ConversationFile(path="mine", source=str(tmp_path), malformed="skip")
    with pytest.warns(UserWarning, match=r"1 of 3 rows are malformed and left out; the first: .*line 2"):
        chats = stream([task])
    assert chats.left_out.num_malformed == 1
    assert learned_tokens(list(chats))[TOKENIZER.special_id("<|assistant_end|>")] == 2


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"tasks": []}, "no sources"),
        ({"rows": 6, "micro_batch": 4}, r"rows per step \(6\) must be a multiple of .* = 4\); try 8"),
        ({"rows": 4, "world": 8}, "try 8"),
        ({"packing": "tight"}, "packing is 'tight'"),
    ],
)
def test_bad_settings_say_what_is_allowed(changes: dict[str, Any], complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        stream(**{"tasks": [Sums(split="train", size=9)], **changes})


@pytest.mark.parametrize("packing", ["bestfit", "single"])
@pytest.mark.parametrize(("world", "micro_batch"), [(1, 1), (1, 8), (2, 8), (3, 2), (4, 8)])
def test_validation_is_of_the_same_rows_at_any_number_of_ranks(packing, world, micro_batch):
    """Also where the rows of a batch don't divide what is asked for."""
    tasks: list[Task] = [Sums(split="test", size=60)]

    def rows(world: int, micro_batch: int) -> Counter[tuple[int, ...]]:
        found: Counter[tuple[int, ...]] = Counter()
        for rank in range(world):
            sizes = {"context": 32, "micro_batch": micro_batch, "num_rows": 9, "rank": rank, "world": world}
            validation = ValidationConversations(tasks, TOKENIZER, packing=packing, **sizes)
            for _, targets_BT in validation:
                learned = (tuple(row[row != -1].tolist()) for row in targets_BT)
                found.update(row for row in learned if row)
        return found

    assert rows(world, micro_batch) == rows(1, 1)
    assert rows(world, micro_batch).total() == 9


@pytest.mark.parametrize("packing", PACKINGS)
def test_validation_rows_have_one_identity_on_any_ranks_and_micro_batch(packing: Any) -> None:
    """Padding, which depends on both, is no part of it. Oracle for the tokens: the batches' targets."""
    tasks: list[Task] = [Sums(split="test", size=60)]
    sizes = {"context": 32, "num_rows": 9}

    def validation(rank: int, world: int, micro_batch: int, **more: Any) -> ValidationConversations:
        where = {"rank": rank, "world": world, "micro_batch": micro_batch}
        return ValidationConversations(tasks, TOKENIZER, packing=packing, **{**sizes, **where, **more})

    one = validation(0, 1, 1)
    assert one.identity["tokens"] == sum(int((targets_BT != -1).sum()) for _, targets_BT in one)
    assert one.identity["rows"] == 9
    for world, micro_batch in [(1, 3), (2, 2), (3, 1)]:
        assert all(validation(rank, world, micro_batch).identity == one.identity for rank in range(world))
    assert validation(0, 1, 1, num_rows=8).identity["checksum"] != one.identity["checksum"]
    if packing != "single":  # where each sum has a row of its own, longer rows hold the same
        assert validation(0, 1, 1, context=48).identity["checksum"] != one.identity["checksum"]
