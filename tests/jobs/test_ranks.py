"""What is said of several ranks that ended: the one that began it, whatever order torchrun saw."""

import signal

import pytest
from torch.distributed.elastic.multiprocessing.errors import ProcessFailure

from nanolit.jobs.processes import LEFT
from nanolit.jobs.ranks import first_of

TOLD = -signal.SIGTERM


@pytest.mark.parametrize(
    ("codes", "said"),
    [
        ([LEFT, LEFT, TOLD, -signal.SIGKILL], "rank 3 was killed by SIGKILL, the first of them"),
        ([TOLD, 1, LEFT, LEFT], "rank 1 ended with code 1, the first of them"),
        ([LEFT, TOLD], f"rank 0 ended with code {LEFT}, the first of them"),
    ],
)
def test_the_rank_that_began_it_is_named(codes: list[int], said: str) -> None:
    failures = {rank: failure(rank, code) for rank, code in enumerate(codes)}
    assert first_of(failures) == said


def test_of_ranks_that_failed_by_themselves_the_earliest_is_named() -> None:
    failures = {rank: failure(rank, code) for rank, code in enumerate([1, 2, 3])}
    for one, seconds in zip(failures.values(), (7, 5, 6), strict=True):
        one.timestamp = seconds
    assert first_of(failures).startswith("rank 1 ended with code 2")


def failure(rank: int, code: int) -> ProcessFailure:
    one = ProcessFailure(local_rank=rank, pid=rank, exitcode=code, error_file="")
    one.timestamp = 0  # within one second, as torchrun sees them
    return one
