"""The file for Hugging Face's tokenizers gives the same ids as ours."""

from pathlib import Path

import pytest
from tokenizer_texts import TEXTS

from nanolit.tokenizer.bpe import Tokenizer, as_tiktoken
from nanolit.tokenizer.export import huggingface_content, write_huggingface


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.train(TEXTS, vocab_size=512)


def test_hugging_faces_tokenizers_reads_its_file_and_writes_it_back(
    tokenizer: Tokenizer, tmp_path: Path
) -> None:
    tokenizers = pytest.importorskip("tokenizers", reason="the package tokenizers is not installed")
    path = write_huggingface(tokenizer, tmp_path)
    theirs = tokenizers.Tokenizer.from_file(str(path))
    theirs.save(str(tmp_path / "again.json"))
    again = tokenizers.Tokenizer.from_file(str(tmp_path / "again.json"))
    for text in [*TEXTS, "the" * 100, "<|bos|>hello<|output_end|> there"]:
        ids = as_tiktoken(tokenizer).encode(text, allowed_special="all")
        assert theirs.encode(text).ids == ids
        assert again.encode(text).ids == ids
        assert theirs.decode(ids, skip_special_tokens=False) == text


def test_the_file_of_tokenizers_holds_every_token_once(tokenizer: Tokenizer) -> None:
    model = huggingface_content(tokenizer)["model"]
    assert len(model["vocab"]) == len(tokenizer.tokens)
    assert model["vocab"]["Ġ"] == 32  # so GPT-2 writes a space
    made = [left + right for left, right in model["merges"]]
    assert {model["vocab"][token] for token in made} == set(range(256, len(tokenizer.tokens)))


def test_an_artefact_of_ours_is_not_replaced(tokenizer: Tokenizer, tmp_path: Path) -> None:
    tokenizer.save(tmp_path)
    with pytest.raises(ValueError, match="is a NanoLit tokenizer, which this would replace"):
        write_huggingface(tokenizer, tmp_path)
    assert Tokenizer.load(tmp_path).hash == tokenizer.hash
