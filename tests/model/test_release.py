"""A release comes back as it was, and a damaged or mixed-up one is refused in one line."""

import json
import os
from pathlib import Path

import pytest
import torch
from tiny_gpt import EVERYTHING

from nanolit.model.release import load_release, save_release
from nanolit.tokenizer.bpe import Tokenizer

FORMAT_1 = Path(__file__).parent.parent / "fixtures" / "release_format_1"
META = {"run": "d4-modern-s1", "stage": "base", "step": 7}


@pytest.fixture
def tokenizer() -> Tokenizer:
    return Tokenizer([bytes([byte]) for byte in range(256)])


@pytest.fixture
def save(tmp_path, make_gpt, tokenizer):
    """Saves a release of the given model and gives its folder."""
    tokenizer.save(tmp_path / "tokenizer")

    def save_model(model=None):
        save_release(
            tmp_path / "release",
            make_gpt() if model is None else model,
            tokenizer_folder=tmp_path / "tokenizer",
            tokenizer_hash=tokenizer.hash,
            meta=META,
        )
        return tmp_path / "release"

    return save_model


def test_a_saved_model_comes_back_with_equal_logits(save, make_gpt, random_ids, tokenizer, flags):
    model, ids_BT = make_gpt(flags), random_ids(2, 150)
    loaded, meta = load_release(save(model), device="cpu")
    assert torch.equal(loaded(ids_BT), model(ids_BT))
    assert loaded.hyperparameters == model.hyperparameters == flags
    assert meta == META | {"tokenizer_hash": tokenizer.hash}
    assert not loaded.training


def test_a_release_is_loaded_in_the_dtype_that_is_asked_for(save):
    folder = save()
    dtypes = [
        load_release(folder, device="cpu", dtype=one)[0].compute_dtype for one in (None, torch.bfloat16)
    ]
    assert dtypes == [torch.float32, torch.bfloat16]


def test_the_folder_holds_the_four_parts_and_nothing_is_left_beside_it(save, tmp_path):
    folder = save()
    assert sorted(os.listdir(folder)) == ["gpt.json", "meta.json", "model.safetensors", "tokenizer"]
    assert sorted(os.listdir(tmp_path)) == ["release", "tokenizer"]
    assert json.loads((folder / "gpt.json").read_text())["format"] == 1


def test_a_second_release_replaces_the_first(save, make_gpt, tmp_path):
    save()
    model = make_gpt(depth=2)
    loaded, _ = load_release(save(model), device="cpu")
    assert loaded.config.depth == 2
    assert sorted(os.listdir(tmp_path)) == ["release", "tokenizer"]


def test_bfloat16_embeddings_come_back_in_the_dtype_of_the_device(save, make_gpt):
    model = make_gpt()
    model.prepare(dtype=torch.bfloat16)
    loaded, _ = load_release(save(model), device="cpu")
    assert loaded.compute_dtype == torch.float32
    assert torch.equal(loaded.embedding.weight, model.embedding.weight.float())


def test_saving_with_another_tokenizer_is_refused(make_gpt, tokenizer, tmp_path):
    tokenizer.save(tmp_path / "tokenizer")
    with pytest.raises(ValueError, match="the model was trained with 0123abcd; use that one"):
        save_release(
            tmp_path / "release",
            make_gpt(),
            tokenizer_folder=tmp_path / "tokenizer",
            tokenizer_hash="0123abcdef",
            meta={},
        )
    assert not (tmp_path / "release").exists()


def test_loading_with_another_tokenizer_is_refused(save):
    folder = save()
    other = Tokenizer([bytes([byte]) for byte in range(256)] + [b"th"])
    other.save(folder / "tokenizer")
    with pytest.raises(ValueError, match=f"has hash {other.hash[:8]}.*use that one"):
        load_release(folder, device="cpu")


def test_a_folder_without_one_of_the_parts_is_refused(save):
    folder = save()
    (folder / "meta.json").unlink()
    with pytest.raises(ValueError, match=r"is not a release: meta\.json is missing"):
        load_release(folder, device="cpu")


def test_truncated_weights_are_refused(save):
    folder = save()
    weights = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(weights[: len(weights) // 2])
    with pytest.raises(ValueError, match=r"model\.safetensors is damaged"):
        load_release(folder, device="cpu")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"format": 2}, "has format 2, this version reads 1"),
        ({"width": 64}, r"is \(128, 32\), its sizes say \(128, 64\)"),
        ({"depth": 2}, r"has unknown blocks\.2\.attention\.key\.weight and 13 more: weights and sizes"),
        ({"smear": False, "depth": 6}, r"lacks blocks\.4\..* and has unknown smear_gate"),
        ({"wings": 2}, "does not describe a model of this version.*wings"),
        ({"heads": 0}, "does not describe a model.*heads is 0; it must be a whole number, 1 or more"),
        ({"context": -5}, "context is -5"),
        ({"depth": "3"}, "depth is '3'"),
        ({"qk_scale": "1"}, "qk_scale is '1'; it must be a number above 0"),
    ],
)
def test_a_description_that_does_not_fit_is_refused(save, changes, words):
    folder = save()
    (folder / "gpt.json").write_text(json.dumps({"format": 1, **EVERYTHING, **changes}))
    with pytest.raises(ValueError, match=words):
        load_release(folder, device="cpu")


def test_a_release_of_format_1_is_read_for_ever():
    """Oracle: logits that the program gave which wrote the folder."""
    model, meta = load_release(FORMAT_1, device="cpu")
    with torch.no_grad():
        logits = model(torch.tensor([[256, 72, 105]]))[0, -1, :4].tolist()
    assert logits == pytest.approx([-0.141455, -0.026749, -0.264877, 0.175130], abs=1e-5)
    assert (meta["run"], meta["recipe"]) == ("d2-modern-s1", "modern")
