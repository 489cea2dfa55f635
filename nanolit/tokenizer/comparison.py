"""Compare compression: bytes per token on texts of several kinds, beside OpenAI's tokenizers.

After nanochat's tok_eval (https://github.com/karpathy/nanochat, scripts/tok_eval.py); the texts are our own.
"""

import os
import threading
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import tiktoken

from nanolit.machine.paths import write_atomically
from nanolit.tokenizer.bpe import Tokenizer

FILE_NAME = "comparison.md"
TEXTS = ("news", "code", "maths", "science", "other languages")
TEXTS_FOLDER = Path(__file__).resolve().parent / "comparison_texts"
REFERENCES = ("gpt2", "cl100k_base", "o200k_base")
SAMPLE_CHARACTERS = 1_000_000  # of the training and of the validation text: enough for three digits
FETCH_SECONDS = 20.0  # tiktoken itself would wait for ever


@dataclass(frozen=True)
class Row:
    """One text: its bytes in UTF-8, and how many tokens each tokenizer, by name, makes of it."""

    text: str
    num_bytes: int
    num_tokens: dict[str, int]

    def bytes_per_token(self, name: str) -> float:
        return self.num_bytes / self.num_tokens[name]

    def gain(self, name: str) -> float:
        """Return how many more bytes our tokens hold than those of `name`, as a fraction."""
        return self.num_tokens[name] / self.num_tokens["ours"] - 1


def compare(
    tokenizer: Tokenizer, references: Mapping[str, tiktoken.Encoding], *, texts: Mapping[str, str]
) -> list[Row]:
    """Compare on each text: the five that come with nanolit, then `texts` (such as train and validation)."""
    rows = []
    for name, text in {**own_texts(), **texts}.items():
        counts = {"ours": len(tokenizer.encode(text))}
        counts |= {other: len(encoding.encode_ordinary(text)) for other, encoding in references.items()}
        rows.append(Row(name, len(text.encode()), counts))
    return rows


def own_texts() -> dict[str, str]:
    """About a thousand bytes of each kind, written for this comparison: no corpus holds them."""
    files = {name: TEXTS_FOLDER / f"{name.replace(' ', '_')}.txt" for name in TEXTS}
    return {name: path.read_text(encoding="utf-8") for name, path in files.items()}


def sample_of(texts: Iterable[str], *, max_characters: int = SAMPLE_CHARACTERS) -> str:
    """Return the first texts, joined by blank lines, up to about `max_characters`."""
    taken, num_characters = [], 0
    for text in texts:
        taken.append(text[: max_characters - num_characters])
        num_characters += len(taken[-1])
        if num_characters >= max_characters:
            break
    return "\n\n".join(taken)


def reference_encodings(*, offline: bool = False) -> dict[str, tiktoken.Encoding]:
    """Return OpenAI's encodings by name, as far as they can be fetched.

    tiktoken keeps them in the folder TIKTOKEN_CACHE_DIR and fetches what is missing there, which gets
    `FETCH_SECONDS`. `offline` asks for none without that folder.
    """
    if offline and not os.environ.get("TIKTOKEN_CACHE_DIR"):
        return {}
    found: dict[str, tiktoken.Encoding] = {}

    def fetch() -> None:
        for name in REFERENCES:
            try:
                found[name] = tiktoken.get_encoding(name)
            except Exception:  # whatever the network does: the column is left out, and the table says so
                return

    thread = threading.Thread(target=fetch, daemon=True)
    thread.start()
    thread.join(FETCH_SECONDS)
    return dict(found)


def comparison_table(rows: list[Row]) -> str:
    """Return the rows as Markdown: bytes per token, and in brackets what ours hold more or less."""
    others = [name for name in rows[0].num_tokens if name != "ours"]
    header = ["text", "bytes", "ours", *others]
    table = [header, ["---", *["---:"] * (len(header) - 1)]]
    for row in rows:
        cells = [f"{row.bytes_per_token(name):.2f} ({row.gain(name):+.1%})" for name in others]
        table.append([row.text, f"{row.num_bytes:,}", f"{row.bytes_per_token('ours'):.2f}", *cells])
    lines = ["| " + " | ".join(cells) + " |" for cells in table]
    return "\n".join(lines) + "\n"


def write_comparison(
    folder: Path,
    tokenizer: Tokenizer,
    *,
    train: Iterable[str],
    validation: Iterable[str],
    offline: bool = False,
) -> list[Row]:
    """Compare and write comparison.md into `folder`; also the rows."""
    references = reference_encodings(offline=offline)
    texts = {"train": sample_of(train), "validation": sample_of(validation)}
    rows = compare(tokenizer, references, texts=texts)
    sizes = [f"ours {tokenizer.vocab_size:,}"]
    sizes += [f"{name} {encoding.n_vocab:,}" for name, encoding in references.items()]
    missing = [name for name in REFERENCES if name not in references]
    lines = [
        "Bytes per token (more is better); in brackets, how much more or less text our tokens hold.",
        f"Vocabularies: {', '.join(sizes)}.",
        "",
        comparison_table(rows),
    ]
    if missing:
        lines.append(f"Not compared, because tiktoken could not download them: {', '.join(missing)}.\n")
    write_atomically(Path(folder) / FILE_NAME, "\n".join(lines))
    return rows
