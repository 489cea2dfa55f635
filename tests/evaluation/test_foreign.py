"""Models of other makers: asked the same questions, with the losses that they themselves would give."""

import importlib.util
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from nanolit import evaluate
from nanolit.evaluation import foreign
from nanolit.evaluation.foreign import ForeignModel
from nanolit.evaluation.spans import Group, OwnScorer
from nanolit.model.release import load_release
from tests.evaluation.small_bundle import write_bundle

RELEASE = Path(__file__).parents[1] / "fixtures/release_format_1"
has_transformers = importlib.util.find_spec("transformers") is not None


class AsTransformers:
    """A NanoLit model behind the calls that a model of transformers answers."""

    def __init__(self, model: Any, **config: Any) -> None:
        self.model, self.device = model, model.device
        self.config = SimpleNamespace(get_text_config=lambda: SimpleNamespace(**config))

    def get_input_embeddings(self) -> Any:
        return self.model.embedding

    def __call__(self, *, input_ids: torch.Tensor, use_cache: bool) -> Any:
        return SimpleNamespace(logits=self.model(input_ids))


class Tokenizer(list):
    bos_token_id, eos_token_id = None, 7


def drawn_groups(vocab_size: int) -> list[Group]:
    draw, groups = np.random.default_rng(5), []
    for number in range(12):
        shared = draw.integers(vocab_size, size=3)
        texts = [
            np.concatenate([shared, draw.integers(vocab_size, size=draw.integers(1, 9))])
            for _ in range(1 + number % 3)
        ]
        groups.append(Group(texts, [3] * len(texts)))
    return groups


@pytest.mark.parametrize("budget", [1, 40, 8_192])
def test_texts_read_alone_and_padded_have_the_losses_of_shared_beginnings(
    monkeypatch: pytest.MonkeyPatch, budget: int
) -> None:
    """Oracle: NanoLit's scorer, of the same weights."""
    monkeypatch.setattr(foreign, "BATCH_TOKENS", budget)
    model, _ = load_release(RELEASE, device=torch.device("cpu"))
    groups = drawn_groups(model.vocab_size)
    scored = ForeignModel(AsTransformers(model), Tokenizer()).start(groups)()
    for found, expected in zip(scored, OwnScorer(model).start(groups)(), strict=True):
        assert [span.loss for span in found] == pytest.approx([span.loss for span in expected], abs=1e-5)
        assert [span.greedy for span in found] == [span.greedy for span in expected]


def test_a_tokenizer_of_another_model_is_refused() -> None:
    model, _ = load_release(RELEASE, device=torch.device("cpu"))
    larger = Tokenizer([0] * (model.embedding.num_embeddings + 1))
    with pytest.raises(ValueError, match="embeddings; save both from the same model"):
        ForeignModel(AsTransformers(model), larger)


def test_folders_that_hold_no_model_and_absent_libraries_are_told_in_a_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [f"hf={tmp_path}", "tasks=core", f"bundle={tmp_path}", f"root={tmp_path / 'root'}"]
    assert evaluate.main(words) == 2
    assert "holds no weights" in capsys.readouterr().err
    (tmp_path / "model.safetensors").write_bytes(b"")
    assert evaluate.main(words) == 2
    assert "has no config.json" in capsys.readouterr().err
    (tmp_path / "config.json").write_text("{}")
    assert evaluate.main(words) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1 or has_transformers
    assert "pip install 'nanolit[hf]'" in said or has_transformers


def test_gpt2_is_shown_beside_its_published_scores_of_original_questions(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = "Task , Accuracy, Centered\ncopa , 0.6, 0.2\ncoqa , 0.1, 0.1\nCORE , , 0.113891\n"
    (tmp_path / "openai-community-gpt2-xl.csv").write_text(lines)
    scores = {"tasks": {"copa": {"accuracy": 0.61}, "coqa": {"accuracy": 0.2}}, "other_questions": ["coqa"]}
    foreign.compare_with_published("openai-community_gpt2-XL", tmp_path, scores)
    said = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert said == [
        ["copa", "0.6", "published,", "here", "+0.010000"],
        ["published", "CORE", "0.113891"],
    ]
    foreign.compare_with_published("d12", tmp_path, scores)
    assert not capsys.readouterr().out


@pytest.mark.skipif(not has_transformers, reason="transformers is not installed")
def test_a_model_that_transformers_saved_is_asked_core(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Oracle: each text's loss as the model itself gives it, labels and all."""
    folder = save_tiny_gpt2(tmp_path / "gpt2")
    bundle = write_bundle(tmp_path / "bundle")
    words = [f"hf={folder}", "tasks=core", f"bundle={bundle}", f"root={tmp_path / 'root'}"]
    assert evaluate.main(words) == 0
    scores = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert scores["crop"] == 64, "prompts are longer than its positions"
    [items] = (tmp_path / "root/eval/models").glob("gpt2-*/core/copa.jsonl")
    model = foreign.open_foreign(folder)
    for line in items.read_text().splitlines()[1:]:
        item = json.loads(line)
        question = item["question"]
        texts = [f"{question['query']} {choice}" for choice in question["choices"]]
        first, second = model.encode_batch(texts, bos=True)
        differ = first[: len(second)] != second[: len(first)]
        shared = int(differ.argmax()) if differ.any() else len(first)  # then the first is no more than shared
        ids = torch.from_numpy(second)[None]
        labels = ids.clone()
        labels[:, :shared] = -100
        assert item["losses"][1] == pytest.approx(model.model(ids, labels=labels).loss.item(), abs=1e-4)


def save_tiny_gpt2(folder: Path) -> Path:
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers
    from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast  # pyright: ignore

    plain = Tokenizer(models.BPE())
    plain.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    letters = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=300, special_tokens=["<|endoftext|>"], initial_alphabet=letters, show_progress=False
    )
    plain.train_from_iterator(["the old sea and the stone"] * 9, trainer)
    end = "<|endoftext|>"
    PreTrainedTokenizerFast(tokenizer_object=plain, bos_token=end, eos_token=end).save_pretrained(folder)
    torch.manual_seed(0)
    config = GPT2Config(vocab_size=plain.get_vocab_size(), n_positions=64, n_embd=16, n_layer=2, n_head=2)
    GPT2LMHeadModel(config).save_pretrained(folder)
    return folder
