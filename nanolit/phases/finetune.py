"""Finetuning on conversations, midtraining (mid) and supervised (sft).

Both have base's loss. With packing=flat (classic's mid) every token is learned; otherwise what the assistant
says alone: tokenizer/conversation.py makes that mask, and the stream gives all other tokens the target -1,
which the GPT's loss leaves out.
"""

from nanolit.config.build import build
from nanolit.config.schema import Job, finetune_settings
from nanolit.data.conversations import ConversationStream, ValidationConversations
from nanolit.evaluation.evaluators import BitsPerByte
from nanolit.phases.core import Inputs, Phase, Training
from nanolit.planning.finetune import FinetunePlan
from nanolit.tokenizer.bpe import Tokenizer


class Finetune(Phase):
    """Next-token cross-entropy over the learned tokens of conversations: the loss of the core."""


def finetune_evaluator(
    job: Job, plan: FinetunePlan, tokenizer: Tokenizer, *, micro_batch: int, rank: int = 0, world: int = 1
) -> BitsPerByte:
    """Return the bits per byte of the mixture's held-out conversations."""
    rows = ValidationConversations(
        [build(source) for source in finetune_settings(job, plan.stage)["mixture"]["validation"]],
        tokenizer,
        context=plan.gpt["context"],
        micro_batch=micro_batch,
        packing=plan.packing,
        num_rows=plan.eval_rows,
        rank=rank,
        world=world,
    )
    return BitsPerByte(rows, rows=rows.identity, token_bytes=tokenizer.token_bytes())


def build_finetune(job: Job, plan: FinetunePlan, inputs: Inputs) -> Training:
    """Data: the stage's mixture, packed into rows. Evaluation: bits per byte of its held-out tasks."""
    stream = ConversationStream(
        [build(source) for source in finetune_settings(job, plan.stage)["mixture"]["sources"]],
        inputs.tokenizer,
        context=plan.gpt["context"],
        rows=plan.rows,
        micro_batch=plan.micro_batch,
        seed=job["seed"],
        packing=plan.packing,
        max_steps=plan.num_steps,
        rank=inputs.rank,
        world=plan.ranks,
    )
    share = {"micro_batch": plan.micro_batch, "rank": inputs.rank, "world": plan.ranks}
    left_out = "; ".join(stream.left_out.parts())
    return Training(
        phase=Finetune.of(job, plan, inputs, num_steps=stream.num_steps),
        stream=stream,
        evaluator=finetune_evaluator(job, plan, inputs.tokenizer, **share),
        left_out=left_out and f"left out of the mixture: {left_out}",
    )
