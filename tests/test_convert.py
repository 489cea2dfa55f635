"""The importer: nanochat's folders become releases, and what is wrong with them is said in one line."""

import json
import os
import pickle
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from nanolit.convert import main
from nanolit.model.nanochat import canonical_name
from nanolit.model.release import load_release
from nanolit.tokenizer.bpe import Tokenizer

FIXTURES = Path(__file__).parent / "fixtures"


@pytest.fixture
def base(tmp_path) -> Path:
    """A nanochat base directory that a test may change."""
    shutil.copytree(FIXTURES / "nanochat_2026", tmp_path / "nanochat")
    return tmp_path / "nanochat"


@pytest.fixture
def refused(capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """Runs the command with some arguments and returns the one line that it ends with."""

    def run(*arguments: object) -> str:
        capsys.readouterr()
        assert main([str(argument) for argument in arguments]) == 2
        message = capsys.readouterr().err.splitlines()[-1]
        assert message.startswith("error: ")
        return message

    return run


@pytest.mark.parametrize(
    ("generation", "recipe"), [("nanochat_2025", "classic"), ("nanochat_2026", "modern")]
)
def test_a_base_directory_becomes_a_release(generation, recipe, tmp_path, capsys):
    main(["nanochat", str(FIXTURES / generation), str(tmp_path / "release")])
    assert f"d3 ({recipe}, base, step 20)" in capsys.readouterr().out
    model, meta = load_release(tmp_path / "release", device="cpu")
    tokenizer = Tokenizer.load(tmp_path / "release" / "tokenizer")
    assert (meta["run"], meta["stage"], meta["step"], meta["recipe"]) == ("d3", "base", 20, recipe)
    assert meta["tokens"] == 20 * 1024
    assert tokenizer.vocab_size == model.vocab_size == 1024
    assert tokenizer.decode(tokenizer.encode("naïve 😀 text")) == "naïve 😀 text"


def test_a_tokenizer_alone_is_read_from_its_folder_or_the_one_above(tmp_path):
    main(["nanochat-tokenizer", str(FIXTURES / "nanochat_2026"), str(tmp_path / "one")])
    main(["nanochat-tokenizer", str(FIXTURES / "nanochat_2026" / "tokenizer"), str(tmp_path / "two")])
    assert Tokenizer.load(tmp_path / "one").hash == Tokenizer.load(tmp_path / "two").hash


def test_the_pickle_is_read_with_a_warning_of_one_line(base, tmp_path, capsys):
    for kind in ("nanochat", "nanochat-tokenizer"):
        main([kind, str(base), str(tmp_path / f"{kind}-out")])
        error = capsys.readouterr().err
        assert error.startswith(
            f"warning: {base / 'tokenizer'} has a pickle, tokenizer.pkl. It was read once"
        )
        assert "accepts only tiktoken's Encoding" in error
        assert error.count("\n") == 1


def test_a_later_stage_is_chosen_by_its_source_and_a_model_by_its_tag(base, tmp_path, refused):
    shutil.copytree(base / "base_checkpoints", base / "chatsft_checkpoints")
    (base / "chatsft_checkpoints" / "d3").rename(base / "chatsft_checkpoints" / "mine")
    shutil.copytree(base / "base_checkpoints" / "d3", base / "chatsft_checkpoints" / "other")
    message = refused("nanochat", base, tmp_path / "release", "--source", "chatsft")
    assert "2 models (mine, other); choose one with --tag" in message
    main(["nanochat", str(base), str(tmp_path / "release"), "--source", "chatsft", "--tag", "mine"])
    assert json.loads((tmp_path / "release" / "meta.json").read_text())["stage"] == "sft"


def test_the_last_step_is_taken_unless_one_is_named(base, tmp_path, refused):
    folder = base / "base_checkpoints" / "d3"
    for name, ending in (("model", "pt"), ("meta", "json")):
        shutil.copy(folder / f"{name}_000020.{ending}", folder / f"{name}_000009.{ending}")
    meta = json.loads((folder / "meta_000009.json").read_text())
    (folder / "meta_000009.json").write_text(json.dumps(meta | {"step": 9}))
    main(["nanochat", str(base), str(tmp_path / "last")])
    main(["nanochat", str(base), str(tmp_path / "ninth"), "--step", "9"])
    steps = [json.loads((tmp_path / name / "meta.json").read_text())["step"] for name in ("last", "ninth")]
    assert steps == [20, 9]
    assert "no step 7; it has 9, 20" in refused("nanochat", base, tmp_path / "seventh", "--step", "7")


def test_compiled_and_bfloat16_checkpoints_are_read(base, tmp_path):
    path = base / "base_checkpoints" / "d3" / "model_000020.pt"
    state = torch.load(path, weights_only=True)
    state["transformer.wte.weight"] = state["transformer.wte.weight"].bfloat16()
    torch.save({f"_orig_mod.{name}": tensor for name, tensor in state.items()}, path)
    main(["nanochat", str(base), str(tmp_path / "release")])
    model, _ = load_release(tmp_path / "release", device="cpu")
    assert torch.equal(model.embedding.weight, state["transformer.wte.weight"].float())


def _damage_model(base: Path) -> None:
    path = base / "base_checkpoints" / "d3" / "model_000020.pt"
    path.write_bytes(path.read_bytes()[:5000])


def _drop_smear(base: Path) -> None:
    path = base / "base_checkpoints" / "d3" / "model_000020.pt"
    state = torch.load(path, weights_only=True)
    del state["smear_lambda"]
    torch.save(state, path)


def _meta(change: Callable[[dict[str, Any]], object]) -> Callable[[Path], None]:
    """A change of what the meta file says."""

    def damage(base: Path) -> None:
        path = base / "base_checkpoints" / "d3" / "meta_000020.json"
        meta = json.loads(path.read_text())
        change(meta)
        path.write_text(json.dumps(meta))

    return damage


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (_damage_model, "is not a readable checkpoint"),
        (_drop_smear, "lacks smear_lambda: it was saved between October 2025 and July 2026"),
        (
            _meta(lambda meta: meta["model_config"].update(n_embd=128)),
            "is (1024, 64), but its sizes give (1024, 128)",
        ),
        (_meta(lambda meta: meta["model_config"].update(n_head=0)), "heads is 0"),
        (_meta(lambda meta: meta["model_config"].update(n_layer=10**9)), "depth is 1,000,000,000"),
        (_meta(lambda meta: meta["model_config"].update(n_embd=2**40)), "describes no model"),
        (_meta(lambda meta: meta["model_config"].update(window_pattern=7)), "describes no model"),
        (_meta(lambda meta: meta["model_config"].update(vocab_size=2**60)), "describes no model"),
        (
            lambda base: (base / "tokenizer/tokenizer.pkl").write_bytes(pickle.dumps([1])),
            "is not a nanochat tokenizer",
        ),
        (lambda base: (base / "tokenizer/tokenizer.pkl").write_bytes(b"\x80\x63"), "tokenizer.pkl is not"),
        (_meta(lambda meta: meta.update(step=None)), "has step None"),
        (_meta(lambda meta: meta["model_config"].pop("n_layer")), "has no 'n_layer'"),
        (_meta(lambda meta: meta["model_config"].update(vocab_size=1000)), "1,024 tokens, the model 1,000"),
        (_meta(dict.clear), "has no model_config"),
        (lambda base: (base / "base_checkpoints/d3/meta_000020.json").unlink(), "is missing"),
        (lambda base: (base / "base_checkpoints/d3/model_000020.pt").unlink(), "has no model_*.pt"),
        (lambda base: (base / "tokenizer/tokenizer.pkl").unlink(), "no nanochat tokenizer"),
        (lambda base: (base / "base_checkpoints").rename(base / "mid_checkpoints"), "give --source mid"),
        (
            lambda base: shutil.rmtree(base / "base_checkpoints"),
            "give the folder that holds base_checkpoints",
        ),
    ],
)
def test_what_is_wrong_with_a_checkpoint_is_one_line(base, tmp_path, damage, words, refused):
    damage(base)
    assert words in refused("nanochat", base, tmp_path / "release")
    assert not (tmp_path / "release").exists()


def test_a_fault_without_words_is_named_by_its_class(base, tmp_path, monkeypatch, refused):
    def load(*_, **__):
        raise EOFError

    monkeypatch.setattr(torch, "load", load)
    assert "is not a readable checkpoint (EOFError)" in refused("nanochat", base, tmp_path / "release")


def test_a_checkpoint_that_would_run_code_is_refused(base, tmp_path, refused):
    class Trap:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "sprung"),)

    torch.save({"transformer.wte.weight": Trap()}, base / "base_checkpoints" / "d3" / "model_000020.pt")
    assert "is not a readable checkpoint" in refused("nanochat", base, tmp_path / "release")
    (base / "tokenizer" / "tokenizer.pkl").write_bytes(pickle.dumps(Trap()))
    assert "not a nanochat tokenizer" in refused("nanochat-tokenizer", base, tmp_path / "tokenizer")
    assert not (tmp_path / "sprung").exists()


def test_nothing_that_exists_is_overwritten(tmp_path, refused):
    (tmp_path / "release").mkdir()
    (tmp_path / "release" / "thesis.txt").write_text("mine")
    assert "already exists" in refused("nanochat", FIXTURES / "nanochat_2026", tmp_path / "release")
    assert (tmp_path / "release" / "thesis.txt").read_text() == "mine"


def test_only_whole_parts_of_names_are_translated():
    assert canonical_name("_orig_mod.transformer.h.10.attn.c_q.weight") == "blocks.10.attention.query.weight"
    assert canonical_name("value_embeds.2.weight") == "value_embeddings.2.weight"
    assert canonical_name("smear_gate.weight") == "smear_gate.weight"
    assert canonical_name("my_lm_head.weight") == "my_lm_head.weight"


def test_help_answers_without_importing_torch():
    code = (
        "import sys; from nanolit.convert import main\n"
        "try: main(['--help'])\n"
        "except SystemExit: sys.exit('torch' in sys.modules)"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (result.returncode, "nanochat-tokenizer" in result.stdout) == (0, True)
