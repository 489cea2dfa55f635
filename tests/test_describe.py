"""`python -m nanolit.describe` counts what is there; the oracles count it with Python's own means."""

import json
import os
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from nanolit import describe
from nanolit.tokenizer.bpe import Tokenizer

TEXTS = [f"document {n}: " + "to and fro é " * (n % 40) for n in range(600)]
HELD_OUT = [TEXTS[5], "something else", "and more"]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder of texts, one of which is held out as well, and a tokenizer of bytes beside it."""
    (tmp_path / "texts").mkdir()
    for name, rows in (("a", TEXTS[:400]), ("b", TEXTS[400:]), ("val", HELD_OUT)):
        pq.write_table(pa.table({"text": rows}), tmp_path / "texts" / f"{name}.parquet", row_group_size=50)
    Tokenizer([bytes([byte]) for byte in range(256)]).save(tmp_path / "tokenizer")
    return tmp_path


def run(folder: Path, *more: str) -> list[str]:
    data = ["data=local", f"data.path={folder / 'texts'}", f"root={folder / 'root'}", "model.context=128"]
    return [*data, f"tokenizer={folder / 'tokenizer'}", *more]


def test_everything_is_counted(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert describe.main(run(folder)) == 0
    printed = capsys.readouterr().out
    found = json.loads(printed.splitlines()[-1])
    assert (found["train_shards"], found["train_documents"], found["validation_documents"]) == (2, 600, 3)
    assert found["read_characters"] == sum(map(len, TEXTS))
    assert found["read_bytes"] == sum(len(text.encode()) for text in TEXTS)
    assert found["read_tokens"] == found["read_bytes"] + 600  # a token a byte, and one that begins
    assert found["read_documents_also_held_out"] == 1
    assert found["cropped_fraction"]["bestfit_split"] < found["cropped_fraction"]["bestfit"]
    assert found["cropped_fraction"]["flat"] == 0 < found["cropped_fraction"]["bestfit"] < 0.9
    assert found["length_quantiles"]["50"] in {len(text.encode()) + 1 for text in TEXTS}
    assert Path(found["picture"]).read_bytes().startswith(b"\x89PNG")
    assert "| documents read" in printed


def test_only_so_many_documents_are_read(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert describe.main(run(folder, "documents=130")) == 0
    found = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert (found["train_documents"], found["read_documents"]) == (600, 130)
    assert found["read_characters"] == sum(map(len, TEXTS[:130]))


def test_without_a_tokenizer_one_is_learned(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = [word for word in run(folder, "stage.tokenizer.vocab_size=270") if "tokenizer=" not in word]
    assert describe.main(words) == 0
    assert "training a vocabulary of 270 for these figures" in capsys.readouterr().out
    assert not (folder / "root" / "tokenizers").exists()


def test_offline_the_hub_is_not_asked(folder: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    """The libraries read the variable when they are imported, which this process has done already."""

    def load(*_: object, **__: object) -> None:
        raise ValueError(f"offline is {os.environ.get('HF_HUB_OFFLINE')}")

    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.setattr("datasets.load_dataset", load)
    for offline, value in (("true", "1"), ("false", "None")):
        words = [*run(folder, f"offline={offline}")[2:], "data=hf:a/b"]
        assert describe.main(words) == 2
        assert f"data=hf:a/b can't be read from the hub (offline is {value})" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("word", "said"),
    [
        ("documents=few", "documents=few must be"),
        ("data.pth=x", "data.pth"),
        ("shards=0", "shards=0 must be"),
    ],
)
def test_what_it_does_not_know_is_one_line(folder: Path, word: str, said: str, capsys) -> None:
    assert describe.main(run(folder, word)) == 2
    error = capsys.readouterr().err
    assert said in error
    assert error.count("\n") == 1
