"""Lookups whose gradient repeats bit for bit: equal to torch's, eagerly and compiled."""

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from nanolit.kernels.residual import Embedding, sum_rows
from nanolit.model.gpt import GPT, GPTConfig
from tests.model.tiny_gpt import EVERYTHING

V, C = 40, 8
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning:torch")  # of torch's own, of compiling


@pytest.fixture
def ids_BT() -> Tensor:
    """Frequent ids many times, some not at all."""
    weights_V = 1 / torch.arange(1, V + 1) ** 2
    return weights_V.multinomial(60, replacement=True, generator=torch.Generator().manual_seed(0)).view(3, 20)


@pytest.fixture
def rows_BTC() -> Tensor:
    return torch.randn(3, 20, C, generator=torch.Generator().manual_seed(1))


def table(*, deterministic: bool, dtype: torch.dtype = torch.float32) -> Embedding:
    made = Embedding(V, C)
    with torch.no_grad():
        made.weight.normal_(generator=torch.Generator().manual_seed(2))
    made.deterministic = deterministic
    return made.to(dtype)


def gradient(forward: Callable[[Tensor], Tensor], weight: Tensor, ids_BT: Tensor, rows_BTC: Tensor) -> Tensor:
    weight.grad = None
    forward(ids_BT).backward(rows_BTC.to(weight.dtype))
    assert weight.grad is not None
    return weight.grad


def test_rows_of_one_id_are_summed(ids_BT, rows_BTC):
    """Oracle: the sum in float64; ids that do not occur have zeros."""
    zeros_VC = torch.zeros(V, C, dtype=torch.float64)
    expected_VC = zeros_VC.index_add(0, ids_BT.flatten(), rows_BTC.flatten(0, 1).double())
    torch.testing.assert_close(sum_rows(rows_BTC, ids_BT, V).double(), expected_VC, rtol=1e-6, atol=1e-6)
    assert (expected_VC == 0).all(1).any()


def test_bfloat16_is_rounded_once(ids_BT, rows_BTC):
    """Oracle: the float32 sums of the same rows, rounded."""
    narrow_BTC = rows_BTC.bfloat16()
    expected_VC = sum_rows(narrow_BTC.float(), ids_BT, V).bfloat16()
    assert torch.equal(sum_rows(narrow_BTC, ids_BT, V), expected_VC)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("compiled", [False, True])
def test_lookup_and_gradient_equal_torchs(compiled, dtype, ids_BT, rows_BTC):
    """Oracle: F.embedding in float32, followed by a norm that the compiler fuses with it."""
    torch._dynamo.reset()
    ours, wide = table(deterministic=True, dtype=dtype), table(deterministic=False, dtype=dtype).float()

    def normed(lookup: Callable[[Tensor], Tensor], ids_BT: Tensor) -> Tensor:
        return F.rms_norm(lookup(ids_BT), (C,))

    function = torch.compile(normed, fullgraph=True) if compiled else normed
    expected = gradient(lambda ids: normed(wide, ids), wide.weight, ids_BT, rows_BTC)
    found = gradient(lambda ids: function(ours, ids), ours.weight, ids_BT, rows_BTC)
    assert (found.float() - expected).norm() < (1e-6 if dtype == torch.float32 else 0.02) * expected.norm()
    assert torch.equal(ours(ids_BT), F.embedding(ids_BT, ours.weight))


def test_gradients_of_micro_batches_add_up(ids_BT, rows_BTC):
    ours = table(deterministic=True)
    for ids, rows in zip(ids_BT, rows_BTC, strict=True):
        ours(ids).backward(rows)
    torch.testing.assert_close(ours.weight.grad, sum_rows(rows_BTC, ids_BT, V))


def test_the_operator_is_sound(ids_BT, rows_BTC):
    """Oracle: torch's own check of its fake tensors and of what is mutated."""
    torch.library.opcheck(sum_rows, (rows_BTC, ids_BT, V))


def test_compiled_gradients_repeat_bit_for_bit_on_two_threads():
    """Without `deterministic` the compiled sums differ by 4e-7 from run to run, on a CPU as on a GPU."""
    torch._dynamo.reset()
    ours, generator = Embedding(512, 64), torch.Generator().manual_seed(0)
    ours.deterministic = True
    frequent_V = 1 / torch.arange(1, 513)
    ids_BT = frequent_V.multinomial(8192, replacement=True, generator=generator).view(8, 1024)
    rows_BTC = torch.randn(8, 1024, 64, generator=generator)
    function = torch.compile(lambda ids: F.rms_norm(ours(ids), (64,)), fullgraph=True)
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        first, *others = (gradient(function, ours.weight, ids_BT, rows_BTC) for _ in range(5))
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(first, other) for other in others)


def test_a_model_built_under_torchs_flag_is_deterministic(deterministic_algorithms):
    gpt = GPT(GPTConfig(**EVERYTHING))
    assert not gpt.embedding.deterministic
    gpt.prepare()
    tables = [module for module in gpt.modules() if isinstance(module, Embedding)]
    assert len(tables) == 3
    assert all(table.deterministic for table in tables)
