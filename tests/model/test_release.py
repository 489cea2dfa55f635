"""A release comes back as it was, and a damaged or mixed-up one is refused in one line."""

import json
import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_gpt import EVERYTHING

from nanolit.model.gpt import GPT
from nanolit.model.release import load_release, save_release
from nanolit.tokenizer.bpe import Tokenizer

FORMAT_1 = Path(__file__).parent.parent / "fixtures" / "release_format_1"
SIZES = {"format": 1, **EVERYTHING, "vocab_size": 265}
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
            make_gpt(vocab_size=tokenizer.vocab_size) if model is None else model,
            tokenizer_folder=tmp_path / "tokenizer",
            tokenizer_hash=tokenizer.hash,
            meta=META,
        )
        return tmp_path / "release"

    return save_model


def test_a_saved_model_comes_back_with_equal_logits(save, make_gpt, random_ids, tokenizer, flags):
    flags = flags | {"vocab_size": 265}
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
    model = make_gpt(depth=2, vocab_size=265)
    loaded, _ = load_release(save(model), device="cpu")
    assert loaded.config.depth == 2
    assert sorted(os.listdir(tmp_path)) == ["release", "tokenizer"]


def test_bfloat16_embeddings_come_back_in_the_dtype_of_the_device(save, make_gpt):
    model = make_gpt(vocab_size=265)
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


def test_a_release_is_on_the_disk_with_all_its_names_before_it_has_its_own(save, monkeypatch):
    """A folder that is brought there before what it names would lose that in a power cut."""
    synced, fsync = [], os.fsync

    def recording(handle):
        synced.append(Path(os.readlink(f"/proc/self/fd/{handle}")))
        fsync(handle)

    monkeypatch.setattr(os, "fsync", recording)
    root = save().parent
    assert sum(path.suffix in (".tmp", ".safetensors") for path in synced) == 4
    for place, path in enumerate(synced):
        assert path == root or path.parent in synced[place + 1 :], path


def test_a_flipped_bit_is_seen(save):
    weights = save() / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-5] ^= 1
    weights.write_bytes(content)
    with pytest.raises(ValueError, match=r"model\.safetensors is damaged: its hash"):
        load_release(weights.parent, device="cpu")


def test_a_file_that_shrinks_while_it_is_loaded_is_refused(save, monkeypatch):
    """Were it mapped, the process would end by SIGBUS."""
    weights, prepare = save() / "model.safetensors", GPT.prepare

    def shrinking(*arguments, **settings):
        os.truncate(weights, 3_000)
        prepare(*arguments, **settings)

    monkeypatch.setattr(GPT, "prepare", shrinking)
    with pytest.raises(ValueError, match=r"model\.safetensors is damaged \(.*; copy or convert it again"):
        load_release(weights.parent, device="cpu")


@pytest.mark.parametrize("dtype", [torch.int8, torch.bool, torch.float8_e4m3fn])
def test_weights_that_are_no_numbers_of_ours_are_refused(save, tmp_path, dtype):
    change_weights(save(), lambda tensor: (tensor > 0).to(dtype))
    with pytest.raises(ValueError, match="weights are one of F64, F32, F16, BF16"):
        load_release(tmp_path / "release", device="cpu")


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_refused(save, tmp_path, value):
    change_weights(save(), lambda tensor: torch.full_like(tensor, value))
    with pytest.raises(ValueError, match=r"unembedding\.weight in .* has NaN or infinite values"):
        load_release(tmp_path / "release", device="cpu")


@pytest.mark.parametrize("key", ["softcap", "window_pattern"])
def test_a_setting_that_no_shape_shows_is_seen_by_its_hash(save, key):
    """With another softcap or window the weights would load, and the model say something else."""
    folder = save()
    gpt = json.loads((folder / "gpt.json").read_text())
    gpt[key] = {"softcap": 3.0, "window_pattern": "S"}[key]
    (folder / "gpt.json").write_text(json.dumps(gpt))
    with pytest.raises(
        ValueError, match=r"gpt\.json is damaged: its hash differs from the one in meta\.json"
    ):
        load_release(folder, device="cpu")


def change_weights(folder, change):
    """Change one tensor, and forget the hash, as somebody's own program would write them."""
    tensors = load_file(folder / "model.safetensors")
    tensors["unembedding.weight"] = change(tensors["unembedding.weight"])
    save_file(tensors, folder / "model.safetensors")
    meta = json.loads((folder / "meta.json").read_text())
    del meta["weights_hash"]
    (folder / "meta.json").write_text(json.dumps(meta))


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("meta.json", '{"format": 1, "run": 3}', r"meta\.json is damaged \(run: .*copy or convert it again"),
        ("meta.json", "[" * 100_000, r"meta\.json is not valid JSON"),
        ("gpt.json", "null", r"gpt\.json holds NoneType"),
        ("tokenizer/tokenizer.json", '{"hash": "", "tokens": 3}', r"tokenizer\.json is damaged \(tokens: "),
    ],
)
def test_a_file_of_other_content_is_named_with_the_remedy(save, name, text, words):
    folder = save()
    (folder / name).write_text(text)
    with pytest.raises(ValueError, match=words) as refused:
        load_release(folder, device="cpu")
    assert "\n" not in str(refused.value)


def test_only_the_tokenizer_itself_is_copied(save, tmp_path):
    (tmp_path / "tokenizer").mkdir(exist_ok=True)
    (tmp_path / "tokenizer" / ".tokenizer.json.abc.tmp").write_text("half")
    assert os.listdir(save() / "tokenizer") == ["tokenizer.json"]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"format": 2}, "has format 2, this version reads 1"),
        ({"width": 64}, r"is \(320, 32\), but its sizes give \(320, 64\)"),
        ({"vocab_size": 270}, "the tokenizer in .* has 265 tokens, the model 270"),
        ({"width": 10**6}, "its sizes give"),
        ({"width": 4 * 10**18}, "does not describe a model"),
        ({"depth": 10**7}, "depth is 10,000,000, and there are"),
        ({"context": 10**7}, "context is 10000000; it must be at most"),
        ({"vocab_size": 10**12}, "its sizes give"),
        ([], "holds list, not an object"),
        ({"depth": 2}, r"has unknown blocks\.2\.attention\.key\.weight and 13 more: the weights and sizes"),
        ({"smear": False, "depth": 6}, r"lacks blocks\.4\..* and has unknown smear_gate"),
        ({"wings": 2}, "does not describe a model of this version.*wings"),
        ({"rope_dtype": []}, r"does not describe a model.*rope_dtype is \[\]; allowed are compute, bfloat16"),
        ({"smear": 1}, "does not describe a model.*smear is 1; allowed are True, False"),
        ({"heads": 0}, "does not describe a model.*heads is 0; it must be a whole number, 1 or more"),
        ({"context": -5}, "context is -5"),
        ({"depth": "3"}, "depth is '3'"),
        ({"rope_base": 10**300}, r"rope_base is 1000+; it must be a number above 0 and at most 1e\+12"),
        ({"qk_scale": "1"}, "qk_scale is '1'; it must be a number above 0"),
    ],
)
def test_a_description_that_does_not_fit_is_refused(save, changes, words):
    folder = save()
    (folder / "gpt.json").write_text(json.dumps(changes and {**SIZES, **changes}))
    with pytest.raises(ValueError, match=words):
        load_release(folder, device="cpu")


def test_a_release_of_format_1_is_read_for_ever():
    """Oracle: logits that the program gave which wrote the folder."""
    model, meta = load_release(FORMAT_1, device="cpu")
    with torch.no_grad():
        logits = model(torch.tensor([[256, 72, 105]]))[0, -1, :4].tolist()
    assert logits == pytest.approx([-0.141455, -0.026749, -0.264877, 0.175130], abs=1e-5)
    assert (meta["run"], meta["recipe"]) == ("d2-modern-s1", "modern")


@pytest.mark.parametrize("target", ["release", "/nonexistent/x"])
def test_a_release_takes_the_place_of_a_link_to_nowhere(save, tmp_path, target):
    (tmp_path / "release").symlink_to(target)
    load_release(save(), device="cpu")
    assert not (tmp_path / "release").is_symlink()


def test_a_release_of_a_run_that_diverged_before_nan_was_null_is_read(save):
    folder = save()
    meta = json.loads((folder / "meta.json").read_text())
    (folder / "meta.json").write_text(json.dumps({**meta, "loss": float("nan")}))
    assert load_release(folder, device="cpu")[1]["loss"] is None
