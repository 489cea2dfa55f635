"""The vocabulary fits little text of one's own, unless it was typed, and is that of the model before."""

from pathlib import Path

import pytest

from nanolit.config.compose import compose
from nanolit.machine.paths import write_json


def vocabulary(root: Path, *overrides: str) -> int:
    return compose([f"root={root}", *overrides])["stage"]["tokenizer"]["vocab_size"]


@pytest.mark.parametrize(
    ("num_bytes", "tokens"), [(100, 512), (1_100_000, 1024), (4_300_000, 4096), (60 << 20, 32_768)]
)
def test_little_text_has_a_token_a_kib(tmp_path: Path, num_bytes: int, tokens: int) -> None:
    """1,024 for Shakespeare, as many as the demo has for the sample, and never more than the recipe's."""
    with (tmp_path / "a.txt").open("wb") as file:
        file.truncate(num_bytes)
    assert vocabulary(tmp_path, f"data={tmp_path}/a.txt") == tokens


@pytest.mark.parametrize("typed", ["recipe.vocab_size=999", "stage.tokenizer.vocab_size=999"])
def test_a_typed_vocabulary_stays(tmp_path: Path, typed: str) -> None:
    (tmp_path / "a.txt").write_text("a")
    assert vocabulary(tmp_path, f"data={tmp_path}/a.txt", typed) == 999


def test_other_corpora_and_paths_that_are_elsewhere_keep_the_recipes(tmp_path: Path) -> None:
    assert vocabulary(tmp_path, "data=/absent/a.txt") == 32_768
    assert vocabulary(tmp_path, "recipe=classic", "data=hf:a/b") == 65_536


def test_a_later_stage_has_the_vocabulary_of_its_model(tmp_path: Path) -> None:
    write_json(tmp_path / "runs" / "mine" / "base" / "release" / "gpt.json", {"vocab_size": 777})
    assert vocabulary(tmp_path, "phase=sft", "run=mine") == 777
    assert vocabulary(tmp_path, "phase=sft", "start_from=mine/base") == 777
    assert vocabulary(tmp_path, "phase=sft", f"start_from={tmp_path}/runs/mine/base/release") == 777
