"""What a trace says of communication; the spans are written by hand, as torch writes them on GPUs."""

import pytest

from benchmarks.communication import communication


def kernel(name: str, begin: float, end: float) -> dict:
    return {"cat": "kernel", "name": name, "ts": begin, "dur": end - begin}


@pytest.mark.parametrize(
    ("others", "exposed"),
    [
        ([], 50),
        ([(0, 100)], 0),
        ([(0, 15), (12, 20)], 40),  # 10 of the first are hidden
        ([(25, 35), (70, 80), (90, 95)], 30),  # 10 of each are hidden
    ],
)
def test_exposed_is_what_no_other_kernel_hides(others, exposed):
    """Communication from 10 to 30, from 20 to 40 on another stream, and from 75 to 95."""
    sent = [("ncclDevKernel_ReduceScatter_Sum_f32", 10, 30), ("ncclDevKernel_AllGather", 20, 40)]
    events = [kernel(*one) for one in [*sent, ("ncclDevKernel_AllGather", 75, 95)]]
    events += [kernel("product", *span) for span in others]
    events += [{"cat": "cpu_op", "name": "nccl:all_gather", "ts": 0, "dur": 99}, {"name": "process_name"}]
    assert communication(events) == pytest.approx((50, exposed))
