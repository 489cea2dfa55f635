"""Sizes, counts and FLOPs against nanochat's published numbers."""

import subprocess
import sys
from dataclasses import fields

import pytest
import torch
from tiny_gpt import EVERYTHING, PLAIN

from nanolit.model.accounting import (
    Hyperparameters,
    flops_per_token,
    gpu_memory_gib,
    parameter_counts,
    peak_bf16_flops,
    peak_memory_gib,
    size_from_depth,
    window_sizes,
)
from nanolit.model.gpt import GPT, GPTConfig
from nanolit.optim.muon_adamw import MuonAdamW, build_groups

MUON = {
    "orthogonalization": "polar_express",
    "equilibrate_rows": True,
    "normalize_update": True,
    "variance_reduction": True,
    "cautious": True,
    "clip_norm": None,
}


def recipe(name: str, depth: int) -> dict:
    flags = PLAIN | {"vocab_size": 65_536} if name == "classic" else EVERYTHING | {"vocab_size": 32_768}
    size = size_from_depth(depth, sizing="classic" if name == "classic" else "modern")
    return flags | {"depth": depth, "context": 2048} | size._asdict()


@pytest.mark.parametrize(
    ("name", "depth", "total", "flops"),
    [
        ("classic", 20, 560_988_160, 3.491758e9),
        ("classic", 32, 1_879_048_192, None),
        ("modern", 12, 286_261_730, 7.597e8),
        ("modern", 24, 1_384_122_122, 4.775e9),
    ],
)
def test_published_models_have_the_published_counts(name, depth, total, flops):
    hyperparameters = recipe(name, depth)
    assert sum(parameter_counts(hyperparameters).values()) == total
    with torch.device("meta"):
        assert sum(p.numel() for p in GPT(GPTConfig(**hyperparameters)).parameters()) == total
    if flops is not None:
        assert flops_per_token(hyperparameters) == pytest.approx(
            flops, rel=1e-4 if name == "modern" else 1e-7
        )


def test_modern_rounds_the_width_up_and_classic_lets_the_heads_shrink():
    assert size_from_depth(3, sizing="modern") == (256, 2, 2)
    assert size_from_depth(3, sizing="classic") == (192, 2, 2)
    assert size_from_depth(20, sizing="classic") == size_from_depth(20, sizing="modern") == (1280, 10, 10)


def test_a_depth_whose_heads_do_not_fit_is_refused_with_the_next():
    with pytest.raises(
        ValueError, match=r"depth 5 gives width 320, which does not divide into 3 heads .* try depth 6"
    ):
        size_from_depth(5, sizing="classic")
    with pytest.raises(ValueError, match="depth is 0"):
        size_from_depth(0, sizing="modern")


def test_windows_tile_and_end_in_a_long_one():
    assert window_sizes("SSSL", depth=6, context=2048) == [512, 512, 512, 2048, 512, 2048]
    assert window_sizes("SSSL", depth=3, context=512) == [128, 128, 512]
    assert window_sizes("L", depth=2, context=2048) == [None, None]
    assert window_sizes("S", depth=2, context=600) == [256, 600]


def test_a_window_wider_than_the_context_costs_no_more():
    short = recipe("modern", 4) | {"context": 64}
    assert flops_per_token(short) == flops_per_token(short | {"window_pattern": "L"})


@pytest.mark.parametrize(
    ("name", "flops"),
    [
        ("NVIDIA H100 80GB HBM3", 989e12),
        ("NVIDIA H100 PCIe", 756e12),
        ("NVIDIA H100 NVL", 835e12),
        ("NVIDIA H200", 989e12),
        ("NVIDIA A100-SXM4-80GB", 312e12),
        ("A100-80GB", 312e12),
        ("NVIDIA L40S", 362e12),
        ("NVIDIA L4", 121e12),
        ("NVIDIA A10G", 70e12),
        ("NVIDIA GeForce RTX 4090", 165.2e12),
        ("AMD Instinct MI300X", 1307.4e12),
        ("Apple M3", None),
    ],
)
def test_peaks_are_found_by_the_names_that_torch_and_clouds_give(name, flops):
    assert peak_bf16_flops(name) == flops


@pytest.mark.parametrize("name", ["classic", "modern"])
def test_memory_of_parameters_is_what_the_model_holds(name):
    """Oracle: the model's own tensors, embeddings in bfloat16."""
    hyperparameters = recipe(name, 4)
    with torch.device("meta"):
        gpt = GPT(GPTConfig(**hyperparameters))
        gpt.embedding.to(torch.bfloat16)
        gpt.value_embeddings.to(torch.bfloat16)
    held = sum(parameter.numel() * parameter.element_size() for parameter in gpt.parameters())
    parts = peak_memory_gib(hyperparameters, micro_batch=1)
    assert parts["parameters"] == parts["gradients"] == pytest.approx(held / 2**30)


def test_memory_of_the_optimizer_is_what_it_holds():
    """Oracle: the optimizer's own state of a tiny model; Muon's second moments are too small to count."""
    hyperparameters = recipe("modern", 2) | {"vocab_size": 512}
    gpt = GPT(GPTConfig(**hyperparameters))
    gpt.initialize(torch.Generator().manual_seed(0), dtype=torch.bfloat16)
    adamw = {"kind": "adamw", "lr": 0.1, "weight_decay": 0.0, "betas": [0.9, 0.9], "eps": 1e-8}
    settings = {role: dict(adamw) for role in gpt.parameter_roles().values()}
    settings["matrix"] = {"kind": "muon", "lr": 0.1, "weight_decay": 0.0}
    groups = build_groups(gpt.named_parameters(), gpt.parameter_roles(), settings)
    optimizer = MuonAdamW(groups, **MUON)
    held = sum(
        part.tensor.numel() * part.tensor.element_size()
        for name, part in optimizer.state_slices().items()
        if not name.endswith(("/step", "/second_moment"))
    )
    expected = peak_memory_gib(hyperparameters, micro_batch=1)["optimizer"]
    assert expected == pytest.approx(held / 2**30, rel=1e-3)


@pytest.mark.parametrize(
    ("name", "gib"),
    [
        ("NVIDIA H200", 139.8),
        ("NVIDIA H100 80GB HBM3", 79.1),
        ("A100-80GB", 79.1),
        ("NVIDIA A100-SXM4-40GB", 39.4),
        ("A10G", 22.0),
        ("NVIDIA GeForce RTX 4090", 23.5),
        ("Apple M3", None),
    ],
)
def test_memory_is_found_by_the_same_names(name, gib):
    assert gpu_memory_gib(name) == gib


def test_importing_accounting_leaves_torch_out():
    code = "import sys, nanolit.model.accounting; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_a_plan_has_every_argument_of_the_model():
    """Oracle: the fields of GPTConfig."""
    assert Hyperparameters.__annotations__.keys() == {field.name for field in fields(GPTConfig)}
