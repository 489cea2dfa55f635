"""What each phase's file builds from a job and its plan: real data of the sample, a model of two layers."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from nanolit.config.build import build
from nanolit.config.compose import compose
from nanolit.config.schema import Job
from nanolit.model.gpt import GPT, GPTConfig
from nanolit.phases.base import build_base
from nanolit.phases.core import Inputs
from nanolit.phases.finetune import build_finetune
from nanolit.phases.rl import build_rl
from nanolit.planning.plans import fresh_plan
from nanolit.tokenizer.bpe import Tokenizer
from nanolit.tokenizer.conversation import render_prompt

TINY = ["experiment=demo", "model.width=32", "model.heads=2", "model.context=1024", "total_batch=4096"]


def job_of(root: Path, tokenizer: Tokenizer, *overrides: str) -> Job:
    size = f"stage.tokenizer.vocab_size={tokenizer.vocab_size}"
    return compose([*TINY, size, f"root={root}", *overrides])


def inputs_of(plan: Any, tokenizer: Tokenizer) -> Inputs:
    return Inputs(
        gpt=GPT(GPTConfig(**plan.gpt)),
        tokenizer=tokenizer,
        compile=False,
        finished_steps=0,
        restore=None,
        rank=0,
    )


def test_base_is_scored_on_the_rows_of_its_plan(tmp_path: Path, byte_tokenizer: Tokenizer) -> None:
    job = job_of(tmp_path, byte_tokenizer, "stage.base.eval_tokens=16384")
    plan: Any = fresh_plan(job, "base")
    training = build_base(job, plan, inputs_of(plan, byte_tokenizer))
    assert training.evaluator.state()["val_rows"]["rows"] == plan.eval_rows == 16
    step = next(iter(training.stream))
    assert sum(len(ids_BT) for ids_BT, _ in step.micro_batches) == plan.rows


def test_data_cache_is_all_that_keeping_tokens_takes(tmp_path: Path, byte_tokenizer: Tokenizer) -> None:
    """The setting of every dataset reaches the stream; the tokens lie below the root's data."""
    job = job_of(tmp_path, byte_tokenizer, "data.cache=true")
    plan: Any = fresh_plan(job, "base")
    training = build_base(job, plan, inputs_of(plan, byte_tokenizer))
    (file,) = (tmp_path / "data" / "stories" / "tokens").glob("train-*.tokens")
    assert file.stat().st_size > 4_000_000  # bytes of the sample, a token each
    assert len(next(iter(training.stream)).micro_batches) == plan.accumulation


def test_the_plans_rates_and_the_recipes_flags_reach_the_optimizer(
    tmp_path: Path, byte_tokenizer: Tokenizer
) -> None:
    job = job_of(tmp_path, byte_tokenizer, "recipe.optimizer.clip_norm=0.5", "stage.base.lr_scale=0.1")
    plan: Any = fresh_plan(job, "base")
    optimizer = build_base(job, plan, inputs_of(plan, byte_tokenizer)).phase.configure_optimizers()
    assert optimizer.clip_norm == 0.5
    assert {group["role"]: group["initial_lr"] for group in optimizer.param_groups} == {
        role: settings["lr"] for role, settings in plan.groups.items()
    }


@pytest.mark.parametrize(("stage", "all_learned"), [("mid", True), ("sft", False)])
def test_mid_learns_every_token_and_sft_what_the_assistant_says(
    stage: str, all_learned: bool, tmp_path: Path, byte_tokenizer: Tokenizer
) -> None:
    job = job_of(tmp_path, byte_tokenizer, "recipe=classic")
    plan: Any = fresh_plan(job, stage)
    training = build_finetune(job, plan, inputs_of(plan, byte_tokenizer))
    targets = torch.cat([targets_BT.flatten() for _, targets_BT in next(iter(training.stream)).micro_batches])
    assert bool((targets != -1).all()) == all_learned
    assert (targets != -1).any()


def test_rl_says_which_prompts_are_longer_than_the_context(tmp_path: Path, byte_tokenizer: Tokenizer) -> None:
    """Oracle: the prompts' lengths, rendered one by one."""
    job = job_of(tmp_path, byte_tokenizer)
    task = {"_target_": "nanolit.tasks.spelling.SimpleSpelling", "split": "train", "size": 90}
    plan: Any = fresh_plan(job, "rl")
    whole = replace(plan, task={**task, "source": "sample"})
    task = build(whole.task)
    lengths = [len(render_prompt(task[index], byte_tokenizer)) for index in range(len(task))]
    context = max(lengths) - 1
    plan = replace(whole, gpt={**whole.gpt, "context": context})
    too_long = sum(length > context for length in lengths)
    assert 0 < too_long < len(lengths)
    left_out = build_rl(job, plan, inputs_of(plan, byte_tokenizer)).left_out
    assert left_out.startswith(f"left out of {task.name}: {too_long:,} of 90 prompts")
    assert build_rl(job, whole, inputs_of(whole, byte_tokenizer)).left_out == ""
