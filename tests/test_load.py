"""`nanolit.load` finds a release or a run's last one and talks with it."""

import ast
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import nanolit
from nanolit.convert import convert_nanochat
from nanolit.language_model import LanguageModel
from nanolit.tokenizer.conversation import render_prompt

FIXTURES = Path(__file__).parent / "fixtures"


@pytest.fixture(scope="module")
def release(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("converted") / "release"
    convert_nanochat(FIXTURES / "nanochat_2026", folder)
    return folder


WAITS = ("OMP_WAIT_POLICY", *nanolit.OPENMP_WAITS)


@pytest.mark.parametrize("chosen", [{}, {"OMP_WAIT_POLICY": "active"}, {"GOMP_SPINCOUNT": "99"}])
def test_waiting_threads_leave_the_core_unless_the_user_chose(chosen):
    """A process's children inherit it: ranks, trials, the jobs of a sweep."""
    script = f"import os, nanolit; print({{name: os.environ.get(name) for name in {WAITS}}})"
    environment = {name: value for name, value in os.environ.items() if name not in WAITS}
    command = [sys.executable, "-c", script]
    out = subprocess.run(command, env=environment | chosen, capture_output=True, text=True, check=True).stdout
    expected = chosen or nanolit.OPENMP_WAITS
    assert ast.literal_eval(out) == {name: expected.get(name) for name in WAITS}


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_torch_takes_over_how_threads_wait():
    """Oracle: what the OpenMP that torch has loaded says of itself."""
    script = "import nanolit, torch; torch.ones(1_000_000).sum()"
    environment = {name: value for name, value in os.environ.items() if name not in WAITS}
    command = [sys.executable, "-c", script]
    environment["OMP_DISPLAY_ENV"] = "verbose"
    err = subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stderr
    if "GOMP_SPINCOUNT" not in err:
        pytest.skip("another OpenMP")
    assert f"GOMP_SPINCOUNT = '{nanolit.OPENMP_WAITS['GOMP_SPINCOUNT']}'" in err


def test_generate_continues_the_text_as_nanochat_did(release):
    """Oracle: the greedy tokens that nanochat's own engine decoded after this prompt."""
    with np.load(FIXTURES / "nanochat_2026" / "golden.npz") as golden:
        prompt, greedy = golden["prompt"].tolist(), golden["greedy"].tolist()
    loaded = nanolit.load(release, device="cpu")
    assert prompt[0] == loaded.tokenizer.bos_id
    text = loaded.tokenizer.decode(prompt[1:])
    assert loaded.tokenizer.encode(text) == prompt[1:]
    assert loaded.generate(text, max_tokens=40, temperature=0) == loaded.tokenizer.decode(
        greedy[len(prompt) :]
    )


def test_the_seed_decides_what_is_drawn(release):
    loaded = nanolit.load(release, device="cpu")
    one, again, other = (
        loaded.generate("The", max_tokens=20, temperature=1.5, seed=seed) for seed in (1, 1, 2)
    )
    assert one == again != other


def test_the_model_gives_logits_for_ids(release):
    logits_BTV = nanolit.load(release, device="cpu").model(torch.tensor([[1, 2, 3]]))
    assert logits_BTV.shape == (1, 3, 1024)


def test_a_run_is_its_last_stage_with_a_release(release, tmp_path, monkeypatch):
    for stage in ("base", "sft"):
        shutil.copytree(release, tmp_path / "runs" / "d3-modern-s1" / stage / "release")
    (tmp_path / "runs" / "d3-modern-s1" / "rl").mkdir()
    from nanolit.language_model import find_release

    runs = tmp_path / "runs" / "d3-modern-s1"
    assert find_release("d3-modern-s1", root=tmp_path) == runs / "sft" / "release"
    assert find_release("d3-modern-s1/base", root=tmp_path) == runs / "base" / "release"
    assert find_release(runs / "base" / "release") == runs / "base" / "release"
    monkeypatch.setenv("NANOLIT_HOME", str(tmp_path))
    assert nanolit.load("d3-modern-s1", device="cpu").meta["run"] == "d3"


def test_a_stage_can_be_named_beside_the_run(release, tmp_path):
    shutil.copytree(release, tmp_path / "runs" / "a" / "base" / "release")
    shutil.copytree(release, tmp_path / "runs" / "a" / "sft" / "release")
    from nanolit.language_model import find_release, list_releases

    assert find_release("a/base", root=tmp_path) == tmp_path / "runs" / "a" / "base" / "release"
    for typed in (tmp_path / "runs" / "a", f"{tmp_path}/runs/a/sft/"):  # as a shell completes it
        assert find_release(typed) == tmp_path / "runs" / "a" / "sft" / "release"
    assert list(list_releases(tmp_path)) == ["a/sft", "a/base"]
    assert nanolit.load("a", tmp_path, "cpu", stage="base").tokenizer.vocab_size == 1024
    with pytest.raises(ValueError, match="has no release of rl yet"):
        nanolit.load("a", tmp_path, stage="rl")


def test_chat_answers_a_message_or_a_conversation_whole_or_in_pieces(taught_model, byte_tokenizer):
    """Oracle: the replies that the model was taught, and the engine's on the rendered conversation."""
    taught = LanguageModel(taught_model, byte_tokenizer, meta={"run": "taught", "stage": "sft", "step": 150})
    assert taught.chat("Hello", temperature=0) == "Hi! I am tiny 😀."
    assert taught.chat("Sum?", temperature=0, max_tokens=40).startswith("It is [12*3][= 36]")
    pieces = taught.chat("Hello", temperature=0, stream=True)
    assert next(pieces) == "H"
    assert "".join(pieces) == "i! I am tiny 😀."
    messages = [
        {"role": "user", "content": "Hello"},
        {"role": "assistant", "content": "Hi! I am tiny 😀."},
        {"role": "user", "content": "Sum?"},
    ]
    prompt = render_prompt({"messages": messages}, byte_tokenizer)
    (completion,) = taught.engine.complete(prompt, max_tokens=9, temperature=0)
    assert taught.chat(messages, temperature=0, max_tokens=9) == byte_tokenizer.decode(completion.body_ids)
    with pytest.raises(ValueError, match="content is empty"):
        taught.chat("")


def test_a_model_says_what_it_is_and_how_it_is_used(taught_model, byte_tokenizer):
    meta = {"run": "d2", "stage": "sft", "step": 1500}
    chatty = LanguageModel(taught_model, byte_tokenizer, meta=meta)
    count = sum(parameter.numel() for parameter in taught_model.parameters())
    assert repr(chatty) == (
        f"<LanguageModel d2/sft, step 1,500: {count:,} parameters, context 128, on cpu; `.chat(messages)`>"
    )
    theirs = LanguageModel(taught_model, byte_tokenizer, meta={"run": "\x1b[2Jd2"})
    assert repr(theirs).startswith("<LanguageModel ␛[2Jd2: ")
    base = LanguageModel(taught_model, byte_tokenizer, meta=meta | {"stage": "base"})
    assert "`.generate(text)`" in repr(base)
    with pytest.raises(ValueError, match=r"d2/base is a base model.*use \.generate\(text\)"):
        base.chat("Hello")


def test_what_cannot_be_found_is_said_with_what_there_is(tmp_path):
    with pytest.raises(ValueError, match="there are no runs there; train one, or give root="):
        nanolit.load("d3-modern-s1", tmp_path)
    (tmp_path / "runs" / "d3-modern-s1" / "base").mkdir(parents=True)
    with pytest.raises(ValueError, match=r"d4-modern-s1 is neither a release folder nor a run.*d3-modern-s1"):
        nanolit.load("d4-modern-s1", tmp_path)
    with pytest.raises(
        ValueError, match=r"is neither a release folder nor a run in .*/runs; .*: d3-modern-s1$"
    ):
        nanolit.load(tmp_path, tmp_path)
    with pytest.raises(ValueError, match=r"run d3-modern-s1 .* has no release of any stage yet"):
        nanolit.load("d3-modern-s1", tmp_path)
    with pytest.raises(ValueError, match="has no release of sft yet"):
        nanolit.load("d3-modern-s1/sft", tmp_path)


def test_importing_nanolit_leaves_torch_out():
    code = "import sys, nanolit; nanolit.load; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.slow
def test_telemetry_of_libraries_is_off_unless_asked_for() -> None:
    """Oracle: what each library made of its variable when it was imported after nanolit."""
    program = (
        "import os, nanolit, datasets.config, huggingface_hub.constants as hub\n"
        "from gradio.analytics import analytics_enabled\nfrom wandb.env import error_reporting_enabled\n"
        "print(datasets.config.HF_UPDATE_DOWNLOAD_COUNTS, not hub.HF_HUB_DISABLE_TELEMETRY,\n"
        "      analytics_enabled(), error_reporting_enabled())\n"
    )
    unset = {key: value for key, value in os.environ.items() if key not in nanolit.TELEMETRY}
    environment = unset | {"WANDB_ERROR_REPORTING": "true"}  # one is asked for
    done = subprocess.run(
        [sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == ["False", "False", "False", "True"]
