"""Launch decode steps on the device: upload the table of the rows, download the draws later.

On CUDA the step is captured as a graph once per bucket of rows and replayed. d20 has about a thousand
operators a step, and launching them one by one takes longer than reading all weights.
"""

import functools
import warnings
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

from nanolit.inference.decode import Decoder, padded
from nanolit.inference.sampling import (
    COLUMNS,
    FORCED,
    LOG_PROBS,
    POSITION,
    TILES,
    TURN,
    Needs,
    needs_of,
    programs_for_tiles,
)
from nanolit.inference.slots import Slots

MAX_GRAPHS = 32  # kept; the least recently used goes first. Sampling settings and long texts add shapes
FIRST_REACH = 256  # positions of the shortest graph of a prompt or a plain step; the next has twice as many
LONGEST_PROMPT = 2048  # read by a graph; longer ones keep the GPU busy without one
TURNS = 4  # launches whose draws the mail holds; the engine leaves at most two unread
T = TypeVar("T")

Draws = tuple[Tensor, Tensor | None]  # ids and, where asked for, their log-probabilities


def bucket_of(count: int) -> int:
    """Return the next power of two."""
    return 1 << (count - 1).bit_length()


class Launcher:
    """Runs decode steps on `slots`, by graphs on CUDA. New slots need a new launcher."""

    def __init__(self, decoder: Decoder, slots: Slots, *, plain: bool = False) -> None:
        self.decoder, self.slots, device = decoder, slots, decoder.model.device
        self.captures = self.reads_by_graph = device.type == "cuda" and not plain
        self.graphs: OrderedDict[tuple[int, int, Needs, int], tuple[torch.cuda.CUDAGraph, Draws]]
        self.graphs = OrderedDict()
        # Padded length → a prompt's inputs, and its graph with the logits once recorded
        self.readers: dict[int, tuple[list[Tensor], list[tuple[torch.cuda.CUDAGraph, Tensor]]]] = {}
        # Graphs share memory: they never overlap, and draws are copied before the next launch
        self.pool = torch.cuda.graph_pool_handle() if self.captures else None
        self.table = torch.zeros(slots.rows, COLUMNS, dtype=torch.int32, device=device)
        # The device's table after the launched steps. The sampling kernel advances it, so few steps upload it
        self.expected, self.turn = np.zeros((slots.rows, COLUMNS), np.int32), 0
        # Kernels write draws into host memory: a copy after every step would delay the next one
        self.mail = (
            torch.zeros(TURNS, slots.rows, dtype=torch.int64, pin_memory=self.captures),
            torch.zeros(TURNS, slots.rows, pin_memory=self.captures),
        )

    def decode(self, table: np.ndarray) -> Callable[[], list[list]]:
        """Feed each row its forced token or its newest draw, and draw the next one; see `download`.

        Fills the table's column TURN.
        """
        rows = len(table)
        bucket = min(bucket_of(rows), self.slots.rows)
        with_tiles = table[0, TILES] and self.decoder.takes_tiles
        tile_programs = programs_for_tiles(bucket) if with_tiles else 0
        if not self.captures or self.decoder.fused_rows < bucket:
            return self._decode_plainly(table, bucket, tile_programs)
        table[:, TURN] = self.turn
        expected = self.expected[:bucket]
        if not np.array_equal(expected[:rows], table) or expected[rows:].any():
            expected[:rows], self.expected[rows:] = table, 0
            self.upload(expected)
        # One graph serves all settings and lengths: kernels look up what each row needs
        needs = Needs(penalty=self.slots.seen_BV is not None, log_probs=True)
        try:
            self._replay(bucket, self.slots.capacity, needs, tile_programs)
        except Exception as error:  # fall back to the next slower way
            what = "tiles of samples" if tile_programs else f"our kernels from {bucket} rows on"
            warnings.warn(f"decoding without {what}, slower: {' '.join(str(error).split())}", stacklevel=2)
            if tile_programs:
                self.decoder.takes_tiles = False
                self.decoder.counts.zero_()
            else:
                self.decoder.fused_rows = bucket // 2
            self.graphs.clear()
            return self.decode(table)
        ready, draws = torch.cuda.Event(), [mailed[self.turn % TURNS, :rows].numpy() for mailed in self.mail]
        ready.record()
        draws = draws if table[:, LOG_PROBS].any() else draws[:1]
        self.turn += 1
        expected[:rows, FORCED] = -1
        expected[:rows, POSITION] += 1
        expected[:rows, TURN] += 1
        return lambda: ready.synchronize() or [draw.tolist() for draw in draws]

    def _decode_plainly(self, table: np.ndarray, bucket: int, tile_programs: int) -> Callable[[], list[list]]:
        rows, longest = len(table), int(table[:, POSITION].max()) + 1
        if not self.captures:
            ragged = bool((table[:, POSITION] != longest - 1).any())
            draws = self.step(
                self.upload(table), longest, needs_of(table), ragged=ragged, tile_programs=tile_programs
            )
            return self.download(*draws)
        self.upload(np.pad(table, ((0, bucket - rows), (0, 0))))
        self.expected[:] = 0  # makes the kernels' next step upload its table
        needs, reach = needs_of(table), bucket_of(max(longest, FIRST_REACH))
        needs = replace(needs, largest_k=needs.largest_k and bucket_of(needs.largest_k))
        if self.decoder.fused_rows:
            needs = Needs(penalty=self.slots.seen_BV is not None, log_probs=True)
        try:
            draws = self._replay(bucket, min(reach, self.slots.capacity), needs, 0)
        except Exception as error:  # a capture failed
            reason = " ".join(str(error).split())
            warnings.warn(f"decoding without CUDA graphs, slower: {reason}", stacklevel=2)
            self.captures = False
            self.graphs.clear()
            return self.decode(table)
        return self.download(*(draw if draw is None else draw[:rows] for draw in draws))

    def read(self, prompts: Sequence[Sequence[int]], *, row: int, start: int) -> Tensor:
        """Do the same as Decoder.read, with a graph for a single prompt, padded to the next bucket.

        Launching the operators one by one takes longer than running them: 14 ms for 1,024 tokens of d20 on an
        H200. The logits are valid until the next call.
        """
        length = min(bucket_of(max(len(prompts[0]), FIRST_REACH)), self.slots.capacity)
        if not self.reads_by_graph or len(prompts) > 1 or start or length > LONGEST_PROMPT:
            return self.decoder.read(prompts, self.slots, row=row, start=start)
        if length not in self.readers:
            shapes = ((1, length + 1), (1,), (1,))  # ids, the prompt's length, its slot
            self.readers[length] = (
                [torch.zeros(s, dtype=torch.int64, device=self.table.device) for s in shapes],
                [],
            )
        inputs, captured = self.readers[length]
        for target, values in zip(inputs, (padded(prompts, length), [len(prompts[0])], [row]), strict=True):
            target.copy_(torch.as_tensor(values).pin_memory(), non_blocking=True)
        try:
            if not captured:
                ids_BT, ends_B, rows_B = inputs
                run = functools.partial(self.decoder.read_padded, ids_BT, ends_B, self.slots, rows_B)
                captured.append(self._record(run))
        except Exception as error:
            reason = " ".join(str(error).split())
            warnings.warn(f"reading prompts without CUDA graphs, slower: {reason}", stacklevel=2)
            self.reads_by_graph = False
            return self.decoder.read(prompts, self.slots, row=row, start=start)
        graph, logits_BV = captured[0]
        graph.replay()
        return logits_BV

    def step(
        self, table: Tensor, longest: int, needs: Needs, *, ragged: bool, tile_programs: int = 0
    ) -> Draws:
        """Run one step on device tensors only, so that a graph can capture it.

        `tile_programs`: see Decoder.fused_step.
        """
        slots, decoder, B = self.slots, self.decoder, len(table)
        seen_BV = slots.seen_BV[:B] if needs.penalty and slots.seen_BV is not None else None
        softcap = 0.0
        if decoder.fused_rows >= B:
            logits_BV = decoder.fused_step(slots, table, tile_programs=tile_programs)
            softcap = decoder.model.config.softcap
        else:
            forced_B, positions_B = table[:, FORCED].long(), table[:, POSITION].long()
            ids_B = torch.where(forced_B >= 0, forced_B, slots.drawn_B[:B]).clamp(min=0)  # -1: not finite
            logits_BV = decoder.step(slots, ids_B, positions_B, longest=longest, ragged=ragged)
            if seen_BV is not None:
                seen_BV.scatter_(1, ids_B[:, None], True)
        drawn_B = slots.drawn_B[:B]
        mail = self.mail if self.captures and decoder.fused_rows >= B else None
        rest = {"seen_BV": seen_BV, "drawn_B": drawn_B, "softcap": softcap, "mail": mail}
        return drawn_B, decoder.draw(logits_BV, table, needs, **rest)

    def upload(self, table: np.ndarray) -> Tensor:
        """Copy the table to the device memory that graphs read, and return it."""
        host = torch.from_numpy(table.copy())
        if self.captures:
            host = host.pin_memory()  # so that the copy does not block
        return self.table[: len(table)].copy_(host, non_blocking=True)

    def download(self, *draws: Tensor | None) -> Callable[[], list[list]]:
        """Start copying draws to the host. The returned function waits for them and gives them as lists."""
        given = [draw for draw in draws if draw is not None]
        if not given[0].is_cuda:
            copies = [draw.tolist() for draw in given]  # copied now: the next launch overwrites them
            return lambda: copies
        host = [torch.empty_like(draw, device="cpu", pin_memory=True) for draw in given]
        for target, draw in zip(host, given, strict=True):
            target.copy_(draw, non_blocking=True)
        ready = torch.cuda.Event()
        ready.record()
        return lambda: ready.synchronize() or [draw.tolist() for draw in host]

    def _replay(self, bucket: int, reach: int, needs: Needs, tile_programs: int) -> Draws:
        """Replay the graph of a step on `bucket` rows of the table, capturing it first if it is new."""
        key = (bucket, reach, needs, tile_programs)
        if key not in self.graphs:
            if len(self.graphs) == MAX_GRAPHS:
                self.graphs.popitem(last=False)
            self.graphs[key] = self._capture(*key)
        self.graphs.move_to_end(key)
        graph, draws = self.graphs[key]
        graph.replay()
        return draws

    def _capture(
        self, bucket: int, reach: int, needs: Needs, tile_programs: int
    ) -> tuple[torch.cuda.CUDAGraph, Draws]:
        """Capture the step after a rehearsal, which tries kernels and lets libraries initialise."""
        # A step changes these; everything else it writes again with the same values
        states = (self.slots.drawn_B, self.slots.previous_BC, self.table)
        before = [state.clone() for state in states]

        def run() -> Draws:
            return self.step(self.table[:bucket], reach, needs, ragged=True, tile_programs=tile_programs)

        def rehearse() -> None:
            try:
                fused, table = bucket <= self.decoder.fused_rows, self.table[:bucket]
                if fused and not self.decoder.agrees(
                    self.slots, table, longest=reach, tile_programs=tile_programs
                ):
                    raise RuntimeError("their logits differ from the plain step's")
                run()
            finally:
                for state, old in zip(states, before, strict=True):
                    state.copy_(old)

        return self._record(run, rehearse)

    def _record(
        self, run: Callable[[], T], rehearse: Callable[[], object] | None = None
    ) -> tuple[torch.cuda.CUDAGraph, T]:
        """Run `rehearse`, by default `run` itself, then capture `run` as a graph."""
        stream = side_stream(self.table.device)
        stream.wait_stream(torch.cuda.current_stream())
        try:
            with torch.cuda.stream(stream):
                (rehearse or run)()
        finally:
            torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self.pool, stream=stream, capture_error_mode="thread_local"):
            result = run()
        return graph, result


@functools.cache
def side_stream(device: torch.device) -> torch.cuda.Stream:
    """Return the one stream for captures: cuBLAS keeps 32 MiB for every stream that it has seen."""
    return torch.cuda.Stream(device)
