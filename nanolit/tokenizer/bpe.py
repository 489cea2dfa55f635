"""A byte-level BPE tokenizer: trained in Rust or by its Python twin, encoding with tiktoken, kept as JSON."""

import base64
import binascii
import hashlib
import json
import warnings
from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Self

import numpy as np
import tiktoken

from nanolit.machine.paths import read_json, write_json
from nanolit.tokenizer import twin

try:
    from nanolit import _rustbpe
except ImportError:  # installed without a Rust compiler: the twin serves
    _rustbpe = None

FORMAT = 1
FILE_NAME = "tokenizer.json"

# GPT-4's split with at most two digits in a word (nanochat's sweep at depth 12, vocabulary 32,768: 0.965 bits
# per byte with two, 0.969 with one, 0.972 with three).
PATTERN = (
    r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}+|\p{N}{1,2}"
    r"| ?[^\s\p{L}\p{N}]++[\r\n]*|\s*[\r\n]|\s+(?!\S)|\s+"
)
BOS = "<|bos|>"
SPECIAL_TOKENS = (
    BOS,
    "<|user_start|>",
    "<|user_end|>",
    "<|assistant_start|>",
    "<|assistant_end|>",
    "<|python_start|>",
    "<|python_end|>",
    "<|output_start|>",
    "<|output_end|>",
)

# The twin takes about a minute for so many characters; Rust takes two seconds.
TWIN_MAX_CHARACTERS = 20_000_000


class Tokenizer:
    """Text to token ids and back. Ids below 256 are bytes, then come the merges, then the special tokens.

    `tokens` are the bytes of the ordinary tokens in rank order. `hash` names the content (pattern, tokens,
    special tokens): what was made with one tokenizer must not be read with another.
    """

    def __init__(
        self,
        tokens: Sequence[bytes],
        *,
        pattern: str = PATTERN,
        special_tokens: Sequence[str] = SPECIAL_TOKENS,
    ) -> None:
        self.pattern = pattern
        self.tokens = list(tokens)
        self.special_tokens = tuple(special_tokens)
        _check(self.tokens, self.special_tokens)

    @classmethod
    def train(
        cls,
        texts: Iterable[str],
        *,
        vocab_size: int,
        pattern: str = PATTERN,
        special_tokens: Sequence[str] = SPECIAL_TOKENS,
    ) -> Self:
        """Learn `vocab_size` tokens, special ones included, from `texts` (one pass).

        Raises ValueError if the texts don't hold enough different pairs, or a text is not a string.
        """
        smallest = 256 + len(special_tokens)
        if vocab_size < smallest:
            raise ValueError(
                f"vocab_size ({vocab_size:,}) must be at least {smallest:,}: 256 bytes and "
                f"{len(special_tokens)} special tokens; choose a larger one"
            )
        num_tokens = vocab_size - len(special_tokens)
        if _rustbpe is not None:
            tokens = _rustbpe.train(texts, pattern=pattern, num_tokens=num_tokens)
        else:
            tokens = twin.train(_few(texts), pattern=pattern, num_tokens=num_tokens)
        if len(tokens) < num_tokens:
            raise ValueError(
                f"vocab_size ({vocab_size:,}) is more than this text gives: it has {len(tokens) - 256:,} "
                f"merges, enough for {len(tokens) + len(special_tokens):,}; choose a smaller vocabulary, or "
                "more text"
            )
        return cls(tokens, pattern=pattern, special_tokens=special_tokens)

    @classmethod
    def load(cls, folder: Path) -> Self:
        """Read what `save` wrote into `folder`; ValueError if it is absent, damaged or of another format."""
        path = Path(folder) / FILE_NAME
        if not path.is_file():
            raise ValueError(
                f"no tokenizer in {folder} ({FILE_NAME} is missing); train one with "
                "`python -m nanolit.train phase=tokenizer`, or give the folder that holds one"
            )
        content = read_json(path)
        found = content.get("format") if isinstance(content, dict) else None
        if found != FORMAT:
            raise ValueError(
                f"{path} has format {found!r}, this version reads format {FORMAT}; "
                "update nanolit, or train it again"
            )
        try:
            tokens = [base64.b64decode(token, validate=True) for token in content["tokens"]]
            tokenizer = cls(tokens, pattern=content["pattern"], special_tokens=content["special_tokens"])
            intact = tokenizer.hash == content["hash"]
        except (KeyError, TypeError, binascii.Error) as error:
            raise ValueError(f"{path} is damaged ({error!r}); copy it again, or train it again") from error
        if not intact:
            raise ValueError(
                f"{path} is damaged: its content has hash {tokenizer.hash[:8]}, not the "
                f"{content['hash'][:8]} that it states; copy it again, or train it again"
            )
        return tokenizer

    def save(self, folder: Path) -> None:
        """Write tokenizer.json (format 1) into `folder`: whole or not at all."""
        write_json(Path(folder) / FILE_NAME, {"format": FORMAT, "hash": self.hash, **self._content()})

    def _content(self) -> dict:
        return {
            "pattern": self.pattern,
            "special_tokens": list(self.special_tokens),
            "tokens": [base64.b64encode(token).decode() for token in self.tokens],
        }

    @cached_property
    def hash(self) -> str:
        """The sha256 (hex) of the content as canonical JSON: keys sorted, no spaces, ASCII."""
        canonical = json.dumps(self._content(), sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(canonical.encode()).hexdigest()

    @property
    def vocab_size(self) -> int:
        return len(self.tokens) + len(self.special_tokens)

    @property
    def bos_id(self) -> int:
        return self.special_id(BOS)

    def special_id(self, name: str) -> int:
        """The id of a special token, such as "<|bos|>"."""
        if name not in self.special_tokens:
            raise ValueError(
                f"{name!r} is no special token of this tokenizer; it has "
                f"{', '.join(self.special_tokens) or 'none'}"
            )
        return len(self.tokens) + self.special_tokens.index(name)

    def encode(self, text: str) -> list[int]:
        """The ids of `text`; a special token's name inside it is plain text."""
        return self._encoding.encode_ordinary(text)

    def encode_batch(self, texts: Sequence[str], *, threads: int = 4, bos: bool = False) -> list[np.ndarray]:
        """The ids of each text, 1-D, uint16 if the vocabulary fits, else uint32; `bos` prepends `bos_id`."""
        dtype = np.uint16 if self.vocab_size <= 1 << 16 else np.uint32
        first = [self.bos_id] if bos else []
        encoded = self._encoding.encode_ordinary_batch(list(texts), num_threads=threads)
        return [np.array(first + ids, dtype=dtype) for ids in encoded]

    def decode(self, ids: Iterable[int]) -> str:
        """The text of `ids`; bytes that are no UTF-8 become U+FFFD."""
        return self.decode_bytes(ids).decode("utf-8", errors="replace")

    def decode_bytes(self, ids: Iterable[int]) -> bytes:
        """The bytes of `ids`, special tokens as their names. ValueError on an id outside the vocabulary."""
        pieces = []
        for id in map(int, ids):
            if not 0 <= id < self.vocab_size:
                raise ValueError(
                    f"id {id} is outside the vocabulary; allowed are 0 to {self.vocab_size - 1}; "
                    "decode it with the tokenizer that made it"
                )
            pieces.append(self._pieces[id])
        return b"".join(pieces)

    def token_bytes(self) -> np.ndarray:
        """Bytes per id, int32, shape (V,); 0 for special tokens.

        Counted on the raw bytes: a token that ends inside a character has a length too, which a round trip
        through str would get wrong.
        """
        lengths = [len(token) for token in self.tokens] + [0] * len(self.special_tokens)
        return np.array(lengths, dtype=np.int32)

    @cached_property
    def _pieces(self) -> list[bytes]:
        return self.tokens + [name.encode() for name in self.special_tokens]

    @cached_property
    def _encoding(self) -> tiktoken.Encoding:
        return tiktoken.Encoding(
            f"nanolit-{self.hash[:8]}",
            pat_str=self.pattern,
            mergeable_ranks={token: rank for rank, token in enumerate(self.tokens)},
            special_tokens={name: self.special_id(name) for name in self.special_tokens},
        )

    def __repr__(self) -> str:
        return f"Tokenizer(vocab_size={self.vocab_size}, hash={self.hash[:8]})"

    def __getstate__(self) -> dict:
        return {"pattern": self.pattern, "tokens": self.tokens, "special_tokens": self.special_tokens}


def _check(tokens: list[bytes], special_tokens: tuple[str, ...]) -> None:
    if tokens[:256] != [bytes([byte]) for byte in range(256)]:
        raise ValueError(f"the first 256 tokens must be the bytes 0 to 255 in order; got {tokens[:3]}…")
    if len(set(tokens)) != len(tokens):
        twice = next(token for rank, token in enumerate(tokens) if tokens.index(token) != rank)
        raise ValueError(f"token {twice!r} stands twice in the vocabulary; every token must stand once")
    if len(set(special_tokens)) != len(special_tokens) or "" in special_tokens:
        raise ValueError(f"special tokens must be different and not empty; got {', '.join(special_tokens)}")


def _few(texts: Iterable[str]) -> Iterator[str]:
    """`texts`, for the twin: with a warning, and refused beyond what it handles in about a minute."""
    remedy = "install Rust 1.85 or newer (https://rustup.rs), then install nanolit again"
    warnings.warn(
        "nanolit was installed without its Rust extension: training the tokenizer in Python, slowly; "
        + remedy,
        RuntimeWarning,
        stacklevel=3,
    )
    num_characters = 0
    for text in texts:
        num_characters += len(text) if isinstance(text, str) else 0
        if num_characters > TWIN_MAX_CHARACTERS:
            raise ValueError(
                f"the text has more than the {TWIN_MAX_CHARACTERS:,} characters that a tokenizer is trained "
                f"on without the Rust extension; {remedy}, or train on less text"
            )
        yield text
