"""Measure how long an optimizer step communicates between GPUs, and how much of that is not overlapped."""

from typing import Any

Span = tuple[float, float]  # beginning and end, in microseconds


def communication(events: list[dict[str, Any]]) -> tuple[float, float]:
    """Return the microseconds in which NCCL's kernels run, and those in which no other kernel runs."""
    kernels = [kernel for kernel in events if kernel.get("cat") == "kernel"]
    spans = [(kernel["ts"], kernel["ts"] + kernel["dur"]) for kernel in kernels]
    sent = [span for span, kernel in zip(spans, kernels, strict=True) if "nccl" in kernel["name"]]
    others = [span for span, kernel in zip(spans, kernels, strict=True) if "nccl" not in kernel["name"]]
    return length(union(sent)), length(union(spans)) - length(union(others))


def union(spans: list[Span]) -> list[Span]:
    """Join spans that touch; return them in order."""
    joined: list[Span] = []
    for begin, end in sorted(spans):
        if joined and begin <= joined[-1][1]:
            joined[-1] = (joined[-1][0], max(joined[-1][1], end))
        else:
            joined.append((begin, end))
    return joined


def length(spans: list[Span]) -> float:
    return sum(end - begin for begin, end in spans)
