"""What the profile reads from a trace; it is written by hand here, as torch writes it on a GPU."""

import json

import pytest
import torch
from torch.profiler import ProfilerActivity, profile

from benchmarks.profile import Speeds, floor, kernels_of

SPEEDS = Speeds(bf16=1e12, fp8=2e12, memory=1e9)


def operator(number, name, shapes, types):
    arguments = {"External id": number, "Input Dims": shapes, "Input type": types}
    return {"cat": "cpu_op", "name": name, "args": arguments}


def kernel(number, name, microseconds, category="kernel"):
    return {"cat": category, "name": name, "dur": microseconds, "args": {"External id": number}}


BF16, FP8 = "c10::BFloat16", "c10::Float8_e4m3fn"


@pytest.mark.parametrize(
    ("name", "shapes", "types", "expected"),
    [
        ("aten::mm", [[100, 20], [20, 50]], [BF16, BF16], 2 * 100 * 20 * 50 / 1e12),
        ("aten::bmm", [[3, 100, 20], [3, 20, 50]], [BF16, BF16], 6 * 100 * 20 * 50 / 1e12),
        ("aten::addmm", [[100, 50], [100, 20], [20, 50]], [BF16] * 3, 2 * 100 * 20 * 50 / 1e12),
        ("aten::_scaled_mm", [[100, 20], [20, 50], [], []], [FP8, FP8, "float"], 100 * 20 * 50 / 1e12),
        ("nanolit::mlp", [[100, 20], [80, 20], [20, 80]], [BF16, "float", "float"], 2 * 100 * 20 * 80 / 1e12),
        ("nanolit::heads", [[100, 20], [5, 4], []], [BF16, "float", "Scalar"], (2 * 4000 + 80) / 1e9),
        ("nanolit::fp8_transposed", [[100, 20]], [FP8], 2 * 2000 / 1e9),
        ("nanolit::loss_and_gradients", [[100, 20], [50, 20]], [BF16, "float"], 2 * 100 * 50 * 2 / 1e9),
        ("aten::_flash_attention_backward", [[40, 6, 128]] * 3, [BF16] * 3, None),
        ("triton_poi_fused_add", [[100, 20]], [FP8], 2000 / 1e9),
        ("aten::empty", [[]], [""], None),
    ],
)
def test_floors_are_of_flops_or_bytes(name, shapes, types, expected):
    assert floor(operator(1, name, shapes, types), SPEEDS) == (expected and pytest.approx(expected))


@pytest.mark.parametrize(("window", "pairs"), [("-1", 55), ("2", 27), ("99", 55), ("0", 10)])
def test_attentions_floor_counts_what_ten_queries_see(window, pairs):
    shapes, types = [[3, 10, 4, 8]] * 3 + [[]], [BF16] * 3 + ["Scalar"]
    forward = operator(1, "nanolit::cudnn_attention", shapes, types)
    forward["args"]["Concrete Inputs"] = ["", "", "", window]
    assert floor(forward, SPEEDS) == pytest.approx(2 * 2 * 3 * 4 * 8 * pairs / 1e12)
    backward = {**forward, "name": "nanolit::cudnn_attention_backward"}
    assert floor(backward, SPEEDS) == pytest.approx(5 * 2 * 3 * 4 * 8 * pairs / 1e12)


def test_kernels_are_summed_by_name_beside_the_floor_of_what_launched_them():
    product = [[100, 20], [20, 50]]
    trace = {
        "traceEvents": [
            {"name": "process_name", "ph": "M"},
            operator(1, "aten::mm", product, [BF16, BF16]),
            kernel(1, "product", 30),
            kernel(1, "sum of parts", 10),
            operator(2, "aten::mm", product, [BF16, BF16]),
            kernel(2, "product", 50),
            operator(3, "nanolit::loss_and_gradients", [[100, 20], [50, 20]], [BF16, "float"]),
            kernel(3, "chunk", 5),
            kernel(3, "chunk", 5),
            kernel(99, "Memset", 2, category="gpu_memset"),
        ]
    }
    found = kernels_of(trace, repeats=2, speeds=SPEEDS)
    assert found["product"] == pytest.approx((0.04, 1, 1000 * 2 * 100 * 20 * 50 / 1e12))
    assert found["chunk"] == pytest.approx((0.005, 1, 1000 * 2 * 100 * 50 * 2 / 1e9 / 2))
    assert found["sum of parts"].floor is found["Memset"].floor is None


@pytest.mark.filterwarnings("ignore::UserWarning")  # the profiler's own
def test_torch_still_writes_what_is_read(tmp_path):
    """Names of the trace's fields, by the operators of a CPU."""
    with profile(activities=[ProfilerActivity.CPU], record_shapes=True) as profiler:
        torch.mm(torch.randn(32, 16).bfloat16(), torch.randn(16, 8).bfloat16())
    profiler.export_chrome_trace(str(tmp_path / "trace.json"))
    events = json.loads((tmp_path / "trace.json").read_text())["traceEvents"]
    (found,) = (one for one in events if one.get("name") == "aten::mm")
    assert found["cat"] == "cpu_op"
    assert floor(found, SPEEDS) == pytest.approx(2 * 32 * 16 * 8 / 1e12)
    assert "External id" in found["args"]
