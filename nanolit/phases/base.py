"""Base pretraining: predict the next token of text."""

from pathlib import Path

from nanolit.config.build import build
from nanolit.config.schema import Job
from nanolit.data.cache import TokenCache
from nanolit.data.outlook import outlook
from nanolit.data.parquet import Corpus
from nanolit.data.stream import PretrainStream
from nanolit.data.validation import ValidationRows
from nanolit.evaluation.evaluators import BitsPerByte
from nanolit.machine.paths import dataset_folder
from nanolit.phases.core import Inputs, Phase, Training
from nanolit.planning.base import BasePlan
from nanolit.tokenizer.bpe import Tokenizer


class Base(Phase):
    """Next-token cross-entropy over every token of the stream: the loss of the core."""


def base_evaluator(
    job: Job,
    plan: BasePlan,
    tokenizer: Tokenizer,
    *,
    micro_batch: int,
    corpus: Corpus | None = None,
    rank: int = 0,
    world: int = 1,
) -> BitsPerByte:
    """Return the bits per byte of the held-out rows; of a corpus that isn't open yet, one shard suffices."""
    context = plan.gpt["context"]
    rows = ValidationRows(
        corpus or build(job["data"]).open_corpus(Path(job["root"]), num_shards=1),
        tokenizer,
        context=context,
        micro_batch=micro_batch,
        packing=plan.packing,
        num_tokens=plan.eval_rows * context,
        rank=rank,
        world=world,
    )
    return BitsPerByte(rows, rows=rows.identity, token_bytes=tokenizer.token_bytes())


def build_base(job: Job, plan: BasePlan, inputs: Inputs) -> Training:
    """Data: the corpus, packed into rows. Evaluation: bits per byte of held-out text."""
    root, dataset = Path(job["root"]), build(job["data"])
    corpus = dataset.open_corpus(root, num_shards=plan.shards)
    # Tokens encoded once and kept on disk, if data.cache asks for it: 245 → 24 ms of processor time a million
    # tokens. Off by default, as tokenizing keeps up with training anyway (LOG.md, 2026-11-23).
    folder = dataset_folder(root, dataset.name) / "tokens" if dataset.cache else None
    stream = PretrainStream(
        corpus,
        inputs.tokenizer,
        context=plan.gpt["context"],
        rows=plan.rows,
        micro_batch=plan.micro_batch,
        seed=job["seed"],
        packing=plan.packing,
        rank=inputs.rank,
        world=plan.ranks,
        cache=TokenCache(folder, corpus.train_shards, inputs.tokenizer) if folder else None,
    )
    share = {"micro_batch": plan.micro_batch, "rank": inputs.rank, "world": plan.ranks}
    evaluator = base_evaluator(job, plan, inputs.tokenizer, corpus=corpus, **share)
    phase = Base.of(job, plan, inputs, num_steps=plan.num_steps)
    ahead = ""
    if inputs.rank == 0 and corpus.summary:  # own text: of the others the figures are known (LOG.md)
        settings = {"packing": plan.packing, "context": plan.gpt["context"], "num_tokens": plan.tokens}
        ahead = outlook(corpus, inputs.tokenizer, **settings)
    return Training(phase=phase, stream=stream, evaluator=evaluator, left_out=ahead)
