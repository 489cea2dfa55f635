"""CORE beside nanochat's own decisions, and beside a loop over whole texts."""

import os
import random
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from nanolit.evaluation import spans
from nanolit.evaluation.core import ask, judged
from nanolit.evaluation.spans import Group, score_groups
from nanolit.inference.decode import Decoder
from nanolit.machine.paths import read_json
from nanolit.model.gpt import GPT, GPTConfig
from nanolit.model.nanochat import build_model, read_checkpoint
from nanolit.tasks.bundle import LABELS, read_items
from nanolit.tokenizer.nanochat import read_tokenizer

SHARED = Path(os.environ.get("NANOLIT_SHARED", "shared"))
BUNDLE = SHARED / "data/eval/eval_bundle"
DECISIONS = SHARED / "fixtures/nanochat_2026/eval/core_decisions.json"
FIXTURE = Path(__file__).parents[1] / "fixtures/nanochat_2026"
needs_shared = pytest.mark.skipif(not DECISIONS.is_file(), reason="NANOLIT_SHARED is not set")


@pytest.fixture(scope="module")
def fixture():
    content = read_json(FIXTURE / "base_checkpoints/d3/meta_000020.json")
    state = read_checkpoint(FIXTURE / "base_checkpoints/d3/model_000020.pt")
    model, _ = build_model(state, content["model_config"], origin="fixture")
    return Decoder(model), read_tokenizer(FIXTURE / "tokenizer")


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


def _parts(group):
    return group.texts, group.starts


@pytest.fixture(scope="module")
def tiny():
    """Two blocks with a window, grouped keys, smear and value embeddings, all weights drawn."""
    torch.manual_seed(0)
    config = GPTConfig(
        vocab_size=50,
        context=64,
        depth=2,
        width=32,
        heads=2,
        kv_heads=1,
        window_pattern="SL",
        **{key: value for key, value in MODERN.items()},
    )
    model = GPT(config)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    model.prepare()
    return Decoder(model)


MODERN = {}


def whole_texts(decoder, group):
    """The losses and hits of each text's span, each text read alone by GPT.forward."""
    for text, start in zip(group.texts, group.starts, strict=True):
        ids = torch.from_numpy(text.astype(np.int64))[None]
        logits = decoder.model(ids)[0, start - 1 : -1]
        target = ids[0, start:]
        yield F.cross_entropy(logits, target).item(), bool((logits.argmax(-1) == target).all())


def drawn_groups(count, *, vocab_size, longest):
    draw = np.random.default_rng(3)
    groups = []
    for number in range(count):
        begin = draw.integers(vocab_size, size=draw.integers(1, longest // 2))
        texts = [
            np.concatenate([begin, draw.integers(vocab_size, size=draw.integers(1, longest // 2))])
            for _ in range(1 + number % 4)
        ]
        groups.append(
            Group(texts, [int(draw.integers(1, len(text))) if len(text) > 1 else 1 for text in texts])
        )
    return groups


@torch.no_grad()
@pytest.mark.parametrize("budget", [1, 500, 16_384])
def test_shared_beginnings_change_no_loss(fixture, monkeypatch, budget):
    """Oracle: every text read alone; whatever is read together."""
    decoder, _ = fixture
    monkeypatch.setattr(spans, "BATCH_TOKENS", budget)
    groups = drawn_groups(24, vocab_size=decoder.model.vocab_size, longest=300)
    for group, found in zip(groups, score_groups(decoder, groups), strict=True):
        expected = [*whole_texts(decoder, group)]
        assert [span.loss for span in found] == pytest.approx([loss for loss, _ in expected], abs=1e-5)
        assert [span.greedy for span in found] == [greedy for _, greedy in expected]
