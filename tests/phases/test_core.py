"""What torch's cache of compiled models knows them by."""

import pytest
import torch.compiler.config as compiler

from nanolit.phases import core


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # torch's own, as it imports its compiler
def test_another_source_of_the_model_is_another_key(tmp_path, monkeypatch):
    """The gradients of our operators are in no graph: an edited one must not be taken from the cache."""
    monkeypatch.setattr(compiler, "cache_key_tag", "")
    monkeypatch.setattr(core, "PACKAGE", tmp_path)
    source = tmp_path / "model" / "loss.py"
    source.parent.mkdir()
    keys = []
    for text in ("one", "other"):
        source.write_text(text)
        core.compile_gpt(lambda ids: ids)  # pyright: ignore[reportArgumentType]
        keys.append(compiler.cache_key_tag)
    assert keys[0] != keys[1]
