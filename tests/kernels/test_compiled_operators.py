"""Our operators and autograd.Functions, compiled as training compiles them, beside plain torch in float32.

Every input is a square matrix (and `mix` has two scalars more), so that any two inputs may be one tensor.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import combinations

import pytest
import torch
import torch.nn.functional as F
from test_attention import stand_ins  # noqa: F401, a fixture
from test_twins import split_in_torch
from torch import Tensor

from nanolit.kernels import fp8, fp8_block, heads, mlp
from nanolit.kernels.attention import agrees, attend, attend_by_sdpa, rotary_tables
from nanolit.kernels.loss import summed_loss
from nanolit.kernels.residual import mix

SIZE = 128  # rows and columns: fp8 takes multiples of 16
H, K, D = 4, 2, 16  # (H + 2K) D = 128
EXACT, BFLOAT16, FP8 = 1e-5, 2e-2, 0.15  # relative, in Frobenius norm; a lost gradient of two is above 0.4

Function = Callable[..., tuple[Tensor, ...]]


@dataclass(frozen=True)
class Operator:
    """`ours` and its `twin` take the same inputs; the first `num_rows` of them have a row for each token.

    `runs` says whether this GPU has the kernel.
    """

    ours: Function
    twin: Function
    num_matrices: int
    most: float
    num_rows: int = 1
    num_scalars: int = 0
    runs: Callable[[], bool] = lambda: True

    def inputs(self, device: str, *, seed: int = 0) -> list[Tensor]:
        """Between -1 and 1: the fp8 forms of MLP and heads take rows with an RMS of at most 1."""
        generator = torch.Generator().manual_seed(seed)
        shapes = [(SIZE, SIZE)] * self.num_matrices + [(self.num_scalars,)] * bool(self.num_scalars)
        return [(2 * torch.rand(shape, generator=generator) - 1).to(device) for shape in shapes]


def mix_ours(x: Tensor, x0: Tensor, scalars: Tensor) -> tuple[Tensor]:
    return (mix(x, x0, scalars[0], scalars[1]),)


def mix_twin(x: Tensor, x0: Tensor, scalars: Tensor) -> tuple[Tensor]:
    return (scalars[0] * x + scalars[1] * x0,)


def targets_for(x_NC: Tensor) -> Tensor:
    targets_N = 37 * torch.arange(len(x_NC), device=x_NC.device) % SIZE
    return torch.where(targets_N % 5 == 3, -1, targets_N)


def loss_ours(dtype: torch.dtype, *, in_fp8: bool) -> Function:
    def ours(x_NC: Tensor, weight_VC: Tensor) -> tuple[Tensor]:
        return (summed_loss(x_NC.to(dtype), weight_VC, targets_for(x_NC), softcap=15.0, in_fp8=in_fp8),)

    return ours


def loss_twin(x_NC: Tensor, weight_VC: Tensor) -> tuple[Tensor]:
    logits_NV = 15 * torch.tanh(F.linear(x_NC, weight_VC) / 15)
    return (F.cross_entropy(logits_NV, targets_for(x_NC), ignore_index=-1, reduction="sum"),)


def tables(x_NC: Tensor) -> list[Tensor]:
    return [one.to(x_NC.device) for one in rotary_tables(len(x_NC), head_dim=D, base=1e4)]


def heads_ours(qkv_NX: Tensor) -> tuple[Tensor, ...]:
    cos_TE, sin_TE = (one.bfloat16() for one in tables(qkv_NX))
    return heads.split_heads(qkv_NX.bfloat16()[None], cos_TE, sin_TE, heads=H, kv_heads=K, qk_scale=1.2)


def heads_twin(qkv_NX: Tensor) -> tuple[Tensor, ...]:
    return split_in_torch(qkv_NX[None], *tables(qkv_NX), H=H, K=K)


def fp8_heads_ours(x_NC: Tensor, weight_XC: Tensor) -> tuple[Tensor, ...]:
    """As block.Attention calls it: other numbers of tokens go without fp8."""
    if not fp8.whole(x_NC):
        return heads_ours(F.linear(x_NC.bfloat16(), weight_XC.bfloat16()))
    cos_TE, sin_TE = (one.bfloat16() for one in tables(x_NC))
    return fp8_block.project(
        x_NC.bfloat16()[None], weight_XC, cos_TE, sin_TE, heads=H, kv_heads=K, qk_scale=1.2
    )


def attend_with(backend: str, dtype: torch.dtype) -> Function:
    def ours(*qkv: Tensor) -> tuple[Tensor]:
        q, k, v = (one.to(dtype).view(1, -1, 2, 64) for one in qkv)
        return (attend(q, k, v, window=20, backend=backend),)

    return ours


def attend_twin(*qkv: Tensor) -> tuple[Tensor]:
    return (attend_by_sdpa(*(one.reshape(1, -1, 2, 64) for one in qkv), window=20),)


def mlp_twin(*inputs: Tensor) -> tuple[Tensor]:
    return (mlp.relu_squared_mlp(*inputs),)


def linear_twin(*inputs: Tensor) -> tuple[Tensor]:
    return (F.linear(*inputs),)


def fp8_linear_ours(dtype: torch.dtype) -> Function:
    return lambda x_NC, weight_FC: (fp8.linear(x_NC.to(dtype), weight_FC),)


def fp8_mlp_ours(dtype: torch.dtype, *, fused: bool) -> Function:
    return lambda x_NC, *weights: (fp8_block.mlp(x_NC.to(dtype), *weights, fused=fused),)


def has_fp8() -> bool:
    return not fp8.unavailable(torch.device("cuda"))


def has_hopper() -> bool:
    return mlp.has_kernel(torch.device("cuda"), torch.bfloat16)


F32, BF16 = torch.float32, torch.bfloat16
ON_CPU = {
    "mix": Operator(mix_ours, mix_twin, 2, EXACT, num_rows=2, num_scalars=2),
    "loss": Operator(loss_ours(F32, in_fp8=False), loss_twin, 2, EXACT),
    "loss in fp8": Operator(loss_ours(F32, in_fp8=True), loss_twin, 2, FP8),
    "fp8 linear": Operator(fp8_linear_ours(F32), linear_twin, 2, FP8),
    "fp8 mlp": Operator(fp8_mlp_ours(F32, fused=False), mlp_twin, 3, FP8),
    "flash3": Operator(attend_with("flash3", F32), attend_twin, 3, EXACT, num_rows=3),
}
ON_GPU = {
    "mix": ON_CPU["mix"],
    "loss": Operator(loss_ours(BF16, in_fp8=False), loss_twin, 2, BFLOAT16),
    "loss in fp8": Operator(loss_ours(BF16, in_fp8=True), loss_twin, 2, FP8, runs=has_fp8),
    "fp8 linear": Operator(fp8_linear_ours(BF16), linear_twin, 2, FP8, runs=has_fp8),
    "fp8 mlp": Operator(
        fp8_mlp_ours(BF16, fused=True), mlp_twin, 3, FP8, runs=lambda: has_fp8() and has_hopper()
    ),
    "mlp": Operator(
        lambda *inputs: (mlp.fused_mlp(inputs[0].bfloat16(), *inputs[1:]),),
        mlp_twin,
        3,
        BFLOAT16,
        runs=has_hopper,
    ),
    "heads": Operator(heads_ours, heads_twin, 1, BFLOAT16),
    "fp8 heads": Operator(fp8_heads_ours, lambda x, w: heads_twin(F.linear(x, w)), 2, FP8, runs=has_fp8),
} | {
    backend: Operator(
        attend_with(backend, BF16),
        attend_twin,
        3,
        BFLOAT16,
        num_rows=3,
        runs=lambda backend=backend: agrees(backend, torch.device("cuda"), BF16, 64),
    )
    for backend in ("flash3", "flash4", "cudnn")
}

LAYOUTS: dict[str, Callable[[Tensor], tuple[Tensor, Callable[[Tensor], Tensor]]]] = {
    "a matrix": lambda x: (x, lambda leaf: leaf * 1.0),
    "a view": lambda x: (torch.cat((x, x)), lambda leaf: leaf[: len(x)]),
    "every other": lambda x: (x.repeat_interleave(2, -1), lambda leaf: leaf[..., ::2]),
    "transposed": lambda x: (x.t().contiguous(), lambda leaf: leaf.t()),
    "expanded": lambda x: (x[:1].clone(), lambda leaf: leaf.expand(x.shape)),
}


@pytest.fixture(autouse=True)
def _fresh_compiler(request: pytest.FixtureRequest):
    """On the CPU FlashAttention's operator calls a slow twin of the library; on a GPU the library."""
    torch._dynamo.reset()
    if request.node.callspec.params["device"] == "cpu":
        request.getfixturevalue("stand_ins")
    elif not request.node.callspec.params["operator"].runs():
        pytest.skip("the kernel does not run here")


def places(*, inductor_on_cpu: bool = False) -> Iterator:
    """aot_eager runs what Dynamo and autograd trace; inductor also generates the code, in seconds a graph."""
    for name, operator in ON_CPU.items():
        yield pytest.param(operator, "cpu", "aot_eager", id=f"{name}-cpu")
        if inductor_on_cpu:
            yield pytest.param(operator, "cpu", "inductor", id=f"{name}-cpu-inductor", marks=pytest.mark.slow)
    no_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
    for name, operator in ON_GPU.items():
        yield pytest.param(operator, "cuda", "inductor", id=f"{name}-cuda", marks=[pytest.mark.gpu, no_gpu])


everywhere = pytest.mark.parametrize(("operator", "device", "backend"), list(places()))


def total(outputs: tuple[Tensor, ...]) -> Tensor:
    """Unequal weights for every number, so that gradients can't agree by symmetry."""
    weighted = [
        (one.float() * torch.linspace(-1, 1.5, one.numel(), device=one.device).view(one.shape)).sum()
        for one in outputs
    ]
    return torch.stack(weighted).sum()


def values(function: Function, leaves: list[Tensor], used: slice = slice(None)) -> list[Tensor]:
    """The outputs and the gradients of the leaves that want one."""
    outputs = function(*leaves)
    wanting = [leaf for leaf in leaves if leaf.requires_grad]
    gradients = torch.autograd.grad(total(outputs[used]), wanting, materialize_grads=True)
    return [one.detach() for one in (*outputs, *gradients)]


def leaves_of(tensors: list[Tensor]) -> list[Tensor]:
    return [one.clone().requires_grad_() for one in tensors]


def assert_near(found: list[Tensor], expected: list[Tensor], most: float) -> None:
    assert len(found) == len(expected)
    for index, (one, other) in enumerate(zip(found, expected, strict=True)):
        assert one.shape == other.shape
        difference = float((one.float() - other).norm())
        assert difference <= most * float(other.norm()), (index, difference, float(other.norm()))


def compiled(function: Function, backend: str) -> Function:
    return torch.compile(function, dynamic=False, backend=backend)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(("operator", "device", "backend"), list(places(inductor_on_cpu=True)))
def test_inputs_of_any_layout_have_right_gradients(
    operator: Operator, device: str, backend: str, layout: str
):
    """Only the first input is expanded: with equal rows everywhere many gradients would be zero."""
    matrices = operator.inputs(device)[: operator.num_matrices]
    layouts = [layout if layout != "expanded" or not index else "a view" for index in range(len(matrices))]
    pairs = [LAYOUTS[name](one) for name, one in zip(layouts, matrices, strict=True)]
    scalars = operator.inputs(device)[operator.num_matrices :]

    def of_views(function: Function) -> Function:
        def call(*leaves: Tensor) -> tuple[Tensor, ...]:
            views = [view(leaf) for (_, view), leaf in zip(pairs, leaves, strict=False)]
            return function(*views, *leaves[len(views) :])

        return call

    leaves = leaves_of([*(leaf for leaf, _ in pairs), *scalars])
    found = values(compiled(of_views(operator.ours), backend), leaves)
    assert_near(found, values(of_views(operator.twin), leaves), operator.most)


@everywhere
def test_an_input_without_a_gradient_leaves_the_others_right(operator: Operator, device: str, backend: str):
    ours = compiled(operator.ours, backend)
    for index in range(len(operator.inputs(device))):
        leaves = leaves_of(operator.inputs(device))
        leaves[index].requires_grad_(False)
        if any(leaf.requires_grad for leaf in leaves):
            assert_near(values(ours, leaves), values(operator.twin, leaves), operator.most)


@everywhere
def test_an_output_that_is_not_used_gives_no_gradient(operator: Operator, device: str, backend: str):
    """In turn each output alone is used, and none but a copy of the first input."""
    leaves = leaves_of(operator.inputs(device))

    def with_copy(function: Function) -> Function:
        return lambda *leaves: (*function(*leaves), 2 * leaves[0])

    ours, twin = compiled(with_copy(operator.ours), backend), with_copy(operator.twin)
    for index in range(len(twin(*leaves))):
        used = slice(index, index + 1)
        assert_near(values(ours, leaves, used), values(twin, leaves, used), operator.most)


@everywhere
def test_gradients_of_two_micro_batches_add_up(operator: Operator, device: str, backend: str):
    """Of each input, which is another part of a leaf in each micro-batch."""
    leaves, twins = leaves_of(operator.inputs(device)), leaves_of(operator.inputs(device))
    ours = compiled(operator.ours, backend)
    for seed in (1, 2):
        factors = operator.inputs(device, seed=seed)
        total(ours(*(one * leaf for one, leaf in zip(factors, leaves, strict=True)))).backward()
        total(operator.twin(*(one * leaf for one, leaf in zip(factors, twins, strict=True)))).backward()
    assert_near([one.grad for one in leaves], [one.grad for one in twins], operator.most)


@everywhere
def test_no_rows_give_no_gradient(operator: Operator, device: str, backend: str):
    inputs = operator.inputs(device)
    leaves = leaves_of([*(one[:0] for one in inputs[: operator.num_rows]), *inputs[operator.num_rows :]])
    assert_near(values(compiled(operator.ours, backend), leaves), values(operator.twin, leaves), 0.0)


def given_once(function: Function, places: tuple[int, ...]) -> Function:
    """The same tensor at each of these places, computed from the leaf of the first."""

    def call(*leaves: Tensor) -> tuple[Tensor, ...]:
        one = torch.sin(leaves[places[0]])
        return function(*(one if index in places else leaf for index, leaf in enumerate(leaves)))

    return call


@everywhere
def test_one_tensor_for_several_inputs_is_right_or_refused(operator: Operator, device: str, backend: str):
    """Each pair of matrices, and all of them; scalars of a mix: test_agreement.py."""
    matrices = range(operator.num_matrices)
    for equal in [*combinations(matrices, 2), tuple(matrices)]:
        leaves = leaves_of(operator.inputs(device))
        try:
            found = values(compiled(given_once(operator.ours, equal), backend), leaves)
        except AssertionError as error:
            if "one tensor was given for two inputs" not in str(error):
                raise
        else:
            assert_near(found, values(given_once(operator.twin, equal), leaves), operator.most)
