"""The decode step's kernels equal the plain step, and compile for GPUs that are not here."""

import importlib.util
import inspect
import os
import re
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import pytest
import torch

pytestmark = pytest.mark.skipif(
    not importlib.util.find_spec("triton"), reason="needs Triton, which torch brings on Linux"
)

# Triton's interpreter runs kernels on a CPU; it must be switched on before Triton is imported
INTERPRETED = """
import sys, torch
from nanolit.inference.decode import Decoder
from nanolit.inference.slots import Slots
from nanolit.kernels import decode_kernel
from tests.conftest import CLASSIC, MODERN, build_tiny_model, multiply_row_by_row
decode_kernel.multiply = multiply_row_by_row
decode_kernel._split = lambda texts, places: (int(sys.argv[3]), 64, 4)
decode_kernel.FEW = int(sys.argv[4])
from nanolit.inference.sampling import COLUMNS, PARTS, POSITION, note_tiles
model = build_tiny_model(CLASSIC if sys.argv[1] == "classic" else MODERN, context=int(sys.argv[2]))
decoder = Decoder(model)
with torch.inference_mode():
    plain, fused = (Slots(model, rows=5, capacity=320) for _ in range(2))
    for slots in (plain, fused):
        generator = torch.Generator().manual_seed(3)
        for state in (*slots.buffers, slots.previous_BC):
            state.normal_(generator=generator)
        slots.seen_BV = torch.zeros(5, model.vocab_size, dtype=torch.bool)
    ids_B, positions_B = torch.tensor([3, 99, 250, 7, 1]), torch.tensor([0, 1, 63, 130, 300])
    tiles, unread = [], []
    if shared := int(sys.argv[5]):  # rows 1, 2 and 4 continue one prompt
        positions_B[[1, 2, 4]] = 200
        tiles = [([1, 2, 4], shared)]
        for buffer, other in zip(plain.buffers, fused.buffers):
            places = torch.arange(max(201 - buffer.size(3), 0), shared) % buffer.size(3)
            for row in (2, 4):  # the fused step's hold other numbers, to be read by nobody
                buffer[:, :, row, places] = other[:, :, 1, places]
                unread.append((other[:, :, row], buffer[:, :, row], places))
    expected = decoder.step(plain, ids_B, positions_B, longest=301, ragged=True)
    table = torch.zeros(5, COLUMNS, dtype=torch.int32)
    table[:, 0], table[:, POSITION] = torch.tensor([3, -1, 250, 7, -1]), positions_B
    note_tiles(table.numpy(), tiles)
    if sys.argv[3] == "1":  # one program walks through all that is shared
        table[:, PARTS] = 1
    fused.drawn_B.copy_(ids_B)
    found = decoder.capped(decoder.fused_step(fused, table, tile_programs=17 if shared else 0))
    for one, other, places in unread:
        one[:, :, places] = other[:, :, places]
torch.testing.assert_close(found, expected, atol=2e-5, rtol=1e-4)
for one, other in zip(fused.buffers, plain.buffers):
    torch.testing.assert_close(one, other)
if model.smear_gate is not None:
    torch.testing.assert_close(fused.previous_BC, plain.previous_BC)
assert not decoder.counts.any()
assert fused.seen_BV.nonzero().tolist() == [[row, id] for row, id in enumerate(ids_B.tolist())]
"""
SAMPLED = """
import sys, numpy as np, torch
from nanolit.inference.sampling import COLUMNS, LOG_PROBS, PENALTY, POSITION, SEED, TEMPERATURE, TOP_K
from nanolit.inference.sampling import TOP_P, TURN, needs_of, sample
from nanolit.kernels import decode_kernel
decode_kernel.NARROW = int(sys.argv[1])
generator, rng = torch.Generator().manual_seed(1), np.random.default_rng(1)
for vocab in (70, 1000, 2048):
    rows = 60
    logits_BV = 3 * torch.randn(rows, vocab, generator=generator)
    logits_BV[rows // 2 :] = (4 * logits_BV[rows // 2 :]).round() / 4  # with ties
    logits_BV[7, 3] = torch.nan
    logits_BV[8] = torch.tensor(2**31 - 1, dtype=torch.int32).view(torch.float32)  # NaN, as GPUs make it
    table = np.zeros((rows, COLUMNS), np.int32)
    numbers = table.view(np.float32)
    table[:, TOP_K], table[:, LOG_PROBS] = rng.choice([0, 1, 5, 50, vocab], rows), 1
    table[8, TOP_K] = 5
    table[:, SEED], table[:, SEED + 1] = rng.integers(-(2**31), 2**31, (2, rows))
    table[:, POSITION], table[:, TURN] = rng.integers(0, 3000, rows), 6
    numbers[:, TEMPERATURE] = rng.choice([0.5, 1.0, 1.7], rows)
    numbers[:, TOP_P], numbers[:, PENALTY] = rng.choice([1.0, 0.9, 0.3], rows), rng.choice([1.0, 1.4], rows)
    numbers[::9, TEMPERATURE], table[::9, TOP_K], numbers[::9, TOP_P] = 0, 0, 1
    seen_BV = torch.rand(rows, vocab, generator=generator) < 0.3
    device_table = torch.from_numpy(table)
    expected_B, expected_log_probs_B = sample(logits_BV, device_table, needs_of(table), seen_BV=seen_BV)
    found_B, log_probs_B = torch.zeros(rows, dtype=torch.int64), torch.zeros(rows)
    mail = torch.zeros(4, rows + 3, dtype=torch.int64), torch.zeros(4, rows + 3)
    moved_on = device_table.clone()
    moved_on[:, 0], moved_on[:, POSITION], moved_on[:, TURN] = -1, moved_on[:, POSITION] + 1, 7
    decode_kernel.sample(logits_BV, device_table, seen_BV, found_B, log_probs_B, mail=mail)
    assert found_B.tolist() == expected_B.tolist() == mail[0][2, :rows].tolist()
    assert torch.equal(device_table, moved_on)
    assert torch.equal(log_probs_B.nan_to_num(), mail[1][2, :rows].nan_to_num())
    assert all(len(one.any(dim=1).nonzero()) == 1 for one in mail)
    mail[0].zero_()
    empty = torch.zeros(rows, COLUMNS, dtype=torch.int32)  # pads a batch: moves nothing and mails nothing
    decode_kernel.sample(logits_BV, empty, seen_BV, found_B.clone(), log_probs_B.clone(), mail=mail)
    assert not mail[0].any()
    assert not empty.any()
    finite = expected_B >= 0
    assert finite.sum() == rows - 2
    torch.testing.assert_close(log_probs_B[finite], expected_log_probs_B[finite], atol=2e-5, rtol=1e-4)
"""


MULTIPLIED = """
import torch
from nanolit.kernels import decode_kernel
from tests.conftest import multiply_row_by_row
decode_kernel.multiply = multiply_row_by_row
generator = torch.Generator().manual_seed(0)
norm = lambda x: torch.nn.functional.rms_norm(x, (x.size(1),))
for rows in (1, 3):
    for width in (96, 512):
        x, (r, s) = torch.randn(rows, width, generator=generator), torch.tensor([0.7, 0.2])
        weight = torch.randn(48, width, generator=generator)
        out, kept = torch.full((2, rows, 48), torch.nan)
        decode_kernel.product(x, weight, out, normalized=True, squared=True)
        torch.testing.assert_close(out, (norm(x) @ weight.T).relu().square(), atol=1e-3, rtol=1e-3)
        residual, x0 = torch.randn(2, rows, 48, generator=generator)
        decode_kernel.product(x, weight, out, residual_BC=residual, mix=(r, s, x0), kept_BC=kept)
        torch.testing.assert_close(kept, residual + x @ weight.T, atol=1e-3, rtol=1e-3)
        torch.testing.assert_close(out, r * kept + s * x0, atol=1e-3, rtol=1e-3)
x, x0, middle, out, kept = torch.randn(5, 7, 96, generator=generator)
r, s, b = torch.tensor([0.7, 0.2, 0.3])
expected = r * x + s * x0
old = x.clone()
decode_kernel.prepare(x, out, mix=(r, s, x0), kept_BC=kept, backout=(b, middle))
torch.testing.assert_close(kept, old)
torch.testing.assert_close(x, expected)
torch.testing.assert_close(out, norm(expected - b * middle))
hidden = torch.randn(7, 1000, generator=generator)
expected = hidden.relu().square()
decode_kernel.square(hidden)
torch.testing.assert_close(hidden, expected)
"""
ANSWERED = """
import torch
from nanolit.inference import decode
from nanolit.inference.engine import Engine
from nanolit.inference.request import Request
from nanolit.kernels import decode_kernel
from nanolit.tokenizer.bpe import Tokenizer
from tests.conftest import MODERN, build_tiny_model, multiply_row_by_row
decode_kernel.multiply = multiply_row_by_row
tokenizer = Tokenizer([bytes([byte]) for byte in range(256)])
settings = [{}, {"top_k": 5, "log_probs": True}, {"temperature": 0}]
settings += [{"repetition_penalty": 1.5, "top_p": 0.8}]
requests = [
    Request(prompt_ids=[256, *range(60, 60 + 9 * n)], max_tokens=5, seed=n, **one)
    for n, one in enumerate(settings)
]
model = build_tiny_model(MODERN)
expected = Engine(model, tokenizer).complete_all(requests)
decode.FUSED_DTYPE, decode.triton_capability = torch.float32, lambda _: (8, 6)
decode.TRIALS, decode.STRIDE, decode_kernel.PROGRAMS = 3, 80, 1  # the interpreter is slow
engine = Engine(model, tokenizer)
found = engine.complete_all(requests)
can = engine.decoder.fused_rows and engine.decoder.reads_by_kernels
assert can, "the kernels were tried, and did not agree"
for group, other in zip(found, expected):
    for one, two in zip(group, other):
        assert one.ids == two.ids
        log_probs = [torch.tensor(completion.log_probs) for completion in (one, two)]
        torch.testing.assert_close(*log_probs, atol=1e-4, rtol=1e-4)
"""


def interpret(code: str, *words: str) -> None:
    environment = os.environ | {"TRITON_INTERPRET": "1", "PYTHONPATH": str(Path(__file__).parents[2])}
    subprocess.run([sys.executable, "-c", code, *words], env=environment, check=True, timeout=240)


@pytest.mark.parametrize(
    "words",
    [
        ("classic", "64", "4", "16", "0"),
        ("modern", "64", "1", "16", "0"),
        ("modern", "256", "4", "0", "0"),
        ("classic", "64", "4", "16", "100"),
        ("modern", "256", "1", "16", "190"),
    ],
)
def test_the_fused_step_equals_the_plain_one_in_tritons_interpreter(words):
    """At the first position, in a full ring, with grouped heads, logits, keys and values alike.

    The last numbers are the parts of a text's keys, 1 walks through all in one; the rows that our own
    products serve; and the positions that three of five rows share.
    """
    interpret(INTERPRETED, *words)


def test_an_engine_that_has_tried_the_kernels_gives_the_same_tokens_in_tritons_interpreter():
    """Oracle: an engine with the plain step; requests of all settings in one batch."""
    interpret(ANSWERED)


def test_products_of_any_number_of_rows_equal_torchs_in_tritons_interpreter():
    """Every tile: norm and activation, and norm after backout with soft cap."""
    interpret(MULTIPLIED)


@pytest.mark.parametrize("narrow", ["128", "4"])
def test_draws_equal_those_of_plain_sampling_in_tritons_interpreter(narrow):
    """Rows of all settings, with ties and one that is not finite: ids and log-probabilities.

    `narrow` chunks of logits are looked into by themselves; with more, all are.
    """
    interpret(SAMPLED, narrow)


BF16, FP32, INT64 = "*bf16", "*fp32", "*i64"
NUMBERS = {"softcap": "fp32", "epsilon": "fp32", "qk_scale": "fp32", "B": "i32", "count": "i32"}
NUMBERS |= dict.fromkeys(
    ("most", "row_stride", "R", "V", "N", "C", "GATES", "X", "H", "K", "MAILED", "sharing"), "i32"
)
POINTERS = {"ids": INT64, "drawn": INT64, "sums": FP32, "counts": "*i32", "r": FP32, "s": FP32}
POINTERS |= {"gate": FP32, "scale": FP32, "b": FP32, "rows": "*i32", "seen": "*u8", "log_probs": FP32}
POINTERS |= {"notes": FP32, "mailed_ids": INT64, "mailed_log_probs": FP32}
AROUND = {"C": 5120, "NORMALIZED": True, "SQUARED": True, "RESIDUAL": True, "MIX": True, "KEPT": True}
DRAWN = {"COLUMNS": 15, "SEEN": True, "SOFTCAP": True, "CHUNKS": 1024, "CHUNK": 32}
ATTENDED = {"COLUMNS": 15, "D": 128, "TABLE": True, "ROOM": 32, "KEYS": 32}
EVERYTHING = [
    ("_survey", 4, 1, {"SURVEYED": 64} | DRAWN),
    ("_sample", 16, 1, {"NARROW": 128, "TURNS": 4, "MAIL": True} | DRAWN),
    ("_begin", 4, 1, {"COLUMNS": 15, "SEEN": True, "SMEAR": True, "SCALARS": True, "BLOCK": 2048}),
    ("_multiply_a_row", 4, 1, AROUND | {"COLUMNS": 4, "INNER": 1024, "CHUNKS": 5}),
    ("_multiply", 0, 1, AROUND | {"ROWS": 8}),
    ("_multiply", 0, 1, AROUND | {"C": 1280, "ROWS": 16}),
    ("_multiply", 0, 1, AROUND | {"C": 1664, "ROWS": 8}),  # no whole number of chunks
    ("_multiply", 0, 1, AROUND | {"C": 1664, "ROWS": 16}),
    ("_prepare", 4, 1, {"MIX": True, "KEPT": True, "BACKOUT": True, "BLOCK": 2048}),
    ("_square", 8, 1, {"BLOCK": 4096}),
    ("_attend", 2, 1, ATTENDED | {"TILE": 0}),
    ("_attend", 2, 1, ATTENDED | {"TILE": 16}),
]


@pytest.mark.parametrize("capability", [80, 86, 90])
@pytest.mark.parametrize("case", range(len(EVERYTHING)))
def test_the_kernels_compile_for_an_a10g_and_others_and_fit_in_their_shared_memory(
    case, capability, monkeypatch
):
    """86 is an A10G's; everything that a kernel can do is on."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.experimental.gluon._runtime import GluonASTSource

    from nanolit.kernels import decode_kernel, product_kernel

    (name, warps, stages, constants), limit = EVERYTHING[case], {80: 163, 86: 99, 90: 227}[capability] * 1024
    module = product_kernel if name == "_multiply" else decode_kernel
    kernel, constants = getattr(module, name), constants | {"DEPENDENT": int(capability >= 90)}
    if name == "_multiply":
        monkeypatch.setattr(product_kernel, "shared_bytes", lambda _: limit)
        warps, most = product_kernel.tile_of(constants["C"], constants["ROWS"], torch.device("cpu"))
        constants |= {"WARPS": warps, "STAGES": most}
    arguments = inspect.signature(kernel.fn).parameters
    signature = {
        a: "constexpr" if a in constants else NUMBERS.get(a) or POINTERS.get(a, BF16) for a in arguments
    }
    aligned = {  # as launches find them: only then are loads copied ahead
        (place,): [["tt.divisibility", 16]]
        for place, argument in enumerate(arguments)
        if signature[argument] not in ("constexpr", "fp32")
    }
    language = GluonASTSource if name == "_multiply" else triton.compiler.ASTSource
    source = language(kernel, signature, constants, aligned)
    options = {"num_warps": warps, "num_stages": stages}
    compiled = triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options)
    assert compiled.metadata.shared <= limit
    ptx = compiled.asm["ptx"]
    assert ("griddepcontrol" in ptx) == (capability >= 90)
    if "_multiply" in name and capability >= 90:  # weights are on the way before the wait
        assert ptx.index("cp.async" if name == "_multiply" else "ld.global") < ptx.index(
            "griddepcontrol.wait"
        )
    if name == "_multiply":  # a slot is filled again after all warps have read it
        order = re.findall(r"cp\.async\.cg|bar\.sync|ld\.shared", ptx)
        assert ("ld.shared", "cp.async.cg") not in pairwise(order)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("rows", [1, 2, 5, 8, 11, 16])
@pytest.mark.parametrize(("N", "C"), [(256, 128), (3840, 1280), (1280, 5120), (4992, 1664), (1664, 6656)])
def test_products_equal_float32_on_a_gpu(rows, N, C):
    """Of few rows, with all that can stand around them: nothing is left unwritten."""
    from nanolit.kernels import decode_kernel

    generator = torch.Generator("cuda").manual_seed(rows)
    options = {"generator": generator, "device": "cuda", "dtype": torch.bfloat16}
    x_BC, weight_NC = torch.randn(rows, C, **options), 0.02 * torch.randn(N, C, **options)
    residual_BN, x0_BN = torch.randn(2, rows, N, **options)
    r, s = torch.tensor([0.7, 0.2], device="cuda")
    out_BN, kept_BN = torch.full((2, rows, N), torch.nan, device="cuda", dtype=torch.bfloat16)
    x, weight = x_BC.float(), weight_NC.float()
    decode_kernel.product(x_BC, weight_NC, out_BN, normalized=True, squared=True)
    assert distance(out_BN, (torch.nn.functional.rms_norm(x, (C,)) @ weight.T).relu().square()) < 0.01
    decode_kernel.product(
        x_BC, weight_NC, out_BN, residual_BC=residual_BN, mix=(r, s, x0_BN), kept_BC=kept_BN
    )
    expected = residual_BN.float() + x @ weight.T
    assert distance(kept_BN, expected) < 0.01
    assert distance(out_BN, r * expected + s * x0_BN.float()) < 0.01


def distance(found, expected):
    return ((found.float() - expected).norm() / expected.norm()).item()
