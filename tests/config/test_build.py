"""What a stored job names as `_target_` can still be built."""

import importlib

import pytest

# Every target that a job.yaml or plan.json of format 1 can hold. If one moves, stored runs still name it as
# here: keep the old name working where stored jobs are read.
STORED = (
    "nanolit.data.shards.ClimbMix",
    "nanolit.data.shards.FineWebEdu",
    "nanolit.data.shards.LocalFolder",
    "nanolit.data.shards.Sample",
    "nanolit.model.gpt.GPT",
    "nanolit.optim.muon_adamw.MuonAdamW",
    "nanolit.optim.schedule.Schedule",
    "nanolit.tasks.arc.ARC",
    "nanolit.tasks.gsm8k.GSM8K",
    "nanolit.tasks.humaneval.HumanEval",
    "nanolit.tasks.identity.Identity",
    "nanolit.tasks.jsonl.ConversationFile",
    "nanolit.tasks.mmlu.MMLU",
    "nanolit.tasks.smoltalk.SmolTalk",
    "nanolit.tasks.spelling.SimpleSpelling",
    "nanolit.tasks.spelling.SpellingBee",
    "nanolit.tasks.sums.Sums",
    "lightning.pytorch.loggers.WandbLogger",
)


@pytest.mark.parametrize("target", STORED)
def test_a_target_of_a_stored_job_is_still_a_class_there(target: str) -> None:
    module, _, name = target.rpartition(".")
    assert isinstance(getattr(importlib.import_module(module), name), type)
