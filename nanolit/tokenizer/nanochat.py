"""Read nanochat's tokenizer.pkl (a pickled tiktoken encoding) without running anything in it."""

import pickle
from pathlib import Path

from nanolit.tokenizer.bpe import Tokenizer

FILE_NAME = "tokenizer.pkl"
# What damaged bytes make an unpickler raise, beside its own error
DAMAGES = (EOFError, AttributeError, LookupError, TypeError, ValueError, ArithmeticError, MemoryError)
DAMAGES += (RecursionError,)


def read_tokenizer(folder: Path) -> Tokenizer:
    """Read `folder`/tokenizer.pkl; ids stay as they are: bytes, merges, then the special tokens.

    ValueError if the file is anything but a pickled tiktoken encoding.
    """
    path = Path(folder) / FILE_NAME
    if not path.is_file():
        raise ValueError(
            f"no nanochat tokenizer in {folder} ({FILE_NAME} is missing); give the folder that has it"
        )
    try:
        with path.open("rb") as file:
            encoding = _Unpickler(file).load()
        state = encoding.state
        ranks, specials = state["mergeable_ranks"], state["special_tokens"]
        tokens = sorted(ranks, key=ranks.__getitem__)
        names = sorted(specials, key=specials.__getitem__)
        ids = [ranks[token] for token in tokens] + [specials[name] for name in names]
        pattern = state["pat_str"]
    except (pickle.UnpicklingError, *DAMAGES) as error:
        raise ValueError(
            f"{path} is not a nanochat tokenizer ({error}); only a pickled tiktoken.core.Encoding is "
            "allowed: give the file that its tok_train wrote"
        ) from error
    if ids != list(range(len(ids))):
        raise ValueError(
            f"{path} has gaps in its ids; they must run from 0 to {len(ids) - 1}, with special tokens last"
        )
    try:
        return Tokenizer(tokens, pattern=pattern, special_tokens=names)
    except (ValueError, TypeError) as error:
        raise ValueError(f"{path} does not hold a nanochat vocabulary ({error}); copy it again") from error


class _PickledEncoding:
    """A stand-in for tiktoken.core.Encoding that runs no constructor and keeps the pickled state."""

    state: dict

    def __setstate__(self, state: dict) -> None:
        self.state = state


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> type:
        if (module, name) != ("tiktoken.core", "Encoding"):
            raise pickle.UnpicklingError(f"it asks for {module}.{name}")
        return _PickledEncoding
