"""Make the sample that ships with the package: `python dev/make_sample.py FOLDER`.

FOLDER has parquet shards with the columns text, source and id; the last one by name is held out. Training
documents come from the first shards, validation documents from the held-out one. The result depends only on
the shards; ATTRIBUTION.md in nanolit/data/sample lists what was taken and what was changed.
"""

import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from nanolit.data.shards import SAMPLE_FOLDER

TRAIN_CHARACTERS, VALIDATION_CHARACTERS = 4_300_000, 400_000
SHARES = {"simplewiki": 0.40, "enwiki": 0.25, "gutenberg": 0.20, "wikinews": 0.15}
LENGTHS = (400, 1_800)  # characters: no document is much longer than 512 tokens of a small vocabulary
ROWS_PER_GROUP = 39  # small: 96 groups, so that each of 16 lanes owns six
# What is left where markup was removed: empty or hanging brackets, numbered formulas, markup characters, a
# space before a comma, a preposition or article without its noun, a paragraph that begins in mid-sentence.
LEFTOVER = re.compile(
    r"\(\s*[,;]?\s*\)|\([,;]|[,;—-]\s*\)|formula_\d|[][{}<>|]| [,;.]|,,|\.,|^[,;.)]|(?-i:^[a-z])|ISBN|"
    r"https?:|\b(at|in|of|by|with|from|the|a|an|and|for|on|to|is|was|about|some|than|approximately)[,.]|"
    r"\b(a|an|the) (of|in|is|was|are|and|by|to|at|on)\b|\b(at|of) (in|at|by|on|and|is|was)\b",
    re.MULTILINE | re.IGNORECASE,
)


def shorten(text: str) -> str:
    """Return the leading whole paragraphs within the length limit; empty if the first is longer."""
    if len(text) <= LENGTHS[1]:
        return text
    return text[: text.rfind("\n\n", 0, LENGTHS[1]) + 1].strip()


def documents(path: Path) -> Iterator[dict[str, str]]:
    """Yield the documents of a shard that read as whole prose, shortened, in the shard's order."""
    for row in pq.read_table(path).to_pylist():
        text = shorten(row["text"].strip())
        if len(text) < LENGTHS[0] or LEFTOVER.search(text) or any(len(p) < 3 for p in text.split("\n\n")):
            continue
        yield {"text": text, "source": row["source"], "id": row["id"]}


def collect(paths: list[Path], num_characters: int, excluded: set[str]) -> list[dict[str, str]]:
    """Return documents in order until every source has its share, without the works in `excluded`."""
    left = {source: share * num_characters for source, share in SHARES.items()}
    rows = []
    for path in paths:
        for row in documents(path):
            if left[row["source"]] > 0 and work(row) not in excluded:
                left[row["source"]] -= len(row["text"])
                rows.append(row)
        if max(left.values()) <= 0:
            return spread(rows)
    raise ValueError(f"{len(paths)} shards have too little text; characters still missing: {left}")


def work(row: dict[str, str]) -> str:
    """Return the article or book that a document is taken from: books come in numbered pieces."""
    return row["id"].split("#")[0]


def spread(rows: list[dict[str, str]]) -> list[dict[str, str]]:
    """Return the rows with every source spread evenly from the first to the last."""
    count = {source: sum(row["source"] == source for row in rows) for source in SHARES}
    seen = dict.fromkeys(SHARES, 0)
    places = []
    for row in rows:
        seen[row["source"]] += 1
        places.append((seen[row["source"]] / count[row["source"]], row["id"]))
    return [row for _, row in sorted(zip(places, rows, strict=True), key=lambda pair: pair[0])]


def write(rows: list[dict[str, str]], path: Path) -> None:
    pq.write_table(
        pa.Table.from_pylist(
            rows, schema=pa.schema([(name, pa.string()) for name in ("text", "source", "id")])
        ),
        path,
        row_group_size=ROWS_PER_GROUP,
        compression="zstd",
        compression_level=19,
        use_dictionary=False,
    )
    characters = sum(len(row["text"]) for row in rows)
    print(f"{path.name}: {len(rows):,} documents, {characters:,} characters, {path.stat().st_size:,} bytes")


def main(folder: Path) -> None:
    *train, held_out = sorted(folder.glob("*.parquet"))
    validation = collect([held_out], VALIDATION_CHARACTERS, set())
    write(validation, SAMPLE_FOLDER / "validation.parquet")
    write(
        collect(train, TRAIN_CHARACTERS, {work(row) for row in validation}), SAMPLE_FOLDER / "train.parquet"
    )


if __name__ == "__main__":
    main(Path(sys.argv[1]))
