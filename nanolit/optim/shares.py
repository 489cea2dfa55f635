"""One rank's share of the parameters: who owns what, and how gradients come in and parameters go out.

Gradients are summed over ranks by reduce-scatter, each rank updates its share with sharded state, and
all-gather returns the parameters (ZeRO stage 2, https://arxiv.org/abs/1910.02054). On one rank the share is
everything, and nothing is sent. `start_…` is asynchronous; `gradients` and `finish` wait.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor

from nanolit.machine.device import rank, world_size

# Elements; a smaller parameter is updated on every rank, because one all-reduce beats a reduce-scatter and an
# all-gather of a few numbers (nanochat's threshold, 2026-01-11, untuned)
SMALL = 1024

# State leaves and enters as slices of flattened full tensors, so a checkpoint serves any number of ranks
Read = Callable[[str, int, int], Tensor | None]


@dataclass(frozen=True)
class StateSlice:
    """Elements [start, start + len(tensor)) of a flattened state tensor of the given full shape."""

    tensor: Tensor
    start: int
    shape: tuple[int, ...]  # of the whole, so that a reader on other ranks knows what to expect


class Share:
    """One rank's part of something, with at most one collective under way."""

    _work: dist.Work | None = None

    def _wait(self) -> None:
        if self._work is not None:
            self._work.wait()
            self._work = None


class MatrixStack(Share):
    """Matrices of one shape, dealt out whole in blocks of ceil(N / ranks); the last ranks may get fewer.

    Whole, because Muon can't orthogonalise half a matrix. From here on the parameters live in one stack and
    their `data` are views of it, so that an update needs no copies. `buffers` are the state by name: zeros of
    the given shape for every owned matrix, stacked.
    """

    def __init__(
        self, names: list[str], params: list[Tensor], buffers: Mapping[str, tuple[int, ...]]
    ) -> None:
        self.params = params
        self.share = -(-len(params) // world_size())
        self.own = slice(self.share * rank(), self.share * (rank() + 1))
        self.names = names[self.own]
        self.buffers = {name: params[0].new_zeros(len(self.names), *shape) for name, shape in buffers.items()}
        self._sent_NRS: Tensor | None = None  # kept alive until the ranks have received it
        # Zeros fill up the last ranks' blocks: the collectives want equal shares
        self._stack_NRS = params[0].detach().new_zeros(self.share * world_size(), *params[0].shape)
        self._move_in()

    def start_reduce(self) -> None:
        """Start to sum the gradients over ranks."""
        self._gradients = [gradient(param) for param in self.params]
        if world_size() > 1:
            self._sent_NRS = self._stack(self._gradients)
            own_NRS = self._sent_NRS.new_empty(self.share, *self._sent_NRS.shape[1:])
            self._work = dist.reduce_scatter_tensor(own_NRS, self._sent_NRS, async_op=True)
            self._gradients = list(own_NRS[: len(self.names)])

    def gradients(self) -> list[Tensor]:
        """Wait for and return the owned matrices' gradients, summed over ranks."""
        self._wait()
        self._sent_NRS = None
        return self._gradients

    def own_params(self) -> Tensor:
        """Return the owned matrices, a view: changing them changes the parameters."""
        self._move_in()
        return self._stack_NRS[self.own][: len(self.names)]

    def start_gather(self) -> None:
        """Start to collect the updated matrices of all ranks."""
        if world_size() > 1:
            own_NRS = self._stack_NRS[self.own]
            # NCCL gathers in place; gloo wants an input apart from its output
            own_NRS = own_NRS if own_NRS.is_cuda else own_NRS.clone()
            self._work = dist.all_gather_into_tensor(self._stack_NRS, own_NRS, async_op=True)

    def finish(self) -> None:
        """Wait until the parameters have arrived and free the gradients."""
        self._wait()
        del self._gradients

    def _move_in(self) -> None:
        """Make every parameter a view of the stack: all at first, later those whose memory was replaced."""
        # Not strict: the padding at the end of the stack is nobody's. Loading weights or moving the model
        # gives parameters new memory, so this is looked at again before each update.
        for param, place_RS in zip(self.params, self._stack_NRS, strict=False):
            if param.data_ptr() != place_RS.data_ptr():
                place_RS.copy_(param.detach())
                param.data = place_RS

    def state_slices(self) -> Iterator[tuple[str, StateSlice]]:
        """Yield the owned state by "<parameter>/<buffer>"."""
        for buffer_name, buffer in self.buffers.items():
            for name, matrix in zip(self.names, buffer, strict=True):
                yield f"{name}/{buffer_name}", StateSlice(matrix.flatten(), 0, tuple(matrix.shape))

    def load_state_slices(self, read: Read) -> None:
        """Fill the owned state from `read`."""
        for buffer_name, buffer in self.buffers.items():
            for name, matrix in zip(self.names, buffer, strict=True):
                fill(matrix.view(-1), read, f"{name}/{buffer_name}", start=0)

    def _stack(self, matrices: list[Tensor]) -> Tensor:
        stack_NRS = matrices[0].new_empty(self.share * world_size(), *matrices[0].shape)
        # The one copy that sharding costs: gradients come in tensors of their own
        torch.stack(matrices, out=stack_NRS[: len(matrices)])
        stack_NRS[len(matrices) :].zero_()
        return stack_NRS


class FlatSlice(Share):
    """A slice of one flattened parameter: ceil(elements / ranks) on each rank, whatever its shape.

    AdamW treats every number by itself, so it may be cut anywhere; nanochat wants the rows to divide evenly.
    A parameter below SMALL is one slice, whole on every rank: updating it everywhere beats scattering it.
    """

    def __init__(self, name: str, param: Tensor) -> None:
        self.name = name
        self.param = param
        self.flat = param.detach().view(-1)
        world, this_rank = world_size(), rank()
        self.num_parts = 1 if self.flat.numel() < SMALL else world
        self.share = -(-self.flat.numel() // self.num_parts)
        self.start = min(self.share * (this_rank % self.num_parts), self.flat.numel())
        self.stop = min(self.start + self.share, self.flat.numel())
        # Whether this rank adds it to the sum over ranks of squared gradients: one rank for a whole parameter
        self.counts_in_norm = self.num_parts > 1 or this_rank == 0
        # Its own count, for Adam's bias correction: a phase that starts warm takes the count along
        self.num_steps = 0
        self.own = self.flat[self.start : self.stop]  # a view into the parameter
        self.exp_avg = torch.zeros_like(self.own)
        self.exp_avg_sq = torch.zeros_like(self.own)

    def start_reduce(self) -> None:
        """Start to sum the gradient over ranks."""
        self._full = self._own = gradient(self.param).reshape(-1)
        if self.num_parts > 1:
            self._full = pad(self._full, self.share * self.num_parts)
            self._own = self._full.new_empty(self.share)
            self._work = dist.reduce_scatter_tensor(self._own, self._full, async_op=True)
        elif world_size() > 1:
            self._full = self._own = self._full.clone()
            self._work = dist.all_reduce(self._own, async_op=True)

    def gradients(self) -> Tensor:
        """Wait for and return the owned slice's gradient, summed over ranks."""
        self._wait()
        return self._own[: self.stop - self.start]

    def start_gather(self) -> None:
        """Start to collect the updated slices of all ranks, which a whole parameter does without."""
        if self.num_parts > 1:
            # Without padding the parameter itself receives the result, and `finish` has nothing to copy
            self._own = pad(self.own, self.share)
            in_place = self.share * self.num_parts == self.flat.numel()
            self._full = self.flat if in_place else self.flat.new_empty(self.share * self.num_parts)
            self._work = dist.all_gather_into_tensor(self._full, self._own, async_op=True)

    def finish(self) -> None:
        """Wait until the parameter has arrived and free what was sent."""
        self._wait()
        if self.num_parts > 1 and self._full is not self.flat:
            self.flat.copy_(self._full[: self.flat.numel()])
        del self._full, self._own

    def state_slices(self) -> Iterator[tuple[str, StateSlice]]:
        """Yield the owned state by "<parameter>/<buffer>"; rank 0 adds the number of steps."""
        shape = tuple(self.param.shape)
        if rank() == 0:
            yield f"{self.name}/step", StateSlice(torch.tensor([self.num_steps]), 0, (1,))
        if self.counts_in_norm and self.stop > self.start:
            yield f"{self.name}/exp_avg", StateSlice(self.exp_avg, self.start, shape)
            yield f"{self.name}/exp_avg_sq", StateSlice(self.exp_avg_sq, self.start, shape)

    def load_state_slices(self, read: Read) -> None:
        """Fill the owned state from `read`."""
        num_steps = torch.zeros(1, dtype=torch.int64)
        fill(num_steps, read, f"{self.name}/step", start=0)
        self.num_steps = int(num_steps)
        fill(self.exp_avg, read, f"{self.name}/exp_avg", start=self.start)
        fill(self.exp_avg_sq, read, f"{self.name}/exp_avg_sq", start=self.start)


def gradient(param: Tensor) -> Tensor:
    """Return the accumulated gradient; zeros for a parameter that took no part in the loss."""
    # Zeros rather than nothing: the collectives of all ranks must match
    return torch.zeros_like(param) if param.grad is None else param.grad


def pad(x: Tensor, length: int) -> Tensor:
    """Append zeros to x along its first dimension up to length; return x itself if it has that length."""
    if x.size(0) == length:
        return x
    return torch.cat([x, x.new_zeros(length - x.size(0), *x.shape[1:])])


def fill(buffer: Tensor, read: Read, key: str, *, start: int) -> None:
    """Fill the flat buffer with what `read` gives for [start, start + len(buffer)), or with zeros."""
    if buffer.numel() == 0:  # a rank whose share is empty
        return
    saved = read(key, start, start + buffer.numel())
    if saved is None:
        buffer.zero_()
    elif saved.shape != buffer.shape:
        raise ValueError(
            f"optimizer state {key!r} has shape {tuple(saved.shape)}, this model needs "
            f"{tuple(buffer.shape)}; load a checkpoint of the same model"
        )
    else:
        buffer.copy_(saved)
