"""key=value on the command line of the plain commands, with errors that say what is allowed."""

import argparse
import difflib
from collections.abc import Collection


def parse(arguments: list[str], *, prog: str, usage: str, keys: Collection[str]) -> dict[str, str]:
    """The key=value pairs; --help prints `usage`; ValueError names a wrong key and the nearest spelling."""
    parser = argparse.ArgumentParser(
        prog=prog,
        usage=f"{prog} [key=value ...]",
        description=usage,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("settings", nargs="*", metavar="key=value", help="see above")
    settings: dict[str, str] = {}
    for word in parser.parse_args(arguments).settings:
        key, equals, value = word.partition("=")
        if not equals or key not in keys:
            near = difflib.get_close_matches(key, keys, n=1)
            hint = f"did you mean {near[0]}=…?" if near else f"allowed: {', '.join(f'{k}=…' for k in keys)}"
            raise ValueError(f"don't know {word!r}; {hint}")
        if key in settings:
            raise ValueError(f"{key}= is given twice ({settings[key]!r} and {value!r}); give it once")
        if not value:
            raise ValueError(f"{key}= is empty; write {key}=VALUE or leave it out")
        settings[key] = value
    return settings


def names(text: str) -> list[str]:
    """'a, b' → ['a', 'b'], without repeats."""
    return list(dict.fromkeys(name for part in text.split(",") if (name := part.strip())))
