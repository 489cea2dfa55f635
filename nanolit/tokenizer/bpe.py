"""A byte-level BPE tokenizer: trained and applied in Rust, kept as JSON; its ids are tiktoken's, exactly."""

import base64
import hashlib
import json
from collections.abc import Callable, Iterable, Sequence
from functools import cached_property
from itertools import chain, pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Self, TypeVar

import numpy as np
import tiktoken
from typing_extensions import TypedDict

from nanolit.machine.paths import check_content, read_json, write_json
from nanolit.machine.system import ENCODERS, load_extension
from nanolit.tokenizer.training import as_buffers, learn

if TYPE_CHECKING:
    import pyarrow as pa

    from nanolit._rustbpe import Encoder as RustEncoder

_rustbpe = load_extension()  # None: tiktoken encodes

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

Encoded = TypeVar("Encoded")

REMEDY = "copy it again, or train it again"
# Of all tokens together. Building an encoder takes time by the square of a token's length: this is 2 s
LARGEST_SQUARES = 10**10


class Stored(TypedDict):
    """Fields of tokenizer.json besides its format."""

    hash: str
    pattern: str
    special_tokens: list[str]
    tokens: list[str]  # base64


class Tokenizer:
    """Text to token ids and back. Ids below 256 are bytes, then come the merges, then the special tokens.

    `tokens` are the bytes of the ordinary tokens in rank order. `hash` names the content (pattern, tokens,
    special tokens): what was made with one tokenizer must not be read with another. The Rust extension
    encodes; where it was not built, tiktoken does, slower and with the same ids.
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
        texts: "Iterable[str | pa.Array]",
        *,
        vocab_size: int,
        pattern: str = PATTERN,
        special_tokens: Sequence[str] = SPECIAL_TOKENS,
        tell: Callable[[str], None] | None = None,
    ) -> Self:
        """Learn `vocab_size` tokens, special ones included, from `texts` (one pass; strings or arrow arrays).

        `tell` is handed lines about the progress, one every two seconds. Raises ValueError if the texts don't
        hold enough different pairs, a text is not a string, or the pattern is not a regular expression.
        """
        smallest = 256 + len(special_tokens)
        if vocab_size < smallest:
            raise ValueError(
                f"vocab_size ({vocab_size:,}) must be at least {smallest:,}: 256 bytes and "
                f"{len(special_tokens)} special tokens; choose a larger one"
            )
        num_tokens = vocab_size - len(special_tokens)
        tokens = learn(texts, pattern=pattern, num_tokens=num_tokens, tell=tell)
        if len(tokens) < num_tokens:
            raise ValueError(
                f"vocab_size ({vocab_size:,}) is more than this text yields: it has {len(tokens) - 256:,} "
                f"merges; give recipe.vocab_size={len(tokens) + len(special_tokens)} or less, or more text"
            )
        return cls(tokens, pattern=pattern, special_tokens=special_tokens)

    @classmethod
    def load(cls, folder: Path) -> Self:
        """Read what `save` wrote into `folder`; ValueError if it is absent, damaged or of another format."""
        path = Path(folder) / FILE_NAME
        if not path.is_file():
            raise ValueError(
                f"no tokenizer in {folder} ({FILE_NAME} is missing); train one with `python -m nanolit.train "
                "phase=tokenizer`, or give a folder that has one"
            )
        content = read_json(path, remedy=REMEDY)
        if content.get("format") != FORMAT:
            raise ValueError(
                f"{path} has format {content.get('format')!r}, this version reads format {FORMAT}; update "
                "NanoLit, or train it again"
            )
        check_content(content, Stored, path, remedy=REMEDY)
        try:
            tokens = [base64.b64decode(token, validate=True) for token in content["tokens"]]
            tokenizer = cls(tokens, pattern=content["pattern"], special_tokens=content["special_tokens"])
        except ValueError as error:  # not base64, or no vocabulary
            raise ValueError(f"{path} is damaged ({error}); {REMEDY}") from error
        if tokenizer.hash != content["hash"]:
            raise ValueError(
                f"{path} is damaged: its content has hash {tokenizer.hash[:8]}, not the "
                f"{content['hash'][:8]} that it states; {REMEDY}"
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
        """Return the id of a special token, such as "<|bos|>"."""
        if name not in self.special_tokens:
            raise ValueError(
                f"{name!r} is not a special token of this tokenizer; it has "
                f"{', '.join(self.special_tokens) or 'none'}"
            )
        return len(self.tokens) + self.special_tokens.index(name)

    def encode(self, text: str) -> list[int]:
        """Return the ids of `text`; a special token's name in it is plain text, as strangers may write it."""
        if self._rust is None:
            return self._tiktoken.encode_ordinary(text)
        encode = self._rust.encode
        return _mended(lambda texts: encode(texts[0]), [text])

    def encode_batch(
        self, texts: Sequence[str], *, threads: int = ENCODERS, bos: bool = False
    ) -> list[np.ndarray]:
        """Encode as `encode_flat` does, to an array for each text with memory of its own."""
        ids, offsets = self.encode_flat(texts, threads=threads, bos=bos)
        return [ids[start:stop].copy() for start, stop in pairwise(offsets)]

    def encode_flat(
        self, texts: "Sequence[str] | pa.Array", *, threads: int = ENCODERS, bos: bool = False
    ) -> tuple[np.ndarray, np.ndarray]:
        """Encode all texts into one array of ids; int64 offsets, one more than texts, say where each begins.

        The ids are uint16 if the vocabulary fits, else uint32; `bos` puts `bos_id` before each text. Texts of
        an arrow array reach Rust without becoming Python objects. Other Python threads run meanwhile.
        """
        first = self.bos_id if bos else None
        if self._rust is None:
            return self._flat_by_tiktoken(texts, threads=threads, start=[] if first is None else [first])
        encode = self._rust.encode_flat
        if isinstance(texts, Sequence):
            ids, offsets = _mended(lambda texts: encode(texts, first=first, threads=threads), texts)
        else:
            ids, offsets = encode(as_buffers(texts), first=first, threads=threads)
        return np.frombuffer(ids, self.dtype), np.frombuffer(offsets, np.int64)

    def _flat_by_tiktoken(
        self, texts: "Sequence[str] | pa.Array", *, threads: int, start: list[int]
    ) -> tuple[np.ndarray, np.ndarray]:
        strings = list(texts) if isinstance(texts, Sequence) else texts.to_pylist()
        for index, text in enumerate(strings):
            if not isinstance(text, str):
                kind = type(text).__name__
                raise ValueError(f"text {index} is of type {kind}; only strings can be encoded: leave it out")
        batch = [start + ids for ids in self._tiktoken.encode_ordinary_batch(strings, num_threads=threads)]
        offsets = np.cumsum([0, *map(len, batch)], dtype=np.int64)
        return np.array(list(chain.from_iterable(batch)), self.dtype), offsets

    @cached_property
    def dtype(self) -> type[np.uint16] | type[np.uint32]:
        """Return the type that a batch's ids are stored as."""
        return np.uint16 if self.vocab_size <= 1 << 16 else np.uint32

    def decode(self, ids: Iterable[int]) -> str:
        """Return the text of `ids`; bytes that are not UTF-8 become U+FFFD."""
        return self.decode_bytes(ids).decode("utf-8", errors="replace")

    def decode_bytes(self, ids: Iterable[int]) -> bytes:
        """Return the bytes of `ids`, special tokens as names; ValueError on an id outside the vocabulary."""
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
        """Return bytes per id, int32, shape (V,); 0 for special tokens.

        Counted on the raw bytes: a token that ends inside a character has a length too, which a round trip
        through str would get wrong.
        """
        lengths = [len(token) for token in self.tokens] + [0] * len(self.special_tokens)
        return np.array(lengths, dtype=np.int32)

    @cached_property
    def _pieces(self) -> list[bytes]:
        return self.tokens + [name.encode() for name in self.special_tokens]

    @cached_property
    def _rust(self) -> "RustEncoder | None":
        if _rustbpe is None:
            return None
        return _rustbpe.Encoder(self.tokens, pattern=self.pattern, wide=self.dtype is np.uint32)

    @cached_property
    def _tiktoken(self) -> tiktoken.Encoding:
        return as_tiktoken(self)

    def __repr__(self) -> str:
        return f"Tokenizer(vocab_size={self.vocab_size}, hash={self.hash[:8]})"

    def __getstate__(self) -> dict:
        return {name: getattr(self, name) for name in ("pattern", "tokens", "special_tokens")}


def as_tiktoken(tokenizer: Tokenizer) -> tiktoken.Encoding:
    """Build the same tokenizer as tiktoken's."""
    return tiktoken.Encoding(
        f"nanolit-{tokenizer.hash[:8]}",
        pat_str=tokenizer.pattern,
        mergeable_ranks={token: rank for rank, token in enumerate(tokenizer.tokens)},
        special_tokens={name: tokenizer.special_id(name) for name in tokenizer.special_tokens},
    )


def _mended(encode: Callable[[list[str]], Encoded], texts: Sequence[str]) -> Encoded:
    """Encode texts with U+FFFD for each half of a surrogate pair, which is not a character.

    Two halves that follow each other become their character. Both as in tiktoken.
    """
    try:
        return encode(list(texts))
    except UnicodeEncodeError:
        return encode([text.encode("utf-16", "surrogatepass").decode("utf-16", "replace") for text in texts])


def _check(tokens: list[bytes], special_tokens: tuple[str, ...]) -> None:
    if tokens[:256] != [bytes([byte]) for byte in range(256)]:
        raise ValueError(f"the first 256 tokens must be the bytes 0 to 255 in order; got {tokens[:3]}…")
    if len(set(tokens)) != len(tokens):
        twice = next(token for rank, token in enumerate(tokens) if tokens.index(token) != rank)
        raise ValueError(f"token {twice!r} is in the vocabulary twice; every token must be unique")
    if sum(len(token) ** 2 for token in tokens) > LARGEST_SQUARES:
        longest = max(map(len, tokens))
        raise ValueError(f"the tokens are too long to come from text: the longest has {longest:,} bytes")
    if len(set(special_tokens)) != len(special_tokens) or "" in special_tokens:
        raise ValueError(f"special tokens must be unique and not empty; got {', '.join(special_tokens)}")
