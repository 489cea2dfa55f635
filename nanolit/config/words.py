"""Words of the command line that Hydra's grammar refuses: what is wrong, and the form that works."""

import shlex
from collections.abc import Mapping, Sequence

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException


def grammar_error(words: Sequence[str], options: Mapping[str, Sequence[str]]) -> str | None:
    """Return what is wrong with the first word that Hydra cannot read; None if it reads them all.

    `options` are the choices of each group, to recognise `d12` without its `model=`.
    """
    parser = OverridesParser.create()
    for index, word in enumerate(words):
        try:
            parser.parse_override(word)
        except HydraException:
            following = words[index + 1] if index + 1 < len(words) else ""
            return malformed(word, following, options)
    return None


def malformed(word: str, following: str, options: Mapping[str, Sequence[str]]) -> str:
    """Return one line: what is wrong with a word that Hydra cannot read, and what to write."""
    key, equals, value = word.partition("=")
    if word.startswith("--"):
        bare = following and not following.startswith("-") and "=" not in following
        value = value or (following if bare else "…")
        name = key.lstrip("-").replace("-", "_")
        return f"there is no {key} here; settings are written KEY=VALUE: {name}={value}"
    if not equals:
        groups = [group for group, names in options.items() if word in names]
        example = f"did you mean {groups[0]}={word}?" if groups else "as in model=d12"
        return f"{word!r} is not a setting: settings are written KEY=VALUE, {example}"
    if value.endswith(","):
        return f"{word} ends with a comma; leave it out: {word.rstrip(',')}"
    unclosed = any(value.count(left) != value.count(right) for left, right in ("[]", "{}", "()"))
    what = "has a bracket that is not closed" if unclosed else "has characters with a meaning to Hydra"
    return f"{word} {what}; {'close it, or ' * unclosed}quote the value: {quoted(key, value)}"


def quoted(key: str, value: str) -> str:
    """Quote a value for Hydra, and the whole for the shell: "data.path='/srv/step=3'"."""
    escaped = value.replace("'", "\\'")
    word = f"{key}='{escaped}'"
    return shlex.quote(word) if set(word) & set('"$`!') or "\\\\" in word else f'"{word}"'
