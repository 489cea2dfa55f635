"""NANOLIT_DEVICE chooses among the devices that are there."""

import pytest
import torch

from nanolit.machine.device import pick_device


@pytest.mark.parametrize("wish", ["cuda", "gpu", "cpu:7", "meta", "\x1b[2J"])
def test_a_device_that_is_not_there_is_one_line(monkeypatch, wish):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    monkeypatch.setenv("NANOLIT_DEVICE", wish)
    with pytest.raises(ValueError, match=r"NANOLIT_DEVICE is '.*'; this machine has cpu$"):
        pick_device()


@pytest.mark.parametrize(("wish", "kind"), [(None, "cuda"), ("", "cuda"), ("cpu", "cpu"), ("mps", "mps")])
def test_the_best_device_is_taken_unless_another_is_chosen(monkeypatch, wish, kind):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    monkeypatch.delenv("NANOLIT_DEVICE", raising=False)
    if wish is not None:
        monkeypatch.setenv("NANOLIT_DEVICE", wish)
    assert pick_device().type == kind
