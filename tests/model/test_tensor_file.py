"""Tensors come from their file as they were written; a file that changes is refused, not mapped."""

import os

import pytest
import torch
from safetensors.torch import save_file

from nanolit.machine.paths import DamagedFile
from nanolit.model.release import TensorFile


@pytest.fixture
def tensors():
    return {"a": torch.randn(300, 7), "b": torch.arange(5, dtype=torch.bfloat16)}


@pytest.fixture
def path(tensors, tmp_path):
    save_file(tensors, tmp_path / "some.safetensors", metadata={"starts": "{}"})
    return tmp_path / "some.safetensors"


def test_tensors_and_their_parts_are_those_that_were_written(path, tensors):
    file = TensorFile(path, remedy="copy it again")
    assert file.shapes == {"a": (300, 7), "b": (5,)}
    assert (file.dtypes, file.metadata) == ({"a": "F32", "b": "BF16"}, {"starts": "{}"})
    assert file.keys() == tensors.keys()
    assert all(torch.equal(file[name], tensor) for name, tensor in tensors.items())
    assert torch.equal(file.part("a", 20, 50), tensors["a"][20:50])
    assert "c" not in file


@pytest.mark.parametrize("left", [0, 5, 100, 2_000])
def test_a_file_that_shrinks_while_it_is_open_is_refused(path, left):
    """Were it mapped, reading what is gone would end the process by SIGBUS."""
    file = TensorFile(path, remedy="copy it again")
    before = file["a"].clone()
    os.truncate(path, left)
    for read in (lambda: file["a"], lambda: file.part("a", 200, 300)):
        with pytest.raises(DamagedFile, match=r"some\.safetensors is damaged \(.*\); copy it again"):
            read()
    with pytest.raises(DamagedFile, match=r"is damaged \(.*\); copy it again"):
        TensorFile(path, remedy="copy it again")
    assert before.isfinite().all()  # what was read is ours
