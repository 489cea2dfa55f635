"""The refusals of the lm_eval command; evaluation/test_harness.py has what it asks."""

import importlib.util

import pytest

from nanolit import lm_eval


@pytest.mark.parametrize("words", [["tasks=piqa"], ["tasks=piqa", "run=a", "release=b"]])
def test_one_model_is_asked(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert lm_eval.main(words) == 2
    assert "give either run=RUN[/STAGE] or release=FOLDER" in capsys.readouterr().err


@pytest.mark.skipif(importlib.util.find_spec("lm_eval") is not None, reason="lm-eval is installed")
def test_without_lm_eval_it_says_what_to_install(capsys: pytest.CaptureFixture[str]) -> None:
    assert lm_eval.main(["run=a", "tasks=piqa"]) == 2
    assert capsys.readouterr().err.endswith("install it: pip install 'nanolit[lm-eval]'\n")
