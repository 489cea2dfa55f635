"""One decode step on the device: the table of the rows goes up, the draws come down later.

Where the GPU has CUDA graphs the step is captured once for each bucket of rows and replayed: d20 has about a
thousand operators a step, and launching them one by one takes longer than reading all weights.
"""

import warnings
from collections import OrderedDict
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from nanolit.inference.decode import Decoder, Reach
from nanolit.inference.sampling import Needs, Rows, sample
from nanolit.inference.slots import Slots

# The columns of the table, int32; from UNIFORM on the bits are float32
FORCED, POSITION, TOP_K, UNIFORM, TEMPERATURE, TOP_P, PENALTY, COLUMNS = range(8)
MAX_GRAPHS = 32  # the longest unused one makes room: settings of sampling and long texts add shapes
FIRST_REACH = 256  # positions; each longer graph of the plain step has twice as many


@dataclass(frozen=True)
class Draws:
    """The draws of a launch, perhaps still being computed."""

    ids_B: Tensor
    log_probs_B: Tensor | None
    ready: torch.cuda.Event | None

    def wait(self) -> tuple[list[int], list[float] | None]:
        """Return ids and log-probabilities."""
        if self.ready is not None:
            self.ready.synchronize()
        return self.ids_B.tolist(), None if self.log_probs_B is None else self.log_probs_B.tolist()


def bucket_of(rows: int) -> int:
    """Return the power of two that `rows` are padded to."""
    return 1 << (rows - 1).bit_length()


class Launcher:
    """Runs decode steps of `slots`, by graphs on CUDA; replace it when the slots are."""

    def __init__(self, decoder: Decoder, slots: Slots, *, plain: bool = False) -> None:
        self.decoder, self.slots = decoder, slots
        device = decoder.model.device
        self.graphs: OrderedDict[tuple, tuple[torch.cuda.CUDAGraph, Tensor, Tensor | None]] = OrderedDict()
        self.captures = device.type == "cuda" and not plain
        # Graphs share their memory: they never overlap, and a launch's draws are copied before the next one
        self.pool = torch.cuda.graph_pool_handle() if self.captures else None
        self.table = torch.zeros(slots.rows, COLUMNS, dtype=torch.int32, device=device)

    def decode(self, table: np.ndarray, needs: Needs) -> Draws:
        """Feed each row its forced token or its newest draw, and draw the next."""
        positions = table[:, POSITION]
        longest = int(positions.max()) + 1
        if not self.captures:
            reach = Reach(longest, ragged=bool((positions != longest - 1).any()))
            return self.download(*self.step(self.upload(table), needs, reach))
        bucket = min(bucket_of(len(table)), self.slots.rows)
        self.upload(np.pad(table, ((0, bucket - len(table)), (0, 0))))
        # The kernels end where a text ends, whatever its length: they need one graph for all
        longest = self.slots.capacity if self.decoder.fused else bucket_of(max(longest, FIRST_REACH))
        reach = Reach(min(longest, self.slots.capacity), ragged=True)
        needs = replace(needs, largest_k=bucket_of(needs.largest_k) if needs.largest_k else 0)
        ids_B, log_probs_B = self._replay(bucket, needs, reach)
        return self.download(
            ids_B[: len(table)], log_probs_B if log_probs_B is None else log_probs_B[: len(table)]
        )

    def step(self, table: Tensor, needs: Needs, reach: Reach) -> tuple[Tensor, Tensor | None]:
        """Decode on device tensors alone."""
        slots, B = self.slots, len(table)
        forced_B, positions_B = table[:, FORCED].long(), table[:, POSITION].long()
        ids_B = torch.where(forced_B >= 0, forced_B, slots.drawn_B[:B]).clamp(min=0)  # -1: not finite
        logits_BV = self.decoder.step(slots, ids_B, positions_B, reach)
        seen_BV = None if slots.seen_BV is None else slots.seen_BV[:B]
        if needs.penalty and seen_BV is not None:
            seen_BV.scatter_(1, ids_B[:, None], True)
        ids_B, log_probs_B = sample(logits_BV, settings(table), needs, seen_BV=seen_BV)
        slots.drawn_B[:B] = ids_B
        return ids_B, log_probs_B

    def upload(self, table: np.ndarray) -> Tensor:
        """Return the table on the device, in the place that graphs read."""
        host = torch.from_numpy(table.copy())
        if self.captures:
            host = host.pin_memory()  # so that the copy is queued, not waited for
        return self.table[: len(table)].copy_(host, non_blocking=True)

    def download(self, ids_B: Tensor, log_probs_B: Tensor | None) -> Draws:
        """Begin to copy draws to the host."""
        if not ids_B.is_cuda:
            return Draws(ids_B, log_probs_B, None)
        host = [
            None if x is None else torch.empty_like(x, device="cpu", pin_memory=True)
            for x in (ids_B, log_probs_B)
        ]
        for target, source in zip(host, (ids_B, log_probs_B), strict=True):
            if target is not None and source is not None:
                target.copy_(source, non_blocking=True)
        ready = torch.cuda.Event()
        ready.record()
        assert host[0] is not None
        return Draws(host[0], host[1], ready)

    def _replay(self, bucket: int, needs: Needs, reach: Reach) -> tuple[Tensor, Tensor | None]:
        """Run the step on `bucket` rows of the table by its graph, capturing it first if it is new."""
        key = (bucket, needs, reach)
        if key not in self.graphs:
            if not self.captures:
                return self.step(self.table[:bucket], needs, reach)
            if len(self.graphs) == MAX_GRAPHS:
                self.graphs.popitem(last=False)
            try:
                self.graphs[key] = self._capture(bucket, needs, reach)
            except RuntimeError as error:
                warnings.warn(f"decoding without CUDA graphs, slower: {error}", stacklevel=2)
                self.captures = False
                return self.step(self.table[:bucket], needs, reach)
        self.graphs.move_to_end(key)
        graph, ids_B, log_probs_B = self.graphs[key]
        graph.replay()
        return ids_B, log_probs_B

    def _capture(
        self, bucket: int, needs: Needs, reach: Reach
    ) -> tuple[torch.cuda.CUDAGraph, Tensor, Tensor | None]:
        """Record the step. Nothing is run but a rehearsal, whose every effect the replay repeats."""
        drawn_B, previous_BC = self.slots.drawn_B.clone(), self.slots.previous_BC.clone()
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(
            stream
        ):  # libraries set themselves up at a first call, which no graph may hold
            self.step(self.table[:bucket], needs, reach)
        torch.cuda.current_stream().wait_stream(stream)
        self.slots.drawn_B.copy_(drawn_B)
        self.slots.previous_BC.copy_(previous_BC)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self.pool, capture_error_mode="thread_local"):
            ids_B, log_probs_B = self.step(self.table[:bucket], needs, reach)
        return graph, ids_B, log_probs_B


def settings(table: Tensor) -> Rows:
    """Return a table's columns of sampling."""
    numbers = table.view(torch.float32)
    return Rows(
        uniform_B=numbers[:, UNIFORM],
        temperature_B=numbers[:, TEMPERATURE],
        top_k_B=table[:, TOP_K],
        top_p_B=numbers[:, TOP_P],
        penalty_B=numbers[:, PENALTY],
    )
