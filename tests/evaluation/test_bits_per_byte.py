"""Bits per byte against the definition, written out, and over ranks."""

import math
import os
from pathlib import Path

import numpy as np
import pytest
import torch

from nanolit.evaluation.bits_per_byte import bits_per_byte, unigram_bits_per_byte, validation_scores
from nanolit.model.gpt import GPT, GPTConfig
from tests.ranks import run_ranks

TOKEN_BYTES = np.array([0, 1, 3, 2, 0, 5], dtype=np.int32)


def small_gpt() -> GPT:
    gpt = GPT(
        GPTConfig(
            depth=1,
            width=16,
            heads=2,
            kv_heads=2,
            vocab_size=6,
            context=16,
            rope_base=10_000.0,
            window_pattern="L",
            value_embeddings=False,
            residual_scalars=False,
            smear=False,
            backout=False,
            qk_scale=1.0,
            softcap=15.0,
            initialization="modern",
            vocab_multiple=1,
        )
    )
    gpt.initialize(torch.Generator().manual_seed(0))
    with torch.no_grad():
        gpt.unembedding.weight.normal_(generator=torch.Generator().manual_seed(1))
    return gpt


def batches() -> list[tuple[torch.Tensor, torch.Tensor]]:
    generator = torch.Generator().manual_seed(2)
    rows = [torch.randint(6, (2, 9), generator=generator) for _ in range(3)]
    pairs = [(row[:, :-1], row[:, 1:].clone()) for row in rows]
    pairs[0][1][0, :4] = -1
    return pairs


def test_bits_per_byte_equals_its_definition():
    """Oracle: one target at a time; ignored targets and those without bytes count on neither side."""
    gpt, nats, num_bytes = small_gpt(), 0.0, 0
    for ids_BT, targets_BT in batches():
        log_probabilities_BTV = gpt(ids_BT).log_softmax(-1)
        for b in range(2):
            for t in range(8):
                target = int(targets_BT[b, t])
                if target >= 0 and TOKEN_BYTES[target] > 0:
                    nats -= log_probabilities_BTV[b, t, target].item()
                    num_bytes += TOKEN_BYTES[target]
    expected = nats / math.log(2) / num_bytes
    assert bits_per_byte(gpt, batches(), TOKEN_BYTES) == pytest.approx(expected, rel=1e-6)


def test_the_loss_is_that_of_training():
    """Oracle: the mean cross-entropy of every target that isn't ignored, those without bytes too."""
    gpt = small_gpt()
    logits_MV = torch.cat([gpt(ids_BT).flatten(0, 1) for ids_BT, _ in batches()])
    targets_M = torch.cat([targets_BT.flatten() for _, targets_BT in batches()])
    expected = torch.nn.functional.cross_entropy(logits_MV, targets_M.long(), ignore_index=-1).item()
    assert validation_scores(gpt, batches(), TOKEN_BYTES)[1] == pytest.approx(expected, rel=1e-6)


def test_a_model_that_knows_nothing_needs_log2_of_the_vocabulary_per_token():
    gpt = small_gpt()
    torch.nn.init.zeros_(gpt.unembedding.weight)
    assert bits_per_byte(gpt, batches(), np.ones(6)) == pytest.approx(math.log2(6), rel=1e-6)


def test_unigram_bits_per_byte_equals_its_definition():
    """Oracle: the training ids counted by hand, one more of each; the same targets count."""
    targets = [id for _, targets_BT in batches() for id in targets_BT.flatten().tolist()]
    counted = [id for id in targets if id >= 0 and TOKEN_BYTES[id] > 0]
    bits = sum(math.log2(10 / {1: 3, 2: 2, 3: 1, 5: 2}[id]) for id in counted)
    found = unigram_bits_per_byte([np.array([1, 1, 2]), np.array([5])], batches(), TOKEN_BYTES)
    assert found == pytest.approx(bits / sum(TOKEN_BYTES[id] for id in counted))


def test_text_without_bytes_is_refused():
    with pytest.raises(ValueError, match="these batches have none"):
        bits_per_byte(small_gpt(), batches(), np.zeros(6))
    with pytest.raises(ValueError, match="these batches have none"):
        bits_per_byte(small_gpt(), [], TOKEN_BYTES)


def _run_rank(rank: int, folder: Path) -> None:
    meet = f"file://{folder}/meeting"
    torch.distributed.init_process_group("gloo", init_method=meet, rank=rank, world_size=2)
    mine = batches() if rank == 0 else []  # a rank may have none
    (folder / f"{rank}.txt").write_text(repr(bits_per_byte(small_gpt(), mine, TOKEN_BYTES)))
    torch.distributed.destroy_process_group()
    os._exit(0)  # gloo now and then aborts a process that shuts Python down (torch 2.11)


def test_ranks_agree_on_the_sum_over_all_of_them(tmp_path: Path):
    run_ranks(_run_rank, tmp_path, world=2)
    values = [float((tmp_path / f"{rank}.txt").read_text()) for rank in range(2)]
    expected = bits_per_byte(small_gpt(), batches(), TOKEN_BYTES)
    assert values == pytest.approx([expected, expected])
