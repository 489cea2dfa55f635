"""The engine's tokens are the model's own, one distribution per sample, with the calculator's put between."""

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from nanolit.inference.engine import Engine
from nanolit.inference.request import Handle, Request, TextStream, Token
from nanolit.inference.sampling import log_probabilities
from nanolit.machine.paths import read_json
from nanolit.model.nanochat import build_model, read_checkpoint
from nanolit.tokenizer.bpe import Tokenizer
from nanolit.tokenizer.conversation import render, render_prompt
from nanolit.tokenizer.nanochat import read_tokenizer

FIXTURES = Path(__file__).parents[1] / "fixtures"
PROMPT = [256, *b"the quick brown fox"]


@pytest.fixture
def engine(tiny_model, byte_tokenizer) -> Engine:
    return Engine(tiny_model, byte_tokenizer)


@pytest.fixture
def taught_engine(taught_model, byte_tokenizer) -> Engine:
    return Engine(taught_model, byte_tokenizer)


def test_greedy_with_cache_equals_forwarding_everything_again(engine):
    """Oracle: the model without a cache, called anew for every token."""
    ids = list(PROMPT)
    with torch.no_grad():
        while len(ids) < len(PROMPT) + 24 and (len(ids) == len(PROMPT) or ids[-1] not in engine.end_ids):
            ids.append(int(engine.model(torch.tensor([ids]))[0, -1].argmax()))
    (completion,) = engine.complete(PROMPT, max_tokens=24, temperature=0)
    assert completion.ids == ids[len(PROMPT) :]


@pytest.mark.parametrize("generation", ["nanochat_2025", "nanochat_2026"])
def test_greedy_tokens_equal_nanochats(generation):
    """Oracle: golden.npz, decoded by the original engine of that generation with its cache."""
    folder = FIXTURES / generation
    content = read_json(folder / "base_checkpoints/d3/meta_000020.json")
    state = read_checkpoint(folder / "base_checkpoints/d3/model_000020.pt")
    model, _ = build_model(state, content["model_config"], origin=generation)
    with np.load(folder / "golden.npz") as golden:
        prompt, expected = golden["prompt"].tolist(), golden["greedy"].tolist()
    engine = Engine(model, read_tokenizer(folder / "tokenizer"))
    (completion,) = engine.complete(prompt, max_tokens=len(expected) - len(prompt), temperature=0)
    assert prompt + completion.ids == expected


def test_samples_are_as_likely_as_scoring_says(engine):
    """What was drawn has a finite log-probability under the same (temperature, top_k)."""
    settings = {"temperature": 0.8, "top_k": 4}
    for completion in engine.complete(PROMPT, num_samples=5, max_tokens=12, seed=3, **settings):
        ids = torch.tensor([[*PROMPT, *completion.ids]])
        with torch.no_grad():
            log_probs = log_probabilities(engine.model(ids[:, :-1])[0, len(PROMPT) - 1 :], **settings)
        assert log_probs.gather(-1, ids[0, len(PROMPT) :, None]).min() > -torch.inf


def test_first_tokens_are_drawn_for_each_sample(engine):
    first = next(engine.generate(PROMPT, num_samples=32, max_tokens=1, temperature=1.5, seed=0))
    assert len(set(first)) > 4


def test_a_sample_does_not_depend_on_how_many_there_are(engine):
    many = engine.complete(PROMPT, num_samples=6, max_tokens=16, seed=11)
    for num_samples in (1, 3):
        fewer = engine.complete(PROMPT, num_samples=num_samples, max_tokens=16, seed=11)
        assert [c.ids for c in fewer] == [c.ids for c in many[:num_samples]]


def test_a_sample_goes_on_the_same_from_its_middle(engine):
    """A draw depends on its position, not on where the prompt ended."""
    (whole,) = engine.complete(PROMPT, max_tokens=16, temperature=2.0, seed=11)
    (rest,) = engine.complete([*PROMPT, *whole.ids[:6]], max_tokens=10, temperature=2.0, seed=11)
    assert len(whole.ids) == 16
    assert rest.ids == whole.ids[6:]


def test_seeds_give_different_samples(engine):
    ids = [engine.complete(PROMPT, max_tokens=16, seed=seed)[0].ids for seed in (1, 1, 2)]
    assert ids[0] == ids[1] != ids[2]


def test_never_more_than_max_tokens(engine):
    steps = list(engine.generate(PROMPT, num_samples=3, max_tokens=7, seed=2))
    assert len(steps) <= 7
    assert all(len(step) == 3 for step in steps)


def test_a_taught_reply_ends_with_its_end_token(taught_engine, byte_tokenizer):
    prompt = render_prompt({"messages": [{"role": "user", "content": "Hello"}]}, byte_tokenizer)
    (completion,) = taught_engine.complete(prompt, max_tokens=40, temperature=0)
    assert completion.ended
    assert completion.ids[-1] == byte_tokenizer.special_id("<|assistant_end|>")
    assert byte_tokenizer.decode(completion.body_ids) == "Hi! I am tiny 😀."
    assert all(completion.sampled)


def test_the_calculator_answers_a_call_and_its_tokens_are_marked_as_forced(taught_engine, byte_tokenizer):
    """The model has learned the answer 99 by heart; 36 can only come from the calculator."""
    prompt = render_prompt({"messages": [{"role": "user", "content": "Sum?"}]}, byte_tokenizer)
    completion, _ = taught_engine.complete(prompt, num_samples=2, max_tokens=60, temperature=0)
    assert byte_tokenizer.decode(completion.ids).startswith(
        "It is <|python_start|>12*3<|python_end|><|output_start|>36<|output_end|>"
    )
    forced = [id for id, sampled in zip(completion.ids, completion.sampled, strict=True) if not sampled]
    assert byte_tokenizer.decode(forced) == "<|output_start|>36<|output_end|>"


def test_learned_positions_of_a_taught_conversation_are_the_sampled_ones(taught_engine, byte_tokenizer):
    """Oracle: the mask of conversation rendering, for the same call with the right answer."""
    parts = [("text", "It is "), ("python", "12*3"), ("python_output", "36")]
    conversation = {
        "messages": [
            {"role": "user", "content": "Sum?"},
            {"role": "assistant", "content": [{"type": type, "text": text} for type, text in parts]},
        ]
    }
    ids, learned = render(conversation, byte_tokenizer)
    prompt = render_prompt(conversation, byte_tokenizer)
    (completion,) = taught_engine.complete(prompt, max_tokens=60, temperature=0)
    reply = slice(len(prompt), len(ids) - 1)  # without the end token: the model goes on after the answer
    length = len(ids[reply])
    assert completion.ids[:length] == ids[reply].tolist()
    assert completion.sampled[:length] == learned[reply].tolist()


def test_finished_samples_give_none_while_others_go_on(engine):
    """Found by search: with this temperature some of 64 samples draw an end token early."""
    steps = list(engine.generate(PROMPT, num_samples=64, max_tokens=20, temperature=2.0, seed=0))
    ended = {row for row in range(64) if any(step[row] is None for step in steps)}
    assert 0 < len(ended) < 64
    for row in ended:
        ids = [step[row] and step[row].id for step in steps]
        end = next(place for place, id in enumerate(ids) if id in engine.end_ids)
        assert None not in ids[: end + 1]
        assert set(ids[end + 1 :]) == {None}


def test_forced_tokens_replace_sampled_ones_step_by_step(engine, byte_tokenizer):
    """A call made of the prompt's last tokens is none: only what the model itself opens is run."""
    open_call = [*PROMPT, byte_tokenizer.special_id("<|python_start|>"), *b"1+1"]
    (completion,) = engine.complete(open_call, max_tokens=20, temperature=0)
    assert all(completion.sampled)


def test_a_call_is_answered_once(byte_tokenizer):
    """An end that no start opened has no answer, be it after a call that had one."""
    start, end = (byte_tokenizer.special_id(f"<|python_{name}|>") for name in ("start", "end"))
    (row,) = Handle(Request(prompt_ids=[1], max_tokens=99), byte_tokenizer, frozenset()).rows
    tokens = [row.take(id) for id in [end, start, *b"1+1", end, *[0] * 3, end, 0]]
    forced = [token.id for token in tokens if not token.sampled]
    assert byte_tokenizer.decode(forced) == "<|output_start|>2<|output_end|>"


def test_too_long_a_request_is_refused_at_once_with_the_bound(engine):
    assert engine.context == 64
    with pytest.raises(ValueError, match=r"prompt \(20 tokens\) \+ max_tokens \(621\) is 641.* 640"):
        engine.generate(PROMPT, max_tokens=engine.max_positions - len(PROMPT) + 1)


def test_the_last_position_can_be_reached(engine):
    prompt = [256] + [65] * (engine.max_positions - 3)
    steps = list(engine.generate(prompt, max_tokens=2, temperature=0))
    assert 1 <= len(steps) <= 2


@pytest.mark.parametrize(
    ("prompt", "settings"),
    [
        ([], {"max_tokens": 3}),
        (PROMPT, {"max_tokens": 0}),
        (PROMPT, {"max_tokens": 3, "num_samples": 0}),
        (PROMPT, {"max_tokens": 3, "temperature": -1}),
        (PROMPT, {"max_tokens": 3, "top_k": 0}),
    ],
)
def test_senseless_requests_are_refused_at_once(engine, prompt, settings):
    with pytest.raises(ValueError, match=r"must|no tokens"):
        engine.generate(prompt, **settings)


def test_generation_leaves_no_graph_and_no_changed_weight(engine):
    before = {name: weight.clone() for name, weight in engine.model.named_parameters()}
    engine.complete(PROMPT, max_tokens=4)
    for name, weight in engine.model.named_parameters():
        assert weight.grad is None
        assert torch.equal(weight, before[name])
    loss = engine.model(torch.tensor([PROMPT]), torch.tensor([PROMPT]))
    loss.backward()  # generation must leave nothing behind that a backward pass cannot use
    engine.model.zero_grad(set_to_none=True)


def test_token_says_where_it_came_from():
    assert Token(5, sampled=True) == (5, True)


BYTES = Tokenizer([bytes([byte]) for byte in range(256)])


@given(st.text(max_size=40))
def test_streamed_text_never_splits_a_character(text):
    """Every character here is split over as many tokens as it has bytes."""
    stream = TextStream(BYTES)
    pieces = [stream.push(id) for id in BYTES.encode(text)]
    assert "".join(pieces) == text
    assert all(len(piece) <= 1 for piece in pieces)
    assert stream.flush() == ""


@given(st.lists(st.integers(0, 264), max_size=40))
def test_streamed_text_equals_decoding_at_once(ids):
    """Oracle: the tokenizer's decode, for any ids, broken bytes and special tokens included."""
    stream = TextStream(BYTES)
    assert "".join([*map(stream.push, ids), stream.flush()]) == BYTES.decode(ids)
