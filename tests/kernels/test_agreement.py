"""An autograd.Function never gets one tensor twice: compiled, it would lose a gradient."""

import ast
from pathlib import Path

import pytest
import torch
from torch import Tensor

import nanolit
from nanolit.kernels.agreement import apply_to_distinct
from nanolit.kernels.residual import mix

PACKAGE = Path(nanolit.__file__).parent


class Weigh(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor, y: Tensor) -> Tensor:
        return 2 * x + 3 * y

    @staticmethod
    def backward(ctx, *gradients: Tensor) -> tuple[Tensor, Tensor]:
        return 2 * gradients[0], 3 * gradients[0]


@pytest.fixture(autouse=True)
def _fresh_compiler():
    torch._dynamo.reset()


@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("twice", ["an argument", "a result", "an argument under two names"])
def test_one_tensor_for_two_inputs_is_refused(twice: str, compiled: bool):
    """Two names: the graph compiled for distinct tensors must not serve for equal ones."""

    def weigh(x: Tensor, y: Tensor) -> Tensor:
        if twice == "a result":
            x = y = torch.tanh(x)
        return apply_to_distinct(Weigh, x, x if twice == "an argument" else y)

    function = torch.compile(weigh, backend="aot_eager", dynamic=False) if compiled else weigh
    x, y = torch.ones(3, requires_grad=True), torch.ones(3, requires_grad=True)
    if twice == "an argument under two names":
        assert torch.autograd.grad(function(x, y).sum(), (x, y))[1].tolist() == [3, 3, 3]
        y = x
    with pytest.raises(AssertionError, match="one tensor was given for two inputs"):
        function(x, y)


def test_refusal_guards_against_a_gradient_that_torch_loses():
    """torch 2.11 loses one, 2.15 keeps both: apply_to_distinct can go with the last torch that fails here."""
    x = torch.ones(3, requires_grad=True)
    compiled = torch.compile(lambda x: Weigh.apply(x, x), backend="aot_eager", dynamic=False)
    assert torch.autograd.grad(Weigh.apply(x, x).sum(), x)[0].tolist() == [5, 5, 5]
    loses = torch.autograd.grad(compiled(x).sum(), x)[0].tolist() != [5, 5, 5]
    assert loses == (torch.__version__ < (2, 12))


@pytest.mark.parametrize("compiled", [False, True])
def test_a_view_beside_its_tensor_keeps_both_gradients(compiled: bool):
    function = (
        torch.compile(_weigh_with_view, backend="aot_eager", dynamic=False) if compiled else _weigh_with_view
    )
    x = torch.ones(3, requires_grad=True)
    assert torch.autograd.grad(function(x).sum(), x)[0].tolist() == [5, 5, 5]


def _weigh_with_view(x: Tensor) -> Tensor:
    return apply_to_distinct(Weigh, x, x.view_as(x))


def test_one_scalar_for_both_factors_of_a_mix_is_refused():
    x, x0, r = torch.ones(2, 3), torch.ones(2, 3), torch.tensor(0.5, requires_grad=True)
    with pytest.raises(AssertionError, match="one tensor was given for two inputs"):
        mix(x, x0, r, r)


def test_functions_are_applied_in_one_place():
    """`X.apply(…)` is also how a Function could be applied past the check."""
    applying = {
        str(path.relative_to(PACKAGE))
        for path in PACKAGE.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Attribute) and node.attr == "apply"
    }
    assert applying == {"kernels/agreement.py"}
