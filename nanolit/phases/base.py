"""Base pretraining: predict the next token of text."""

from pathlib import Path

from nanolit.config.build import build
from nanolit.config.schema import Job
from nanolit.data.outlook import outlook
from nanolit.data.pretrain import training_stream, validation_rows
from nanolit.data.shards import Corpus
from nanolit.evaluation.evaluators import BitsPerByte
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
    rows = validation_rows(
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
    corpus = build(job["data"]).open_corpus(Path(job["root"]), num_shards=plan.shards)
    stream = training_stream(
        corpus,
        inputs.tokenizer,
        context=plan.gpt["context"],
        rows=plan.rows,
        micro_batch=plan.micro_batch,
        seed=job["seed"],
        packing=plan.packing,
        rank=inputs.rank,
        world=plan.ranks,
    )
    share = {"micro_batch": plan.micro_batch, "rank": inputs.rank, "world": plan.ranks}
    evaluator = base_evaluator(job, plan, inputs.tokenizer, corpus=corpus, **share)
    phase = Base(**inputs.phase_arguments(job, plan), num_steps=plan.num_steps)
    ahead = ""
    if inputs.rank == 0:
        settings = {"packing": plan.packing, "context": plan.gpt["context"], "num_tokens": plan.tokens}
        ahead = outlook(corpus, inputs.tokenizer, **settings)
    return Training(phase=phase, stream=stream, evaluator=evaluator, left_out=ahead)
