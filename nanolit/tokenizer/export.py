"""The tokenizer as tokenizer.json of Hugging Face's tokenizers."""

from pathlib import Path

from nanolit.machine.paths import write_json
from nanolit.tokenizer.bpe import Tokenizer

HUGGINGFACE_FILE = "tokenizer.json"


def write_huggingface(tokenizer: Tokenizer, folder: Path) -> Path:
    """Write the file that `tokenizers.Tokenizer.from_file` reads; ids, special tokens and split are ours.

    Not into a folder with an artefact of ours, whose file has the same name. There special tokens in a text
    become tokens, as in the encoding of `bpe.as_tiktoken` with allowed_special="all".
    """
    path = Path(folder) / HUGGINGFACE_FILE
    if path.exists() and b'"hash"' in path.read_bytes()[:400]:
        raise ValueError(f"{path} is a NanoLit tokenizer, which this would replace; give another folder")
    write_json(path, huggingface_content(tokenizer))
    return path


def huggingface_content(tokenizer: Tokenizer) -> dict:
    """Return what the package tokenizers keeps in tokenizer.json, for this tokenizer."""
    tokens = [_printable(token) for token in tokenizer.tokens]
    split = {
        "type": "Split",
        "pattern": {"Regex": tokenizer.pattern},
        "behavior": "Isolated",
        "invert": False,
    }
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False, "use_regex": False}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [
            {
                "id": tokenizer.special_id(name),
                "content": name,
                "single_word": False,
                "lstrip": False,
                "rstrip": False,
                "normalized": False,
                "special": True,
            }
            for name in tokenizer.special_tokens
        ],
        "normalizer": None,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [split, byte_level]},
        "post_processor": None,
        "decoder": byte_level,
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": True,  # a word that is a token is that token, whether merges lead there or not
            "vocab": {token: id for id, token in enumerate(tokens)},
            "merges": [list(pair) for pair in _merges(tokenizer)],
        },
    }


def _merges(tokenizer: Tokenizer) -> list[tuple[str, str]]:
    """Every pair of tokens that together are one, by the rank of what they make.

    Not only the pairs of the training: what two neighbours make is decided by their bytes, as in tiktoken.
    """
    rank_of = {token: rank for rank, token in enumerate(tokenizer.tokens)}
    merges = []
    for token in tokenizer.tokens:
        cuts = [(token[:cut], token[cut:]) for cut in range(1, len(token))]
        merges += [
            (_printable(left), _printable(right))
            for left, right in cuts
            if left in rank_of and right in rank_of
        ]
    return merges


def _byte_characters() -> list[str]:
    """Return a printable character for each byte, as GPT-2's encoder.json writes them.

    Bytes that are printable in Latin-1 stand for themselves; the others get the characters from U+0100 on, in
    order. (OpenAI, github.com/openai/gpt-2, encoder.py: bytes_to_unicode.)
    """
    itself = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = iter(range(0x100, 0x200))
    return [chr(byte if byte in itself else next(others)) for byte in range(256)]


_CHARACTERS = _byte_characters()


def _printable(token: bytes) -> str:
    return "".join(_CHARACTERS[byte] for byte in token)
