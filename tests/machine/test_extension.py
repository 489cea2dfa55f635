"""The extension that an install may lack, and one that is there but was built for another Python."""

import importlib
import importlib.util

import pytest

from nanolit.machine.system import load_extension


def test_an_install_without_it_goes_on_without(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert load_extension() is None


def test_one_that_does_not_load_is_not_passed_over(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(name: str) -> None:
        raise ImportError("libpython3.11.so.1.0: cannot open shared object file")

    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object())
    monkeypatch.setattr(importlib, "import_module", fail)
    with pytest.raises(ImportError, match=r"libpython3.11.so.1.0.*install NanoLit again"):
        load_extension()
