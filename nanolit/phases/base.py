"""Base pretraining: predict the next token of text."""

from pathlib import Path

from nanolit.config.build import build
from nanolit.config.schema import Job
from nanolit.data.pretrain import training_stream, validation_rows
from nanolit.evaluation.evaluators import BitsPerByte
from nanolit.phases.core import Inputs, Phase, Training
from nanolit.planning.base import BasePlan


class Base(Phase):
    """Next-token cross-entropy over every token of the stream: the loss of the core."""


def build_base(job: Job, plan: BasePlan, inputs: Inputs) -> Training:
    """Data: the corpus, packed into rows. Evaluation: bits per byte of held-out text."""
    tokenizer, context = inputs.tokenizer, plan.gpt["context"]
    corpus = build(job["data"]).open_corpus(Path(job["root"]), num_shards=plan.shards)
    stream = training_stream(
        corpus,
        tokenizer,
        context=context,
        rows=plan.rows,
        micro_batch=plan.micro_batch,
        seed=job["seed"],
        packing=plan.packing,
        rank=inputs.rank,
        world=plan.ranks,
    )
    validation = validation_rows(
        corpus,
        tokenizer,
        context=context,
        micro_batch=plan.micro_batch,
        packing=plan.packing,
        num_tokens=plan.eval_rows * context,
        rank=inputs.rank,
        world=plan.ranks,
    )
    evaluator = BitsPerByte(validation, rows=validation.identity, token_bytes=tokenizer.token_bytes())
    phase = Base(**inputs.phase_arguments(job, plan), num_steps=plan.num_steps)
    return Training(phase=phase, stream=stream, evaluator=evaluator)
