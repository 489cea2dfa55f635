"""No input ends in more than a line: the short form of dev/fuzz.py, in this process."""

import warnings
from pathlib import Path

import pytest

from nanolit.tasks import bundle

PER_KIND = 2


def test_strange_inputs_of_every_kind_are_read_or_refused_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What each kind checks besides is in dev/fuzz_files.py and dev/fuzz_words.py."""
    from dev.fuzz import KINDS, judged, source  # half of all that there is to import

    monkeypatch.setattr(bundle, "URL", bundle.URL)  # put back at the end, as all that kinds change
    monkeypatch.setattr("sys.stdin", None)
    monkeypatch.setattr("sys.argv", ["fuzz"])
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("HYDRA_FULL_ERROR", "")
    monkeypatch.delenv("HYDRA_FULL_ERROR")
    monkeypatch.chdir(tmp_path)
    failed = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for name, (_, open_kind) in KINDS.items():
            folder = tmp_path / name
            folder.mkdir()
            kind = open_kind(folder)
            for number in range(PER_KIND):
                outcome, about = judged(kind, kind.make(source(1, name, number)))
                failed += [f"kinds={name} number={number}: {about}"] if outcome == "failed" else []
    assert failed == []


def test_a_kind_that_raises_prints_lines_or_steers_the_terminal_fails() -> None:
    """The judge itself: what must fail, and what must not."""
    from dev.fuzz import judged
    from dev.fuzz_files import Kind

    def outcome(feed) -> str:
        return judged(Kind(lambda _: None, feed), None)[0]

    def refuse(_: object) -> None:
        raise ValueError("no; give another")

    assert outcome(lambda _: print("fine")) == "accepted"
    assert outcome(refuse) == "refused"
    assert outcome(lambda _: {}["a"]) == "failed"
    assert outcome(lambda _: print("\x1b]0;title\x07")) == "failed"
    assert outcome(lambda _: print("Traceback (most recent call last)")) == "failed"
    assert outcome(lambda _: 2) == "failed"  # without a word
    assert outcome(lambda _: 70) == "failed"
