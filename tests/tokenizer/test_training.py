"""What the trainer takes, refuses and reports."""

import signal
import subprocess
import sys
import time

import pyarrow as pa
import pytest
from tokenizer_texts import TEXTS

from nanolit.tokenizer import training, twin
from nanolit.tokenizer.bpe import PATTERN, Tokenizer
from nanolit.tokenizer.training import Progress, learn

needs_rust = pytest.mark.skipif(
    training._rustbpe is None, reason="NanoLit was installed without its Rust extension"
)


def of(texts) -> list[bytes]:
    return learn(texts, pattern=PATTERN, num_tokens=600)


@needs_rust
@pytest.mark.parametrize("type_", [pa.string(), pa.large_string()])
def test_arrow_arrays_train_what_their_strings_train(type_) -> None:
    expected = of(TEXTS)
    array = pa.array(["not this", *TEXTS, "nor this"], type_)
    assert of([array[1:-1]]) == expected
    assert of([array[1:4], *TEXTS[3:5], array[6:6], array[6:-1]]) == expected


@needs_rust
@pytest.mark.parametrize("threads", [1, 2, 5])
def test_the_number_of_threads_changes_nothing(threads: int) -> None:
    texts = TEXTS * 3_000  # 4 MB: several batches
    assert learn(texts, pattern=PATTERN, num_tokens=600, threads=threads) == of(texts)


@pytest.mark.filterwarnings("ignore:NanoLit was installed without")
def test_the_twin_takes_arrow_arrays_too(monkeypatch) -> None:
    expected = twin.train(TEXTS, pattern=PATTERN, num_tokens=400)
    monkeypatch.setattr(training, "_rustbpe", None)
    assert learn([pa.array(TEXTS)], pattern=PATTERN, num_tokens=400) == expected


@needs_rust
@pytest.mark.parametrize(
    ("array", "message"),
    [
        (pa.array(["a", None]), "text 1 is an arrow array whose row 1 has no text"),
        (pa.array([1, 2]), "text 1 is an arrow array of int64; the tokenizer trains on strings"),
    ],
)
def test_arrow_arrays_without_text_are_refused(array, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        of(["a", array])


@needs_rust
def test_bytes_that_are_no_utf8_are_refused() -> None:
    buffers = [None, pa.py_buffer(b"\0\0\0\0\2\0\0\0"), pa.py_buffer(b"\xff\xfe")]
    with pytest.raises(ValueError, match="the buffers of text 0 hold no UTF-8"):
        of([pa.Array.from_buffers(pa.string(), 1, buffers)])


@needs_rust
def test_too_many_different_words_are_refused_with_their_number() -> None:
    words = [f"word{number:x}" for number in range(2_000)]
    message = r"more than 1000 distinct words \(\d+ in the first \d+ MB\), and all are kept in memory"
    with pytest.raises(ValueError, match=message):
        learn(words, pattern=r"\w+", num_tokens=300, max_words=1_000)
    assert learn(words * 3, pattern=r"\w+", num_tokens=300, max_words=2_000, threads=3)


@pytest.mark.parametrize("train", [learn, twin.train])
@pytest.mark.parametrize("texts", [[], ["", ""]])
@pytest.mark.filterwarnings("ignore:NanoLit was installed without")
def test_an_empty_corpus_is_refused(train, texts: list[str]) -> None:
    with pytest.raises(ValueError, match="there is nothing to train on"):
        train(texts, pattern=PATTERN, num_tokens=300)


@needs_rust
def test_an_invalid_pattern_is_refused_with_its_place() -> None:
    with pytest.raises(ValueError, match=r"not a valid regular expression: Parsing error at position 2"):
        learn(["a"], pattern="(a", num_tokens=300)


@needs_rust
def test_progress_is_told_while_counting() -> None:
    def texts():
        for _ in range(12):
            time.sleep(0.1)
            yield "some words and more " * 250_000  # 5 MB: a batch

    seen = []
    progress = lambda *event: seen.append(event)  # noqa: E731
    settings = {"pattern": PATTERN, "num_tokens": 260, "threads": 2, "max_words": 100}
    assert training._rustbpe is not None
    training._rustbpe.train(texts(), **settings, progress=progress)
    assert [event[0] for event in seen if event[0] != "merge"][-2:] == ["count", "counted"]
    assert all(doing == "merge" or (done % 5_000_000 == 0 and words == 6) for doing, done, words in seen)
    assert ("counted", 60_000_000, 6) in seen


def test_progress_is_lines_with_the_time_left(monkeypatch) -> None:
    now = iter([0.0, 3.0, 5.0, 6.0, 8.0])
    monkeypatch.setattr(time, "monotonic", lambda: next(now))
    lines: list[str] = []
    progress = Progress(lines.append)
    progress("count", 88_275_052, 465_768)
    progress("counted", 88_500_000, 465_800)
    progress("merge", 100, 1_000)
    progress("merge", 200, 1_000)  # a second later: nothing is told
    progress("merge", 500, 1_000)
    assert lines == [
        "counting: 88 MB, 465,768 distinct words so far",
        "counted 88.5 MB: 465,800 distinct words",
        "made 100 of 1,000 merges",
        "made 500 of 1,000 merges, at most 3 s left",
    ]


ENDLESS = """
import itertools, sys
from nanolit.tokenizer.bpe import Tokenizer
if sys.argv[1] == "count":
    texts = itertools.repeat("some words and more " * 1000)
else:  # many merges of many words
    texts = ["".join(f"{a * 7919 % 99991:b}{a:o} " for a in range(400_000))]
    print("go", flush=True)
first = (print("go", flush=True) for _ in range(1))
def all_texts():
    for text in texts:
        next(first, None)
        yield text
Tokenizer.train(all_texts(), vocab_size=200_000, pattern=r"\\S+")
"""


@needs_rust
@pytest.mark.parametrize("doing", ["count", "merge"])
def test_ctrl_c_stops_it_within_a_second(doing: str) -> None:
    command = [sys.executable, "-c", ENDLESS, doing]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None
    process.stdout.readline()
    time.sleep(0.5)
    begun = time.monotonic()
    process.send_signal(signal.SIGINT)
    try:
        error = process.communicate(timeout=30)[1]
    finally:
        process.kill()
    assert "KeyboardInterrupt" in error
    assert time.monotonic() - begun < 3  # a second on a machine with nothing else to do


@needs_rust
def test_what_it_tells_reaches_the_caller_of_train() -> None:
    lines: list[str] = []
    Tokenizer.train(TEXTS, vocab_size=300, tell=lines.append)
    assert lines[0].startswith("counted 0.0 MB: ")


@needs_rust
def test_large_arrow_arrays_are_counted_in_pieces(monkeypatch) -> None:
    """Oracle: the array in one piece. Pieces are smaller, as large, and larger than texts."""
    texts = [*TEXTS, "", "a long one " * 30, "", ""]
    expected = of([pa.array(texts)])
    for piece_bytes in (1, 60, 333):
        monkeypatch.setattr(training, "PIECE_BYTES", piece_bytes)
        assert of([pa.array(["not this", *texts])[1:]]) == expected
