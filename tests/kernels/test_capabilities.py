"""What is chosen on GPUs that are not here, by hiding or pretending what they say of themselves."""

import importlib.util

import pytest
import torch

from nanolit.kernels import fp8, heads, mlp
from nanolit.kernels.attention import choose_backend
from nanolit.machine import device as machine
from nanolit.optim import updates

CUDA = torch.device("cuda")
CACHED = (machine.triton_capability, mlp.has_kernel, fp8.unavailable, choose_backend)


@pytest.fixture(autouse=True)
def no_memory():
    for function in CACHED:
        function.cache_clear()
    yield
    for function in CACHED:
        function.cache_clear()


@pytest.fixture
def pretend(monkeypatch: pytest.MonkeyPatch):
    def pretend(capability: tuple[int, int], *, triton: bool = True, hip: str | None = None) -> None:
        find_spec = importlib.util.find_spec
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda *_: capability)
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda *_: "a GPU")
        monkeypatch.setattr(torch.version, "hip", hip)
        monkeypatch.setattr(
            importlib.util,
            "find_spec",
            lambda name, *more: (
                (object() if triton else None) if name == "triton" else find_spec(name, *more)
            ),
        )

    return pretend


@pytest.mark.parametrize(
    ("name", "capability", "dtype", "has_heads"),
    [
        ("Volta", (7, 0), torch.float32, False),
        ("Turing", (7, 5), torch.float32, True),
        ("Ampere", (8, 0), torch.bfloat16, True),
        ("A10G", (8, 6), torch.bfloat16, True),
        ("Ada", (8, 9), torch.bfloat16, True),
        ("Blackwell", (12, 0), torch.bfloat16, True),
    ],
)
def test_only_hopper_runs_hoppers_kernels(pretend, name, capability, dtype, has_heads):
    pretend(capability)
    assert machine.compute_dtype(CUDA) == dtype
    assert heads.has_kernel(CUDA, torch.bfloat16, 128) == has_heads
    assert not mlp.has_kernel(CUDA, torch.bfloat16)
    assert not updates.has_kernel(CUDA, 1280)
    if capability < machine.ADA:
        assert "Ada or newer" in fp8.unavailable(CUDA)


def test_hopper_multiplies_whole_tiles_by_the_symmetric_kernel(pretend):
    pretend((9, 0))
    assert updates.has_kernel(CUDA, 1280)
    assert not updates.has_kernel(CUDA, 1000)


@pytest.mark.parametrize("hidden", [{"triton": False}, {"hip": "6.4"}])
def test_without_triton_or_on_another_makers_gpu_torch_serves(pretend, hidden):
    pretend((9, 0), **hidden)
    check_that_torch_serves(CUDA)


@pytest.mark.parametrize("kind", ["cpu", "mps"])
def test_devices_without_cuda_are_served_by_torch(kind):
    device = torch.device(kind)
    assert machine.compute_dtype(device) == torch.float32
    assert choose_backend(device, torch.float32, 128) == "sdpa"
    check_that_torch_serves(device)


def test_plain_kernels_are_torchs(pretend, monkeypatch):
    pretend((9, 0))
    monkeypatch.setenv("NANOLIT_KERNELS", "plain")
    assert choose_backend(CUDA, torch.bfloat16, 128) == "sdpa"
    check_that_torch_serves(CUDA)
    monkeypatch.setenv("NANOLIT_KERNELS", "fast")
    machine.triton_capability.cache_clear()
    with pytest.raises(ValueError, match="NANOLIT_KERNELS is 'fast'; give plain, or leave it out"):
        machine.triton_capability(CUDA)


def check_that_torch_serves(device: torch.device) -> None:
    assert machine.triton_capability(device) == (0, 0)
    assert not heads.has_kernel(device, torch.bfloat16, 128)
    assert not mlp.has_kernel(device, torch.bfloat16)
    assert not updates.has_kernel(device, 1280)
    assert "give precision=bf16" in fp8.unavailable(device)
