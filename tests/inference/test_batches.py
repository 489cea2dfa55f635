"""Requests of any lengths share a batch, join and leave it, and each gets what it would get alone."""

import random
import threading

import numpy as np
import pytest
import torch

from nanolit.inference import engine as engine_module
from nanolit.inference.engine import Engine
from nanolit.inference.launch import Launcher
from nanolit.inference.request import Handle, Request
from nanolit.inference.sampling import (
    FIRST,
    MEMBER,
    PARTS,
    POSITION,
    SHARED,
    TILE,
    TILES,
    log_probabilities,
    programs_for_tiles,
)
from nanolit.inference.slots import ring_sizes
from nanolit.model.gpt import GPT
from nanolit.tokenizer.conversation import render_prompt
from tests.conftest import CLASSIC, MODERN, build_tiny_model

SAMPLED = {"temperature": 1.2, "top_k": 30, "top_p": 0.95, "repetition_penalty": 1.3}


@pytest.fixture(scope="module", params=["classic", "modern", "windows"])
def model(request) -> GPT:
    """Grouped heads in each; "windows" has one of 128 positions, shorter than many of the texts here."""
    if request.param == "windows":
        return build_tiny_model(MODERN, context=256)
    return build_tiny_model(CLASSIC if request.param == "classic" else MODERN)


@pytest.fixture(params=["read at once", "read during the next launch"])
def engine(request, model, byte_tokenizer) -> Engine:
    """As on a CPU, and as on a GPU, where the draws of one launch are read while the next runs."""
    engine = Engine(model, byte_tokenizer)
    engine.unread = int(request.param != "read at once")
    return engine


def random_prompt(rng: random.Random, longest: int) -> list[int]:
    return [256, *(rng.randrange(256) for _ in range(rng.randrange(longest)))]


def by_forwarding_everything(engine: Engine, prompt: list[int], max_tokens: int) -> list[int]:
    """Oracle: the model on the whole text, called anew for every token."""
    ids = list(prompt)
    with torch.no_grad():
        while len(ids) < len(prompt) + max_tokens and (
            len(ids) == len(prompt) or ids[-1] not in engine.end_ids
        ):
            ids.append(int(engine.model(torch.tensor([ids]))[0, -1].argmax()))
    return ids[len(prompt) :]


def run(engine: Engine, requests: dict[int, Request]) -> dict[int, Handle]:
    """Submit each request at its step and go on to the end of all."""
    handles: dict[int, Handle] = {}
    step = 0
    while len(handles) < len(requests) or not all(handle.done for handle in handles.values()):
        if step in requests:
            handles[step] = engine.submit(requests[step])
        engine.step()
        step += 1
    return handles


def test_there_is_a_window_shorter_than_the_texts(byte_tokenizer):
    assert ring_sizes(build_tiny_model(MODERN, context=256), 640) == [129, 257]


def test_greedy_tokens_of_requests_that_join_and_leave_equal_full_forwarding(engine):
    rng = random.Random(1)
    requests = {
        step: Request(prompt_ids=random_prompt(rng, 300), max_tokens=rng.randrange(1, 24), temperature=0)
        for step in [0, 1, 2, 5, 6, 7, 11, 19, 20, 21, 40]
    }
    for step, handle in run(engine, requests).items():
        request = requests[step]
        expected = by_forwarding_everything(engine, list(request.prompt_ids), request.max_tokens)
        assert handle.completions[0].ids == expected


def test_a_text_that_outgrows_its_window_equals_full_forwarding(engine):
    prompt = random_prompt(random.Random(3), 2)
    (completion,) = engine.complete(prompt, max_tokens=150, temperature=0)
    assert completion.ids == by_forwarding_everything(engine, prompt, 150)


def test_a_sampled_request_gives_the_same_tokens_whatever_else_is_in_the_batch(engine):
    rng = random.Random(2)
    request = Request(prompt_ids=random_prompt(rng, 200), max_tokens=30, num_samples=3, seed=5, **SAMPLED)
    (alone,) = engine.complete_all([request])
    others = {
        step: Request(
            prompt_ids=random_prompt(rng, 300),
            max_tokens=rng.randrange(1, 40),
            num_samples=rng.randrange(1, 4),
            seed=step,
            temperature=rng.choice([0, 0.5, 1.5]),
            top_k=rng.choice([None, 1, 50]),
        )
        for step in range(12)
    }
    handles = run(engine, others | {6: request})
    assert [c.ids for c in handles[6].completions] == [c.ids for c in alone]


def test_few_slots_give_the_same_tokens_as_many(engine, monkeypatch):
    rng = random.Random(4)
    requests = [
        Request(prompt_ids=random_prompt(rng, 60), max_tokens=12, num_samples=3, seed=n) for n in range(8)
    ]
    many = engine.complete_all(requests)
    monkeypatch.setattr(engine_module, "MAX_ROWS", 4)
    few = Engine(engine.model, engine.tokenizer)
    assert few.complete_all(requests) == many
    assert few.launcher is not None
    assert few.launcher.slots.rows == 4


def test_rows_of_a_tile_hold_the_same_keys_and_values_up_to_their_prompts_end(engine, monkeypatch):
    """At every step, while samples join, leave and move, and slots grow; kernels read only one row's."""
    rng, decode, seen = random.Random(8), Launcher.decode, set[tuple[int, int]]()

    def checked(launcher: Launcher, table: np.ndarray) -> object:
        tiles, members = int(table[0, TILES]), table[:, MEMBER].tolist()
        in_tiles = []
        for tile in range(tiles):
            rows = members[table[tile, FIRST] : table[tile + 1, FIRST]]
            (position,), (shared,) = (set(table[rows, column].tolist()) for column in (POSITION, SHARED))
            assert 0 < shared <= position
            assert 1 < len(rows) <= TILE
            for buffer in launcher.slots.buffers:
                size = buffer.size(3)
                places = torch.arange(max(0, position + 1 - size), shared) % size
                held = buffer[:, :, :, places]
                assert all(torch.equal(held[:, :, row], held[:, :, rows[0]]) for row in rows)
            seen.add((tiles, len(rows)))
            in_tiles += rows
        assert sorted(in_tiles) == table[:, SHARED].nonzero()[0].tolist()
        assert tiles * int(table[0, PARTS]) <= programs_for_tiles(len(table))
        return decode(launcher, table)

    monkeypatch.setattr(Launcher, "decode", checked)
    requests = {
        step: Request(
            prompt_ids=random_prompt(rng, 150 + 100 * step),
            max_tokens=rng.randrange(1, 40),
            num_samples=samples,
            temperature=1.0,
            seed=step,
            stop_ids=frozenset(range(0, 256, 8)),
            keep=step == 1,
        )
        for step, samples in enumerate([3, 1, 20, 2, 5])
    }
    run(engine, requests)
    run(engine, {0: Request(prompt_ids=[*requests[4].prompt_ids, 9], max_tokens=9, num_samples=4)})
    assert {number for number, _ in seen} >= {1, 2, 3}
    assert TILE in {rows for _, rows in seen}


def test_a_thousand_random_requests_leave_no_slot_memory_or_thread_behind(byte_tokenizer):
    """A tenth is cancelled on the way."""
    engine, rng = Engine(build_tiny_model(MODERN), byte_tokenizer), random.Random(7)
    threads, open_handles, submitted, rows = threading.active_count(), [], 0, set()
    while submitted < 1000 or open_handles:
        for _ in range(min(rng.randrange(60), 1000 - submitted)):
            request = Request(
                prompt_ids=random_prompt(rng, 40),
                max_tokens=rng.randrange(1, 12),
                seed=submitted,
                num_samples=rng.choice([1, 1, 3]),
                temperature=rng.choice([0, 1.0]),
            )
            open_handles.append(engine.submit(request))
            submitted += 1
            if rng.random() < 0.1:
                engine.cancel(rng.choice(open_handles))
        engine.step()
        assert engine.launcher is not None
        rows.add(engine.launcher.slots.rows)
        open_handles = [handle for handle in open_handles if not handle.done]
    assert (engine.rows, list(engine.waiting), list(engine.launched), len(engine.kept)) == ([], [], [], 0)
    assert engine.step() is False
    assert max(rows) <= 512, "slots are made for the texts at once, not for the thousand"
    assert threading.active_count() == threads


def test_cancelling_frees_the_slot_and_leaves_the_others_alone(engine):
    rng = random.Random(5)
    requests = [Request(prompt_ids=random_prompt(rng, 50), max_tokens=20, temperature=0) for _ in range(3)]
    expected = [engine.complete_all([request])[0] for request in requests]
    handles = [engine.submit(request) for request in requests]
    for _ in range(3):
        engine.step()
    engine.cancel(handles[0])
    assert handles[0].done
    assert len(engine.rows) <= 2
    while not all(handle.done for handle in handles):
        engine.step()
    assert [handle.completions for handle in handles[1:]] == expected[1:]
    assert handles[0].completions[0].ids == expected[0][0].ids[: len(handles[0].completions[0].ids)]


def test_a_generator_that_is_closed_frees_its_slot(engine):
    steps = engine.generate([256, 65], max_tokens=20, num_samples=2)
    assert engine.rows == []
    next(steps)
    assert engine.rows
    steps.close()
    assert engine.rows == []
    assert not engine.waiting


def test_a_kept_conversation_is_not_read_again_and_goes_on_the_same(engine, monkeypatch):
    """Oracle: a new engine that reads the whole history, past the window too."""
    rng = random.Random(6)
    history = random_prompt(rng, 10)
    for _ in range(5):
        (reply,) = engine.complete(history, max_tokens=30, temperature=0, keep=True)
        (expected,) = Engine(engine.model, engine.tokenizer).complete(history, max_tokens=30, temperature=0)
        assert reply.ids == expected.ids
        assert len(engine.kept) == 1
        history = [*history, *reply.ids, *(rng.randrange(256) for _ in range(10))]
    assert engine.decoder is not None
    read, starts = engine.decoder.read, []
    monkeypatch.setattr(engine.decoder, "read", lambda *a, **k: starts.append(k["start"]) or read(*a, **k))
    engine.complete(history, max_tokens=2, temperature=0, keep=True)
    assert starts == [len(history) - 11]  # the last reply's last token was never fed


def test_kept_conversations_are_evicted_oldest_first(engine, monkeypatch):
    prompts = [[256, letter] for letter in b"abc"]
    engine.complete(prompts[0], max_tokens=2, temperature=0, keep=True)
    ((content,),) = ([kept] for kept in engine.kept.values())
    size = sum(tensor.nbytes for tensor in content)
    monkeypatch.setattr(engine_module, "KEPT_SHARE", 2 * size / engine.budget)
    for prompt in prompts[1:]:
        engine.complete(prompt, max_tokens=2, temperature=0, keep=True)
    assert [list(text[:2]) for text in engine.kept] == prompts[1:]


def test_changed_weights_are_taken_over(byte_tokenizer):
    model = build_tiny_model(MODERN)
    engine = Engine(model, byte_tokenizer)
    engine.complete([256, 65], max_tokens=2, keep=True)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.1 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(9))
    (completion,) = engine.complete([256, 65], max_tokens=20, temperature=0)
    assert completion.ids == by_forwarding_everything(engine, [256, 65], 20)
    assert not engine.kept
    engine.release()
    assert engine.decoder is None
    (again,) = engine.complete([256, 65], max_tokens=20, temperature=0)
    assert again == completion


def test_what_can_never_fit_is_refused_with_the_numbers(engine, monkeypatch):
    monkeypatch.setattr(engine_module, "HOST_BYTES", 10_000)
    with pytest.raises(ValueError, match=r"needs a slot of .* MiB; there are .* MiB for slots: shorten"):
        engine.submit(Request(prompt_ids=[256] * 60, max_tokens=60))


@pytest.mark.parametrize("settings", [{"temperature": 0.8, "top_k": 9, "top_p": 0.8}, {"temperature": 1.0}])
def test_log_probabilities_are_those_of_scoring(engine, settings):
    """Oracle: the model on the whole text, under the distribution that was sampled from."""
    request = Request(prompt_ids=[256, 66, 67], max_tokens=20, log_probs=True, seed=3, **settings)
    ((completion,),) = engine.complete_all([request])
    ids = torch.tensor([[*request.prompt_ids, *completion.ids]])
    with torch.no_grad():
        scored = log_probabilities(engine.model(ids[:, :-1])[0, 2:], **{"top_k": None} | settings)
    expected = scored.gather(-1, ids[0, 3:, None])[:, 0]
    torch.testing.assert_close(torch.tensor(completion.log_probs), expected, atol=1e-4, rtol=1e-4)


def test_repetition_is_penalised_in_prompt_and_reply(engine):
    """Oracle: greedy choices of the penalised logits, the text forwarded anew for each."""
    prompt, penalty = [256, *b"aabbcc"], 2.5
    ids = list(prompt)
    with torch.no_grad():
        for _ in range(12):
            logits_V = engine.model(torch.tensor([ids]))[0, -1]
            for id in set(ids):
                logits_V[id] = logits_V[id] / penalty if logits_V[id] > 0 else logits_V[id] * penalty
            ids.append(int(logits_V.argmax()))
            if ids[-1] in engine.end_ids:
                break
    (completion,) = engine.complete(prompt, max_tokens=12, temperature=0, repetition_penalty=penalty)
    assert completion.ids == ids[len(prompt) :]


def test_a_sample_ends_with_its_stop_id_or_stop_text(taught_model, byte_tokenizer):
    engine = Engine(taught_model, byte_tokenizer)
    special = byte_tokenizer.special_id
    prompt = [
        *(byte_tokenizer.bos_id, special("<|user_start|>"), *b"Hello"),
        *(special("<|user_end|>"), special("<|assistant_start|>")),
    ]
    requests = [
        Request(prompt_ids=prompt, max_tokens=40, temperature=0, **stop)
        for stop in ({"stop_ids": frozenset(b"!")}, {"stop_texts": ("never", "I am")})
    ]
    (by_id,), (by_text,) = engine.complete_all(requests)
    assert (byte_tokenizer.decode(by_id.ids), by_id.ended) == ("Hi!", True)
    assert (byte_tokenizer.decode(by_text.ids), by_text.ended) == ("Hi! I am", False)


@pytest.mark.parametrize("unread", [0, 1])
def test_what_follows_a_call_is_the_models_own_after_the_forced_tokens(taught_model, byte_tokenizer, unread):
    """Oracle: the model on the whole text, for every token that was not forced; two texts beside it."""
    engine = Engine(taught_model, byte_tokenizer)
    engine.unread = unread
    prompts = [
        render_prompt({"messages": [{"role": "user", "content": text}]}, byte_tokenizer)
        for text in ("Hello", "Sum?", "Sum? ")
    ]
    requests = [Request(prompt_ids=prompt, max_tokens=60, temperature=0) for prompt in prompts]
    forced = 0
    for prompt, (completion,) in zip(prompts, engine.complete_all(requests), strict=True):
        with torch.no_grad():
            logits_TV = taught_model(torch.tensor([[*prompt, *completion.ids]]))[0, len(prompt) - 1 :]
        likeliest = logits_TV.argmax(dim=-1).tolist()
        for id, expected, sampled in zip(completion.ids, likeliest, completion.sampled, strict=False):
            assert id == expected or not sampled
        forced += completion.sampled.count(False)
    assert forced >= 4


def test_a_reply_ends_at_any_turn_token(byte_tokenizer):
    names = ("<|bos|>", "<|user_start|>", "<|user_end|>", "<|assistant_start|>", "<|assistant_end|>")
    assert Engine(build_tiny_model(MODERN), byte_tokenizer).end_ids == {
        byte_tokenizer.special_id(name) for name in names
    }


def test_logits_that_are_not_finite_fail_their_request_alone(byte_tokenizer):
    model = build_tiny_model(CLASSIC)
    with torch.no_grad():
        model.embedding.weight[65] = torch.nan
    engine = Engine(model, byte_tokenizer)
    bad, good = (engine.submit(Request(prompt_ids=[256, id], max_tokens=3)) for id in (65, 66))
    while engine.step():
        pass
    with pytest.raises(ValueError, match="not finite"):
        _ = bad.done
    assert good.done
