"""The update kernels against torch's optimizers and against the definitions of their parts."""

import pytest
import torch
from torch import Tensor

from nanolit.optim.updates import (
    POLAR_EXPRESS,
    adamw_update,
    has_kernel,
    iterate_by_halves,
    muon_update,
    newton_schulz,
    polar_express,
    rescale,
    row_scales,
    symmetric_product,
    symmetric_product_in_torch,
)

SHAPES = [(16, 16), (64, 16), (16, 64)]


def scalar(value: float) -> Tensor:
    return torch.tensor(value, dtype=torch.float32)


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def plain_muon(
    params_NRS: Tensor, grads_NRS: Tensor, momentum_NRS: Tensor, *, weight_decay: float = 0.0, **flags
):
    options = {
        "orthogonalization": "newton_schulz",
        "dtype": torch.bfloat16,
        "equilibrate_rows": False,
        "normalize_update": False,
        "cautious": False,
    }
    muon_update(
        params_NRS,
        grads_NRS,
        momentum_NRS,
        None,
        scalar(0.02),
        scalar(0.95),
        scalar(weight_decay),
        scalar(0.9),
        **(options | flags),
    )


@pytest.mark.parametrize("shape", SHAPES)
def test_muon_equals_torchs_where_options_coincide(shape: tuple[int, int]):
    """Oracle: torch.optim.Muon (Newton-Schulz in bfloat16, Nesterov), each of three stacked matrices alone.

    Decay is on where R <= S: torch scales its decay by the unscaled rate. Within 3% of the way gone, which is
    what bfloat16 leaves.
    """
    weight_decay = 0.1 if shape[0] <= shape[1] else 0.0
    start_NRS = random(3, *shape)
    ours_NRS = start_NRS.clone()
    theirs = [torch.nn.Parameter(matrix.clone()) for matrix in ours_NRS]
    optimizer = torch.optim.Muon(theirs, lr=0.02, momentum=0.95, weight_decay=weight_decay)
    momentum_NRS = torch.zeros_like(ours_NRS)
    for step in range(5):
        grads_NRS = random(3, *shape, seed=step + 1)
        for param, grad in zip(theirs, grads_NRS, strict=True):
            param.grad = grad.clone()
        optimizer.step()
        plain_muon(ours_NRS, grads_NRS, momentum_NRS, weight_decay=weight_decay)
    theirs_NRS = torch.stack([param.detach() for param in theirs])
    assert (ours_NRS - theirs_NRS).norm() < 0.03 * (theirs_NRS - start_NRS).norm()


@pytest.mark.parametrize("betas", [(0.9, 0.999), (0.8, 0.95), (0.96, 0.95)])
def test_adamw_equals_torchs(betas: tuple[float, float]):
    """Oracle: torch.optim.AdamW, ten steps with a changing rate."""
    ours, exp_avg, exp_avg_sq = random(50), torch.zeros(50), torch.zeros(50)
    theirs = torch.nn.Parameter(ours.clone())
    optimizer = torch.optim.AdamW([theirs], lr=0.01, betas=betas, eps=1e-10, weight_decay=0.1)
    for step in range(1, 11):
        theirs.grad = random(50, seed=step)
        optimizer.param_groups[0]["lr"] = lr = 0.01 / step
        corrections = [scalar(1 - beta**step) for beta in betas]
        rates = [scalar(value) for value in (lr, *betas, 1e-10, 0.1)]
        adamw_update(ours, theirs.grad, exp_avg, exp_avg_sq, *rates, *corrections)
        optimizer.step()
    torch.testing.assert_close(ours, theirs.detach(), rtol=0, atol=1e-6)


def test_adamw_of_a_bfloat16_parameter_rounds_only_what_is_stored():
    """Oracle: the same update in float32, rounded."""
    param, grad = random(50).bfloat16(), random(50, seed=1).bfloat16()
    exact = [param.float(), grad.float(), torch.zeros(50), torch.zeros(50)]
    stored = [param, grad, torch.zeros(50).bfloat16(), torch.zeros(50).bfloat16()]
    rates = [scalar(value) for value in (0.3, 0.8, 0.995, 1e-10, 0.01, 0.2, 0.005)]
    adamw_update(*exact, *rates)
    adamw_update(*stored, *rates)
    for got, expected in zip(stored, exact, strict=True):
        assert torch.equal(got, expected.bfloat16())


def frobenius(x_NRS: Tensor) -> Tensor:
    return torch.linalg.matrix_norm(x_NRS, keepdim=True)


@pytest.mark.parametrize("shape", SHAPES)
def test_singular_values_come_near_one(shape: tuple[int, int]):
    """Oracle: torch's singular vectors, between which the result must be near the identity."""
    u, _, v = torch.linalg.svd(random(4, *shape), full_matrices=False)
    x_NRS = u * torch.linspace(0.1, 1, min(shape)) @ v
    for got_NRS, low, high in [
        (newton_schulz(x_NRS, frobenius(x_NRS), torch.float32), 0.6, 1.3),
        (polar_express(x_NRS, frobenius(x_NRS), torch.float32), 0.8, 1.2),
    ]:
        along_NSS = u.mT @ got_NRS @ v.mT
        diagonal = along_NSS.diagonal(dim1=-2, dim2=-1)
        assert diagonal.min() > low
        assert diagonal.max() < high
        torch.testing.assert_close(along_NSS, torch.diag_embed(diagonal), rtol=0, atol=1e-4)


@pytest.mark.parametrize("shape", SHAPES)
def test_stacking_changes_nothing(shape: tuple[int, int]):
    """Oracle: each matrix orthogonalised alone."""
    x_NRS = random(5, *shape)
    norms_N11 = frobenius(x_NRS)
    alone = [
        polar_express(matrix[None], norm[None], torch.float32)
        for matrix, norm in zip(x_NRS, norms_N11, strict=True)
    ]
    together = polar_express(x_NRS, norms_N11, torch.float32)
    torch.testing.assert_close(together, torch.cat(alone), rtol=0, atol=1e-5)


@pytest.mark.parametrize("shape", [*SHAPES, (32, 96), (96, 32)])
def test_symmetric_products_orthogonalize_the_same(shape: tuple[int, int]):
    """Oracle: the plain iteration; both in float32."""
    x_NRS = random(3, *shape)
    x_NRS = x_NRS / (1.01 * frobenius(x_NRS))
    got_NRS = iterate_by_halves(x_NRS, POLAR_EXPRESS)
    expected_NRS = polar_express(x_NRS, frobenius(x_NRS), torch.float32)
    assert (got_NRS - expected_NRS).norm() / expected_NRS.norm() < 5e-4


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize(("shape", "tall"), [((256, 256), False), ((128, 520), False), ((640, 256), True)])
def test_the_symmetric_kernel_equals_its_twin(shape: tuple[int, int], tall: bool):
    device = torch.device("cuda")
    if not has_kernel(device, min(shape)):
        pytest.skip("the kernel is for Hopper")
    a = (random(7, *shape) / shape[-1]).cuda().bfloat16()
    side = min(shape)
    add_NRR = symmetric_product(a, a, tall=tall)
    how = {"alpha": 0.5, "beta": -1.5, "tall": tall}
    got_NRR = symmetric_product(a, a, add_NRR=add_NRR, **how)
    assert got_NRR.shape == (7, side, side)
    assert torch.equal(got_NRR, got_NRR.mT)
    expected_NRR = symmetric_product_in_torch(a, a, add_NRR, **how)
    assert (got_NRR.float() - expected_NRR.float()).norm() / expected_NRR.float().norm() < 3e-3


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_product_that_is_symmetric_but_for_rounding_comes_out_symmetric():
    device = torch.device("cuda")
    if not has_kernel(device, 256):
        pytest.skip("the kernel is for Hopper")
    a = (random(3, 256, 256) / 16).to(device).bfloat16()
    gram = symmetric_product(a, a)
    cube = symmetric_product(symmetric_product(gram, gram), gram)
    assert torch.equal(cube, cube.mT)
    expected = (gram.double() @ gram.double()).bfloat16().double() @ gram.double()
    assert (cube - expected).norm() / expected.norm() < 6e-3


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
@pytest.mark.parametrize("kind", ["three decades", "five decades", "low rank", "one direction"])
@pytest.mark.parametrize("shape", [(256, 256), (128, 512), (512, 128), (384, 128)])
def test_orthogonalizing_by_halves_rounds_as_much_as_the_plain_iteration(
    shape: tuple[int, int], kind: str, device: str
):
    """Oracle: the plain form's error against float64, on ill-conditioned matrices (see _iterate)."""
    if device == "cuda" and not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    u, _, v = torch.linalg.svd(random(2, *shape), full_matrices=False)
    values = torch.logspace(0, -5 if kind == "five decades" else -3, min(shape))
    if kind in ("low rank", "one direction"):
        values = torch.full_like(values, 1e-2 if kind == "low rank" else 1e-3)
        values[: 4 if kind == "low rank" else 1] = 1
    x_NRS = (u * values @ v).to(device)
    norms_N11 = frobenius(x_NRS)
    exact_NRS = polar_express(x_NRS.double(), norms_N11.double(), torch.float64)
    plain_NRS = polar_express(x_NRS, norms_N11, torch.bfloat16)
    by_halves_NRS = iterate_by_halves((x_NRS / (1.01 * norms_N11)).bfloat16(), POLAR_EXPRESS)
    ratio = (by_halves_NRS - exact_NRS).norm() / (plain_NRS - exact_NRS).norm()
    assert 0.7 < ratio < 1.3


def test_equilibrated_rows_have_the_mean_norm():
    x_NRS = random(2, 8, 5) * torch.arange(1, 9)[:, None]
    got = (x_NRS * row_scales(x_NRS.norm(dim=-1, keepdim=True))).norm(dim=-1)
    torch.testing.assert_close(got, x_NRS.norm(dim=-1).mean(dim=-1, keepdim=True).expand_as(got))


@pytest.mark.parametrize("shape", SHAPES)
def test_normalized_update_has_the_norm_of_an_orthogonal_matrix(shape: tuple[int, int]):
    expected = torch.full((3,), min(shape) ** 0.5)
    got_NRS = rescale(random(3, *shape), None, scalar(0.9), normalize=True)
    torch.testing.assert_close(torch.linalg.matrix_norm(got_NRS), expected)


@pytest.mark.parametrize("shape", SHAPES)
def test_variance_reduction_evens_out_the_longer_side_and_keeps_the_norm(shape: tuple[int, int]):
    """At the first step, every row (column, where wide) is divided by its own root mean square."""
    dim = -1 if shape[0] >= shape[1] else -2
    x_NRS = random(3, *shape)
    second_moment = torch.zeros_like(x_NRS.sum(dim=dim, keepdim=True))
    got_NRS = rescale(x_NRS, second_moment, scalar(0.9), normalize=False)
    norms = got_NRS.norm(dim=dim)
    torch.testing.assert_close(norms, norms[:, :1].expand_as(norms))
    torch.testing.assert_close(torch.linalg.matrix_norm(got_NRS), torch.linalg.matrix_norm(x_NRS))
    torch.testing.assert_close(second_moment, 0.1 * x_NRS.square().mean(dim=dim, keepdim=True))


def test_cautious_decay_shrinks_only_where_the_update_does_too():
    """Oracle: the update without decay; decay may only add lr * decay * parameter where signs agree."""
    start, grads = random(1, 16, 16), random(1, 16, 16, seed=1)
    without, decayed = start.clone(), start.clone()
    plain_muon(without, grads, torch.zeros_like(start))
    plain_muon(decayed, grads, torch.zeros_like(start), weight_decay=0.5, cautious=True)
    shrinking = (start - without) * start >= 0
    expected = torch.where(shrinking, without - 0.02 * 0.5 * start, without)
    torch.testing.assert_close(decayed, expected)


def test_cautious_decay_shrinks_what_no_gradient_moves():
    """As nanochat's does: an update of zero is against no sign."""
    params_NRS, zeros_NRS = random(1, 16, 16), torch.zeros(1, 16, 16)
    expected_NRS = (1 - 0.02 * 0.5) * params_NRS
    plain_muon(params_NRS, zeros_NRS, zeros_NRS.clone(), weight_decay=0.5, cautious=True)
    torch.testing.assert_close(params_NRS, expected_NRS)


@pytest.mark.parametrize("orthogonalization", ["newton_schulz", "polar_express"])
def test_zero_gradients_give_a_zero_update(orthogonalization: str):
    """A zero-initialised output projection gives the others no gradient at the first step."""
    params_NRS = random(2, 16, 8)
    second_moment = torch.zeros(2, 16, 1)
    before = params_NRS.clone()
    muon_update(
        params_NRS,
        torch.zeros_like(params_NRS),
        torch.zeros_like(params_NRS),
        second_moment,
        scalar(0.02),
        scalar(0.95),
        scalar(0.0),
        scalar(0.9),
        orthogonalization=orthogonalization,  # type: ignore[arg-type]
        dtype=torch.float32,
        equilibrate_rows=True,
        normalize_update=True,
        cautious=True,
    )
    assert torch.equal(params_NRS, before)
