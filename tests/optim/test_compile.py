"""The update kernels under torch.compile: one graph each, and a schedule compiles nothing anew."""

import pytest
import torch
from torch import Tensor

from nanolit.optim.muon_adamw import MuonAdamW, build_groups
from nanolit.optim.updates import adamw_update, muon_update

MODERN = {
    "orthogonalization": "polar_express",
    "equilibrate_rows": True,
    "normalize_update": True,
    "cautious": True,
}
SETTINGS = {
    "matrix": {"kind": "muon", "lr": 0.02, "weight_decay": 0.1},
    "table": {"kind": "adamw", "lr": 0.01, "betas": (0.8, 0.95), "eps": 1e-10, "weight_decay": 0.01},
}


class CountingBackend:
    """Runs what Dynamo captured as it is, and counts the graphs."""

    def __init__(self) -> None:
        self.num_graphs = 0

    def __call__(self, graph: torch.fx.GraphModule, inputs: list[Tensor]):
        self.num_graphs += 1
        return graph.forward


@pytest.fixture(autouse=True)
def _fresh_compiler():
    torch._dynamo.reset()


def rates(count: int, step: int) -> list[Tensor]:
    return [torch.tensor(0.5 / (index + step + 2)) for index in range(count)]


def test_muon_is_one_graph_whatever_the_schedule():
    backend = CountingBackend()
    compiled = torch.compile(muon_update, backend=backend, fullgraph=True, dynamic=False)
    params_NRS, momentum_NRS, second_moment = torch.ones(2, 8, 4), torch.zeros(2, 8, 4), torch.zeros(2, 8, 1)
    for step in range(3):
        grads_NRS = torch.full((2, 8, 4), float(step))
        tensors = (params_NRS, grads_NRS, momentum_NRS, second_moment)
        compiled(*tensors, *rates(4, step), **MODERN, dtype=torch.float32)
    assert backend.num_graphs == 1


def test_adamw_is_one_graph_whatever_schedule_and_length():
    backend = CountingBackend()
    compiled = torch.compile(adamw_update, backend=backend, fullgraph=True, dynamic=True)
    for step in range(3):
        compiled(*(torch.ones(100 + step) for _ in range(4)), *rates(7, step))
    assert backend.num_graphs == 1


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_compiled_steps_equal_eager_ones_on_the_gpu():
    """Oracle: the same optimizer uncompiled; there are more shapes than Dynamo keeps graphs by default."""

    def train(compile: bool) -> dict[str, Tensor]:
        generator = torch.Generator().manual_seed(0)
        shapes = {f"m{n}-{rows}": (rows, 64) for rows in range(32, 128, 8) for n in range(2)}
        shapes |= {"table": (1000, 64), "scalars": (5,)}
        params = {
            k: torch.nn.Parameter(torch.randn(s, generator=generator).cuda()) for k, s in shapes.items()
        }
        roles = {name: "matrix" if name.startswith("m") else "table" for name in params}
        groups = build_groups(params.items(), roles, SETTINGS)
        optimizer = MuonAdamW(groups, **MODERN, variance_reduction=True, clip_norm=1.0, compile=compile)
        for step in range(4):
            optimizer.set_multipliers(lr=1 / (step + 1), momentum=0.9, weight_decay=1.0)
            for param in params.values():
                param.grad = torch.randn(param.shape, generator=generator).cuda()
            optimizer.step()
        return params  # type: ignore[return-value]

    eager, compiled = train(False), train(True)
    for name in eager:
        difference = (eager[name] - compiled[name]).norm() / eager[name].norm()
        assert difference < 1e-3, name  # bfloat16 inside: the step itself is 1e-2 of the norm
