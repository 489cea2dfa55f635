"""CORE beside nanochat's own decisions, and beside a loop over whole texts."""

import json
import os
import random
from pathlib import Path

import numpy as np
import pytest
import torch

from nanolit.evaluation import core, spans
from nanolit.evaluation.core import evaluate_core, judged, name_of_mean, replaced
from nanolit.evaluation.items import ItemFile
from nanolit.evaluation.questions import ask, num_characters
from nanolit.evaluation.scores import Scored, mean_centered, paired_difference
from nanolit.evaluation.scores import read_items as read_scored
from nanolit.evaluation.spans import Group, OwnScorer, score_groups
from nanolit.inference.decode import Decoder
from nanolit.machine.paths import read_json
from nanolit.model.nanochat import build_model, read_checkpoint
from nanolit.tasks.bundle import LABELS, open_bundle, read_items
from nanolit.tokenizer.nanochat import read_tokenizer
from tests.oracles.core_loop import score_item
from tests.ranks import run_ranks

SHARED = Path(os.environ.get("NANOLIT_SHARED", "shared"))
BUNDLE = SHARED / "data/eval/eval_bundle"
DECISIONS = SHARED / "fixtures/nanochat_2026/eval/core_decisions.json"
FIXTURE = Path(__file__).parents[1] / "fixtures/nanochat_2026"
needs_shared = pytest.mark.skipif(not DECISIONS.is_file(), reason="NANOLIT_SHARED is not set")


@pytest.fixture(scope="module")
def fixture():
    return Decoder(build_fixture()[0]), read_tokenizer(FIXTURE / "tokenizer")


def build_fixture():
    content = read_json(FIXTURE / "base_checkpoints/d3/meta_000020.json")
    state = read_checkpoint(FIXTURE / "base_checkpoints/d3/model_000020.pt")
    return build_model(state, content["model_config"], origin="fixture")


@needs_shared
@pytest.mark.parametrize("label", LABELS, ids=lambda label: label.name)
def test_prompts_spans_and_decisions_are_nanochats(fixture, label):
    """Oracle: six items of each task, decided by nanochat itself with prompts cropped to 1,024 tokens."""
    decoder, tokenizer = fixture
    expected = read_json(DECISIONS)["labels"][label.name]
    assert (label.kind, label.shots, label.delimiter) == (
        expected["task_type"],
        expected["num_fewshot"],
        expected["delimiter"],
    )
    assert label.baseline == expected["random_baseline_percent"]
    items, _ = read_items(BUNDLE, label)
    random.Random(1337).shuffle(items)
    rows = expected["rows"]
    questions = ask(label, items, [row["index"] for row in rows], tokenizer, crop=1024)
    scored = score_groups(decoder, [question.group for question in questions])
    for row, question, found in zip(rows, questions, scored, strict=True):
        assert question.prompt == row["crc_tokens"][0]
        assert [len(text) for text in question.group.texts] == [min(1024, n) for n in row["num_tokens"]]
        lengths = [len(text) - start for text, start in zip(*_parts(question.group), strict=True)]
        assert lengths == [end - start for start, end in zip(row["start"], row["end"], strict=True)]
        assert judged(row["index"], question, found)["right"] == row["correct"]
        if row.get("mean_losses"):
            assert [span.loss for span in found] == pytest.approx(row["mean_losses"], abs=2e-5)


@needs_shared
def test_in_bfloat16_only_near_ties_are_decided_otherwise(fixture):
    """Oracle: nanochat's decisions in float32. None of the 132 changes on the CPUs tried."""
    model, _ = build_fixture()
    model.prepare(dtype=torch.bfloat16)
    decoder, tokenizer = Decoder(model), fixture[1]
    for label in LABELS:
        rows = read_json(DECISIONS)["labels"][label.name]["rows"]
        items, _ = read_items(BUNDLE, label)
        random.Random(1337).shuffle(items)
        questions = ask(label, items, [row["index"] for row in rows], tokenizer, crop=1024)
        scored = score_groups(decoder, [question.group for question in questions])
        for row, question, found in zip(rows, questions, scored, strict=True):
            losses = row.get("mean_losses") or []
            assert [span.loss for span in found][: len(losses)] == pytest.approx(losses, abs=0.04)
            if judged(row["index"], question, found)["right"] != row["correct"]:
                assert losses, f"{label.name} {row['index']}: a greedy ending changed"
                assert sorted(losses)[1] - min(losses) < 0.04


def _parts(group):
    return group.texts, group.starts


def drawn_groups(count, *, vocab_size, longest):
    draw = np.random.default_rng(3)
    groups = []
    for number in range(count):
        begin = draw.integers(vocab_size, size=draw.integers(1, longest // 2))
        begin = begin[: 0 if number % 3 == 2 else None]  # cropped texts share nothing
        texts = [
            np.concatenate([begin, draw.integers(vocab_size, size=draw.integers(2, longest // 2))])
            for _ in range(1 + number % 4)
        ]
        groups.append(Group(texts, [int(draw.integers(1, len(text))) for text in texts]))
    return groups


@pytest.mark.parametrize("budget", [1, 500, 16_384])
def test_shared_beginnings_change_no_loss(fixture, monkeypatch, budget):
    """Oracle: a loop over items with whole texts; whatever is read together."""
    decoder, _ = fixture
    monkeypatch.setattr(spans, "BATCH_TOKENS", budget)
    groups = drawn_groups(24, vocab_size=decoder.model.vocab_size, longest=300)
    for group, found in zip(groups, score_groups(decoder, groups), strict=True):
        expected = score_item(decoder.model, group)
        assert [span.loss for span in found] == pytest.approx([span.loss for span in expected], abs=1e-5)
        assert [span.greedy for span in found] == [span.greedy for span in expected]


def test_a_score_says_how_sure_it_is():
    """Oracle: the root of p (1 - p) / n for Laplace's p, and independent tasks."""
    half = Scored("a", 100, 0.5, 0.25)
    assert (half.error, half.centered) == (pytest.approx(0.05), pytest.approx(1 / 3))
    assert Scored("a", 100, 0.0, 0.0).error > 0.009
    assert mean_centered([half] * 4) == (pytest.approx(1 / 3), pytest.approx(0.05 / 0.75 / 2))


def test_paired_items_tell_more_than_two_scores():
    """Two models of which one solves two items more: half of the rest is hard for both."""
    one = [{"index": index, "prompt": 7, "right": index < 50} for index in range(100)]
    other = [{**item, "right": item["index"] < 52} for item in one]
    difference, error, count = paired_difference(one, other)
    assert (difference, count) == (pytest.approx(0.02), 100)
    assert error == pytest.approx(0.0141, abs=1e-4)  # unpaired it would be 0.07
    with pytest.raises(ValueError, match="0 items in common"):
        paired_difference(one, [{**item, "prompt": 8} for item in other])


COPA = next(label for label in LABELS if label.name == "copa")


@pytest.fixture
def bundle(tmp_path):
    """COPA's shape, 20 items that we made up."""
    lines = [
        json.dumps(
            {
                "query": f"{number} and one is, therefore",
                "gold": number % 2,
                "choices": ["a b", f"{number + 1}."],
            }
        )
        for number in range(20)
    ]
    path = tmp_path / "bundle/eval_data/commonsense_reasoning/copa.jsonl"
    path.parent.mkdir(parents=True)
    path.write_text("\n".join(lines) + "\n")
    return tmp_path / "bundle"


def ask_copa(fixture, bundle, **more):
    decoder, tokenizer = fixture
    return dict(evaluate_core(OwnScorer(decoder.model), tokenizer, bundle, [COPA], **more))["copa"]


def decisions(path):
    """What is read together decides a loss's last bits, and nothing else."""
    return [(item["index"], item["prompt"], item["right"]) for item in read_scored(path)[1]]


def test_an_interrupted_evaluation_ends_with_the_same_items(fixture, bundle, tmp_path):
    """The file is cut within a line; the header of another model's file begins it anew."""
    score = ask_copa(fixture, bundle, folder=tmp_path / "whole", about={"weights": "a"})
    whole = (tmp_path / "whole/copa.jsonl").read_text()
    cut = tmp_path / "cut/copa.jsonl"
    cut.parent.mkdir()
    cut.write_text(whole[: len(whole) // 2])
    assert ask_copa(fixture, bundle, folder=cut.parent, about={"weights": "a"}) == score
    assert decisions(cut) == decisions(tmp_path / "whole/copa.jsonl")
    ask_copa(fixture, bundle, folder=cut.parent, about={"weights": "b"}, max_per_task=3)
    header, items = read_scored(cut)
    assert (header["weights"], len(items)) == ("b", 3)


def test_the_work_of_a_task_is_what_is_read_of_it(bundle):
    """Oracle: the texts by hand, "<n> and one is, therefore" once, a blank with each choice."""
    items, _ = read_items(bundle, COPA)
    read = [len(item["query"]) + sum(1 + len(choice) for choice in item["choices"]) - 1 for item in items]
    assert num_characters(COPA, items, range(20)) == pytest.approx(sum(read), rel=0.05)
    assert num_characters(COPA, items, []) == 0


def test_the_time_left_is_of_the_work_that_is_left(monkeypatch, capsys):
    """A tenth of the work took 6 seconds: the rest takes 54, however many tasks it is."""
    monkeypatch.setattr(core.sys.stderr, "isatty", lambda: True)
    monkeypatch.setattr(core.time, "monotonic", iter([0.0, 6.0]).__next__)
    core._Progress([20.0, 79.0, 1.0]).show("copa", 0, 50, 100)
    assert "copa: 50 of 100, about 0:54 left" in capsys.readouterr().err


def test_a_part_is_the_first_of_the_shuffled_items(fixture, bundle, tmp_path):
    whole = ask_copa(fixture, bundle, folder=tmp_path / "a")
    part = ask_copa(fixture, bundle, folder=tmp_path / "b", max_per_task=7)
    assert (whole.num_items, part.num_items) == (20, 7)
    assert decisions(tmp_path / "b/copa.jsonl") == decisions(tmp_path / "a/copa.jsonl")[:7]


def test_other_questions_than_the_originals_are_named(bundle):
    assert replaced(bundle, [COPA]) == ["copa"]


@pytest.mark.parametrize(
    ("line", "said"),
    [
        (
            '{"query": "a", "choices": ["b", "c"]}',
            r"copa.jsonl line 2: copa needs query \(str\)",
        ),
        (
            '{"query": "a", "choices": ["b", "c"], "gold": 2}',
            "line 2: gold must be the index of one",
        ),
        (
            '{"query": "a", "choices": ["b", 3], "gold": 0}',
            "line 2: there must be at least two options",
        ),
        (
            '{"query": "a", "choices": [], "gold": 0}',
            "line 2: there must be at least two options, all of them texts",
        ),
        ("{", "copa.jsonl line 2"),
    ],
)
def test_a_wrong_row_is_refused_with_its_file_and_line(fixture, bundle, line, said):
    path = bundle / "eval_data/commonsense_reasoning/copa.jsonl"
    lines = path.read_text().splitlines()
    path.write_text("\n".join([lines[0], line, *lines[2:]]))
    with pytest.raises(ValueError, match=said):
        ask_copa(fixture, bundle)


def test_questions_that_are_not_there_are_not_fetched_offline(tmp_path):
    with pytest.raises(ValueError, match="offline=true forbids downloading: unpack https"):
        open_bundle(tmp_path, offline=True)


def test_a_prompt_longer_than_the_model_is_refused_with_the_remedy(fixture):
    decoder, _ = fixture
    longest = decoder.model.max_positions
    with pytest.raises(ValueError, match=f"takes at most {longest:,}: give crop={longest}"):
        score_groups(decoder, [Group([np.ones(longest + 1, np.uint16)], [5])])


def worker(rank, folder, bundle):
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    content = read_json(FIXTURE / "base_checkpoints/d3/meta_000020.json")
    state = read_checkpoint(FIXTURE / "base_checkpoints/d3/model_000020.pt")
    model, _ = build_model(state, content["model_config"], origin="fixture")
    score = ask_copa((Decoder(model), read_tokenizer(FIXTURE / "tokenizer")), bundle, folder=folder / "two")
    (folder / f"{rank}.txt").write_text(repr(score))
    torch.distributed.barrier()  # a rank that leaves first would close the other's connection
    torch.distributed.destroy_process_group()
    os._exit(0)  # gloo now and then aborts a process that shuts Python down (torch 2.11)


def test_two_ranks_decide_as_one(fixture, bundle, tmp_path):
    score = ask_copa(fixture, bundle, folder=tmp_path / "one")
    run_ranks(worker, tmp_path, bundle, world=2)
    assert [(tmp_path / f"{rank}.txt").read_text() for rank in range(2)] == [repr(score)] * 2
    assert decisions(tmp_path / "two/copa.jsonl") == decisions(tmp_path / "one/copa.jsonl")


def test_a_model_whose_weights_are_no_numbers_has_no_score(bundle):
    content = read_json(FIXTURE / "base_checkpoints/d3/meta_000020.json")
    state = read_checkpoint(FIXTURE / "base_checkpoints/d3/model_000020.pt")
    model, _ = build_model(state, content["model_config"], origin="fixture")
    with torch.no_grad():
        model.embedding.weight.fill_(torch.nan)
    with pytest.raises(ValueError, match="not finite numbers; evaluate another checkpoint"):
        ask_copa((Decoder(model), read_tokenizer(FIXTURE / "tokenizer")), bundle)


@pytest.mark.parametrize(
    "rest",
    ['{"index": 9, "replies": ["\\u20ac', '{"index": 0}\n', '{"index": [0], "prompt": 1, "right": true}\n'],
)
def test_what_is_no_whole_item_is_asked_again(fixture, bundle, tmp_path, rest):
    score = ask_copa(fixture, bundle, folder=tmp_path)
    path = tmp_path / "copa.jsonl"
    lines = path.read_text().split("\n")
    path.write_bytes(("\n".join(lines[:9]) + "\n" + rest).encode().replace(b"\\u20ac", b"\xe2\x82"))
    assert ask_copa(fixture, bundle, folder=tmp_path) == score


def test_replies_with_any_line_break_are_one_item(tmp_path):
    file = ItemFile(tmp_path / "a.jsonl", {})
    replies = ["a", "x\u2028y", "x\x85y"]
    file.add({"index": n, "prompt": 1, "right": True, "replies": [reply]} for n, reply in enumerate(replies))
    assert [item["replies"][0] for item in read_scored(tmp_path / "a.jsonl")[1]] == replies


def test_only_the_whole_is_called_core():
    assert name_of_mean(max_per_task=None, crop=None, others=[]) == "CORE"
    part = name_of_mean(max_per_task=500, crop=1024, others=["coqa"])
    assert part == "CORE of at most 500 a task, cropped to 1024, 1 tasks not the originals"
