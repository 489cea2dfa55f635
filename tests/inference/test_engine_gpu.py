"""On a GPU: kernels and graphs against the plain step, and an engine that leaves nothing behind."""

import copy
import random

import numpy as np
import pytest
import torch

from nanolit.inference.decode import MAX_ROWS, Decoder
from nanolit.inference.engine import Engine
from nanolit.inference.launch import Launcher
from nanolit.inference.request import Request
from nanolit.inference.sampling import (
    COLUMNS,
    FORCED,
    LOG_PROBS,
    PENALTY,
    POSITION,
    SEED,
    TEMPERATURE,
    TILES,
    TOP_K,
    TOP_P,
    needs_of,
    note_tiles,
    programs_for_tiles,
    sample,
)
from nanolit.inference.slots import Slots
from nanolit.model.gpt import GPT, GPTConfig
from tests.conftest import CLASSIC, MODERN

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]


@pytest.fixture(scope="module", params=["classic", "modern", "grouped"])
def model(request) -> GPT:
    return build_model(CLASSIC if request.param == "classic" else MODERN, 1 + (request.param != "grouped"))


def build_model(recipe: dict, kv_heads: int) -> GPT:
    """Four layers of width 256 in bfloat16; modern ones have a window of 128 positions."""
    with torch.device("meta"):
        gpt = GPT(
            GPTConfig(
                depth=4,
                width=256,
                heads=2,
                kv_heads=kv_heads,
                vocab_size=265,
                context=512,
                softcap=15.0,
                vocab_multiple=64,
                **recipe | {"window_pattern": "L" if recipe is CLASSIC else "SSSL"},
            )
        )
    gpt.to_empty(device="cuda")
    gpt.initialize(torch.Generator().manual_seed(0), dtype=torch.bfloat16)
    with torch.no_grad():
        for parameter in gpt.parameters():
            parameter += (
                0.03 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)).cuda()
            )
    return gpt


@pytest.fixture
def engine(model, byte_tokenizer) -> Engine:
    return Engine(model, byte_tokenizer)


@pytest.mark.parametrize("samples", [1, 2, 7, 40])
@pytest.mark.parametrize("rows", [1, 2, 5, 16, 40, 64, 130, 600])
def test_every_row_of_the_kernels_is_as_near_to_float32_as_the_plain_step_is(model, rows, samples):
    """Oracle: the plain step in float32, on the same weights, keys and values; `samples` of each prompt."""
    decoder = Decoder(model)
    assert decoder.fused_rows == MAX_ROWS, "they were tried, and did not run or agree"
    wide = copy.deepcopy(model)
    wide.prepare(dtype=torch.float32)
    generator = torch.Generator("cuda").manual_seed(2)
    texts = [torch.randint(high, (rows,), generator=generator, device="cuda") for high in (256, 512)]
    table = torch.zeros(rows, COLUMNS, dtype=torch.int32, device="cuda")
    prompts = [(range(n, min(n + samples, rows)), int(texts[1][n]) * 3 // 4) for n in range(0, rows, samples)]
    for places, _ in prompts:
        texts[1][places.start : places.stop] = texts[1][places.start].clone()
    table[:, FORCED], table[:, POSITION] = texts
    noted = table.cpu()
    note_tiles(noted.numpy(), prompts)
    table.copy_(noted)
    tiles = programs_for_tiles(rows) if rows > 1 and samples > 1 else 0
    assert bool(tiles) == bool(noted[0, TILES])
    with torch.inference_mode():
        slots = [Slots(gpt, rows=rows, capacity=512) for gpt in (model, model, wide)]
        for mine, *others in zip(*(one.buffers for one in slots), strict=True):
            mine.normal_(generator=generator)
            for places, shared in prompts:
                first, R = places.start, mine.size(3)
                of_prompt = torch.arange(max(0, int(texts[1][first]) + 1 - R), shared, device="cuda") % R
                mine[:, :, first : places.stop, of_prompt] = mine[:, :, first : first + 1, of_prompt]
            for other in others:
                other.copy_(mine)
        found = decoder.capped(decoder.fused_step(slots[0], table, tile_programs=tiles))
        plain = Decoder(model, plain=True).step(slots[1], *texts, longest=512, ragged=True)
        exact = Decoder(wide, plain=True).step(slots[2], *texts, longest=512, ragged=True)
    errors = [(logits - exact).norm(dim=1) / exact.norm(dim=1) for logits in (found, plain)]
    worst = [one.argsort(descending=True)[:6].tolist() for one in errors]
    said = "; ".join(
        f"{name}: median {one.median():.4f}, most {one.max():.4f} in {six} at {texts[1][six].tolist()}"
        for name, one, six in zip(("kernels", "plain"), errors, worst, strict=True)
    )
    assert errors[0].max() < 2 * errors[1].median() + 0.02, said
    for one, other in zip(slots[0].buffers, slots[2].buffers, strict=True):
        assert (one.float() - other).norm() < 0.01 * other.norm()
    assert not decoder.counts.any()


@pytest.mark.parametrize("vocab", [265, 32_768, 50_000])
def test_draws_of_the_kernel_equal_plain_ones(vocab):
    """Oracle: sampling.sample in float64 sums; 500 rows of all settings, of which rounding may move two."""
    generator, rng = torch.Generator("cuda").manual_seed(1), np.random.default_rng(1)
    rows = 500
    logits_BV = 3 * torch.randn(rows, vocab, generator=generator, device="cuda")
    table = np.zeros((rows, COLUMNS), np.int32)
    numbers = table.view(np.float32)
    table[:, TOP_K], table[:, LOG_PROBS] = rng.choice([0, 1, 50, 200], rows), 1
    table[:, SEED], numbers[:, TEMPERATURE] = np.arange(rows), rng.choice([0, 0.5, 1.0, 1.7], rows)
    numbers[:, TOP_P], numbers[:, PENALTY] = rng.choice([1.0, 0.9, 0.3], rows), 1
    table[numbers[:, TEMPERATURE] == 0, TOP_K], numbers[numbers[:, TEMPERATURE] == 0, TOP_P] = 0, 1
    settings = torch.from_numpy(table).cuda()
    from nanolit.kernels import decode_kernel  # imports Triton

    expected_B, expected_log_probs_B = sample(logits_BV, settings, needs_of(table))
    found_B, log_probs_B = torch.zeros_like(expected_B), torch.zeros(rows, device="cuda")
    decode_kernel.sample(logits_BV, settings, None, found_B, log_probs_B)
    same = found_B == expected_B
    assert same.sum() >= rows - 2
    torch.testing.assert_close(log_probs_B[same], expected_log_probs_B[same], atol=1e-3, rtol=1e-3)


def test_greedy_tokens_differ_from_the_models_only_where_two_logits_are_two_roundings_apart(engine):
    """Oracle: the model on the whole text in bfloat16; ragged requests, kernels and graphs on."""
    rng = random.Random(1)
    requests = [
        Request(prompt_ids=[256, *(rng.randrange(256) for _ in range(length))], max_tokens=64, temperature=0)
        for length in (1, 3, 30, 126, 127, 128, 200, 380)
    ]
    for request, (completion,) in zip(requests, engine.complete_all(requests), strict=True):
        ids_BT = torch.tensor([[*request.prompt_ids, *completion.ids]], device="cuda")
        with torch.no_grad():
            logits_TV = engine.model(ids_BT[:, :-1])[0, len(request.prompt_ids) - 1 :]
        for logits_V, id in zip(logits_TV, completion.ids, strict=True):
            best = logits_V.max().item()
            if logits_V[id].item() < best:
                assert best - logits_V[id].item() <= 2 * 2**-7 * abs(best)


def test_graphs_give_the_same_tokens_as_single_launches(model, byte_tokenizer):
    """With the same kernels, so to the bit; sampled in every way that a row can be."""
    tokens = []
    for captures in (True, False):
        engine, rng = Engine(model, byte_tokenizer), random.Random(3)
        requests = [
            Request(
                prompt_ids=[256, *(rng.randrange(256) for _ in range(40))],
                max_tokens=40,
                num_samples=8,
                seed=seed,
                temperature=1.0,
                **settings,
            )
            for seed, settings in enumerate(({}, {"top_k": 20}, {"top_p": 0.8}, {"repetition_penalty": 1.2}))
        ]
        handles = [engine.submit(request) for request in requests]
        engine.step()
        engine.step()
        assert engine.table[0, TILES] == 4, "the samples of each prompt are not attended to together"
        assert engine.launcher is not None
        assert engine.launcher.captures
        engine.launcher.captures = captures
        while not all(handle.done for handle in handles):
            engine.step()
        assert bool(engine.launcher.graphs) >= captures
        tokens.append([completion.ids for handle in handles for completion in handle.completions])
    same = sum(one == other for one, other in zip(*tokens, strict=True))
    assert same >= 30, f"{same} of 32 are equal"  # rows are padded for graphs: a tile may round otherwise


def test_a_prompt_read_by_a_graph_gives_the_logits_of_plain_reading(model):
    launcher, rng = Launcher(Decoder(model), Slots(model, rows=2, capacity=512)), random.Random(4)
    for length in (1, 100, 129, 256, 257, 500, 100):
        prompt = [256, *(rng.randrange(256) for _ in range(length - 1))]
        with torch.inference_mode():
            expected = launcher.decoder.read([prompt], launcher.slots, row=0)
            found = launcher.read([prompt], row=1, start=0)
        assert (found - expected).norm() < 0.02 * expected.norm()
        for buffer in launcher.slots.buffers:
            kept = buffer[:, :, :, : min(length, buffer.size(3))].float()
            assert (kept[:, :, 1] - kept[:, :, 0]).norm() < 0.02 * kept[:, :, 0].norm()
    assert launcher.captures
    assert sorted(launcher.readers) == [256, 512]


def test_refreshed_weights_are_read_by_the_captured_graphs(model, byte_tokenizer):
    engine = Engine(model, byte_tokenizer)
    settings = {"max_tokens": 30, "temperature": 0}
    before = engine.complete([256, 65], **settings)
    launcher = engine.launcher
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.05 * torch.randn_like(parameter)
    engine.refresh()
    after = engine.complete([256, 65], **settings)
    assert engine.launcher is launcher
    assert after == Engine(model, byte_tokenizer).complete([256, 65], **settings)
    assert after != before


def test_five_hundred_requests_leave_no_memory_behind(engine):
    rng = random.Random(5)

    def serve() -> None:
        requests = [
            Request(
                prompt_ids=[256, *(rng.randrange(256) for _ in range(rng.randrange(200)))],
                max_tokens=rng.randrange(1, 60),
                num_samples=rng.choice([1, 4]),
                seed=seed,
                temperature=rng.choice([0, 1]),
            )
            for seed in range(500)
        ]
        engine.complete_all(requests)
        engine.release()

    serve()  # libraries keep workspaces
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    serve()
    torch.cuda.synchronize()
    assert torch.cuda.memory_allocated() <= before
    assert (engine.rows, list(engine.waiting), list(engine.launched)) == ([], [], [])
