"""One line on the text that a run will see, measured on a sample of it before training begins."""

import itertools
from collections.abc import Sequence

import numpy as np

from nanolit.data.packing import Document, Packing, make_packer
from nanolit.data.parquet import Corpus, read_texts
from nanolit.data.stream import BUFFER, DRAWN_BUFFERS, LARGEST_BUFFER_FRACTION, SPLIT_DRAWN
from nanolit.tokenizer.bpe import Tokenizer

SAMPLED_GROUPS = 16
SAMPLED_DOCUMENTS = 64  # of a row group: half a second in all
WARNED_FRACTION = 0.4  # more than best fit drops of web pages (packing.py)


def outlook(corpus: Corpus, tokenizer: Tokenizer, *, packing: Packing, context: int, num_tokens: int) -> str:
    """Return what was read, about how many tokens and epochs it gives, and what packing drops."""
    import pyarrow.compute as pc

    groups = corpus.train_groups()
    documents: list[np.ndarray] = []
    sampled_bytes = 0
    for shard, group in groups[:: -(-len(groups) // SAMPLED_GROUPS) or 1]:
        texts = read_texts(shard, group)[:SAMPLED_DOCUMENTS]
        lengths = pc.call_function("binary_length", [texts])
        sampled_bytes += pc.call_function("sum", [lengths]).as_py() or 0
        tokens, offsets = tokenizer.encode_flat(texts, bos=True)
        documents += [tokens[start:stop] for start, stop in itertools.pairwise(offsets)]
    dropped = dropped_fraction(documents, tokenizer, packing, context=context)
    every = sum(shard.group_bytes[group] for shard, group in groups)
    held = every * sum(map(len, documents)) / max(1, sampled_bytes)
    about = float(f"{held:.2g}")
    epochs = num_tokens / max(1.0, held * (1 - dropped))
    text = (
        f"{corpus.summary or corpus.name}: about {about:,.0f} tokens, {epochs:,.2f} epochs in this run; "
        f"packing ({packing}) drops about {dropped:.0%}"
    )
    if dropped > WARNED_FRACTION and packing == "bestfit":
        text += ", since documents are longer than rows: recipe.packing=bestfit_split keeps them"
    return text


def dropped_fraction(
    documents: Sequence[np.ndarray], tokenizer: Tokenizer, packing: Packing, *, context: int
) -> float:
    """Return the share of the documents' tokens that a lane of the stream would crop."""
    buffer = max(1, min(BUFFER, int(len(documents) * LARGEST_BUFFER_FRACTION)))
    drawn = SPLIT_DRAWN if packing == "bestfit_split" else DRAWN_BUFFERS * buffer
    packer = make_packer(packing, capacity=context + 1, buffer=buffer, dtype=tokenizer.dtype)
    numbered = enumerate(documents)
    kept = cropped = 0  # before the last row, which the end of the sample cuts short

    def draw() -> list[Document]:
        return list(itertools.islice(numbered, drawn))

    while packer.pack(draw) is not None:
        kept, cropped = packer.num_kept, packer.num_cropped
    return cropped / max(1, kept + cropped)
