"""The decode step's kernels equal the plain step, and compile for GPUs that are not here."""

import importlib.util
import inspect
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.skipif(
    not importlib.util.find_spec("triton"), reason="needs Triton, which torch brings on Linux"
)

# Triton's interpreter runs kernels on a CPU; it must be switched on before Triton is imported
INTERPRETED = """
import sys, torch
from nanolit.inference.decode import Decoder
from nanolit.inference.slots import Slots
from tests.conftest import CLASSIC, MODERN, build_tiny_model
model = build_tiny_model(CLASSIC if sys.argv[1] == "classic" else MODERN, context=int(sys.argv[2]))
decoder = Decoder(model)
with torch.inference_mode():
    plain, fused = (Slots(model, rows=5, capacity=320) for _ in range(2))
    for slots in (plain, fused):
        generator = torch.Generator().manual_seed(3)
        for state in (*slots.buffers, slots.previous_BC):
            state.normal_(generator=generator)
    ids_B, positions_B = torch.tensor([3, 99, 250, 7, 1]), torch.tensor([0, 1, 63, 130, 300])
    expected = decoder.step(plain, ids_B, positions_B, longest=301, ragged=True)
    found = decoder._fused_step(fused, ids_B, positions_B)
torch.testing.assert_close(found, expected, atol=2e-5, rtol=1e-4)
for one, other in zip(fused.buffers, plain.buffers):
    torch.testing.assert_close(one, other)
if model.smear_gate is not None:
    torch.testing.assert_close(fused.previous_BC, plain.previous_BC)
assert not decoder.counts.any()
"""


@pytest.mark.parametrize("words", [("classic", "64"), ("modern", "64"), ("modern", "256")])
def test_the_fused_step_equals_the_plain_one_in_tritons_interpreter(words):
    """At the first position, in a full ring, with grouped heads, logits, keys and values alike."""
    environment = os.environ | {"TRITON_INTERPRET": "1", "PYTHONPATH": str(Path(__file__).parents[2])}
    subprocess.run([sys.executable, "-c", INTERPRETED, *words], env=environment, check=True, timeout=240)


BF16, FP32, INT64 = "*bf16", "*fp32", "*i64"
NUMBERS = {"softcap": "fp32", "epsilon": "fp32", "qk_scale": "fp32", "B": "i32", "out_stride": "i32"}
NUMBERS |= {"row_stride": "i32", "R": "i32"}
POINTERS = {"ids": INT64, "positions": INT64, "sums": FP32, "counts": "*i32", "r": FP32, "s": FP32}
POINTERS |= {"gate": FP32, "scale": FP32, "b": FP32}
EVERYTHING = {
    "_begin": {"C": 1280, "GATES": 24, "SMEAR": True, "SCALARS": True, "BLOCK": 2048},
    "_product": {
        **{"N": 5120, "C": 1280, "NORMALIZED": True, "SQUARED": True, "RESIDUAL": True, "MIX": True},
        **{"KEPT": True, "BACKOUT": True, "SOFTCAP": True, "LINES": 32, "LINE": 64},
    },
    "_attend": {"X": 3850, "H": 10, "K": 10, "D": 128, "TABLE": True, "PARTS": 8, "KEYS": 64},
}


@pytest.mark.parametrize("capability", [80, 86, 90])
@pytest.mark.parametrize("name", EVERYTHING)
def test_the_kernels_compile_for_an_a10g_and_fit_in_its_shared_memory(name, capability):
    """86 is an A10G's, whose programs have 99 KiB; everything that a kernel can do is on."""
    import triton
    from triton.backends.compiler import GPUTarget

    from nanolit.kernels import decode_kernel

    kernel = getattr(decode_kernel, name)
    tiles = decode_kernel.TILES if name == "_product" else [(0, 0, 0, 0, 4, 1)]
    for _, rows, columns, inner, warps, stages in tiles:
        constants = EVERYTHING[name] | {"DEPENDENT": capability >= 90}
        if name == "_product":
            constants |= {"ROWS": rows, "COLUMNS": columns, "INNER": inner}
        arguments = inspect.signature(kernel.fn).parameters
        signature = {
            a: "constexpr" if a in constants else NUMBERS.get(a) or POINTERS.get(a, BF16) for a in arguments
        }
        source = triton.compiler.ASTSource(kernel, signature, constants)
        options = {"num_warps": warps, "num_stages": stages}
        compiled = triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options)
        assert compiled.metadata.shared <= 99 * 1024
        assert ("griddepcontrol" in compiled.asm["ptx"]) == (capability >= 90)
