"""Byte-pair encoding written to be read: the Rust trainer's oracle, and what serves where there is no Rust.

`train` gives the same tokens as `nanolit._rustbpe.train`. (The package `regex` may know a newer Unicode than
Rust's, so that characters assigned in 2025 or later can be cut differently.)
"""

import heapq
from collections import Counter, defaultdict
from collections.abc import Iterable
from itertools import pairwise

import regex

Pair = tuple[int, int]


def train(texts: Iterable[str], *, pattern: str, num_tokens: int) -> list[bytes]:
    """Learn tokens in rank order, the 256 bytes first; fewer than `num_tokens` if there are no more pairs."""
    tokens = [bytes([byte]) for byte in range(256)]
    for left, right in learn_merges(count_words(texts, pattern), num_tokens - 256):
        tokens.append(tokens[left] + tokens[right])
    return tokens


def count_words(texts: Iterable[str], pattern: str) -> Counter[str]:
    """Count the pieces that `pattern` cuts out of the texts."""
    try:
        compiled = regex.compile(pattern)
    except regex.error as error:
        raise ValueError(f"the pattern {pattern!r} is not a valid regular expression: {error}") from error
    words: Counter[str] = Counter()
    for index, text in enumerate(texts):
        if not isinstance(text, str):
            kind = type(text).__name__
            raise ValueError(
                f"text {index} is of type {kind}; the tokenizer trains on strings: leave such rows out"
            )
        if not text.isascii() and any("\ud800" <= character <= "\udfff" for character in text):
            raise ValueError(
                f"text {index} holds half a surrogate pair, which is not a character: leave it out"
            )
        words.update(match.group() for match in compiled.finditer(text))
    if not words:
        raise ValueError(
            "there is nothing to train on: the texts are empty, or the pattern matches nothing in them; give "
            "more text"
        )
    return words


def learn_merges(words: dict[str, int], num_merges: int) -> list[Pair]:
    """Return the first `num_merges` merges, or as many as there are.

    The most frequent pair of neighbouring tokens is merged next; of equally frequent ones the one with the
    smaller left id, then the smaller right id (the rule of rustbpe 0.1.0). Occurrences overlap: aaa holds
    (a, a) twice. Merge i makes token 256 + i. Counting once and then only correcting the counts round each
    replacement costs O(bytes + replacements) in place of O(bytes × merges).
    """
    spellings = [list(word.encode()) for word in words]
    counts = list(words.values())
    pair_counts: Counter[Pair] = Counter()
    places: defaultdict[Pair, set[int]] = defaultdict(set)  # the words that may hold the pair
    for index, spelling in enumerate(spellings):
        for pair in pairwise(spelling):
            pair_counts[pair] += counts[index]
            places[pair].add(index)

    queue = [(-count, pair) for pair, count in pair_counts.items()]
    heapq.heapify(queue)
    merges: list[Pair] = []
    while queue and len(merges) < num_merges:
        count, pair = heapq.heappop(queue)
        if pair_counts[pair] < -count:  # fell since it was queued: queue it with the count it has now
            if pair_counts[pair] > 0:
                heapq.heappush(queue, (-pair_counts[pair], pair))
            continue
        new_id = 256 + len(merges)
        new_pairs: set[Pair] = set()
        for index in places.pop(pair):
            spelling, changes = _replace(spellings[index], pair, new_id)
            spellings[index] = spelling
            for changed, change in changes:
                pair_counts[changed] += change * counts[index]
                if change > 0:
                    places[changed].add(index)
                    new_pairs.add(changed)
        for new_pair in new_pairs:
            if pair_counts[new_pair] > 0:
                heapq.heappush(queue, (-pair_counts[new_pair], new_pair))
        merges.append(pair)
    return merges


def _replace(spelling: list[int], pair: Pair, new_id: int) -> tuple[list[int], list[tuple[Pair, int]]]:
    """Replace every `pair` in `spelling` by `new_id`, left to right; return the changed pair counts too."""
    left, right = pair
    replaced: list[int] = []
    changes: list[tuple[Pair, int]] = []
    position = 0
    while position < len(spelling):
        if spelling[position : position + 2] != [left, right]:
            replaced.append(spelling[position])
            position += 1
            continue
        changes.append((pair, -1))
        if replaced:
            changes += [((replaced[-1], left), -1), ((replaced[-1], new_id), 1)]
        if position + 2 < len(spelling):
            after = spelling[position + 2]
            changes += [((right, after), -1), ((new_id, after), 1)]
        replaced.append(new_id)
        position += 2
    return replaced, changes
