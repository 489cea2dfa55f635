"""Properties of the GPT that hold whatever its weights are."""

import math

import pytest
import torch
import torch.nn.functional as F
from tiny_gpt import EVERYTHING, PLAIN

from nanolit.model.accounting import parameter_counts
from nanolit.model.block import norm
from nanolit.model.gpt import GPT, GPTConfig


def test_no_logit_depends_on_a_later_position(make_gpt, random_ids, flags):
    """Oracle: zero gradient of the logits at t with respect to every embedding after t."""
    gpt, t = make_gpt(flags), 140  # past the short window of 128
    embedded = []
    gpt.embedding.register_forward_hook(lambda _, __, output: embedded.append(output))
    for table in gpt.value_embeddings.values():
        table.register_forward_hook(lambda _, __, output: embedded.append(output))
    logits_BTV = gpt(random_ids(2, 160))
    for gradient in torch.autograd.grad(logits_BTV[:, t].square().sum(), embedded):
        assert gradient[:, t + 1 :].abs().max() == 0
        assert gradient[:, t].abs().max() > 0


def test_a_short_window_hides_what_lies_before_it(make_gpt, random_ids):
    """Depth 2: position 0 reaches t only through the last layer, so with S in it alone it does not at all."""
    gpt = make_gpt(depth=2, window_pattern="S", smear=False)
    gpt.blocks[1].attention.window = gpt.blocks[0].attention.window = 128
    ids_BT = random_ids(1, 256 + 2)
    changed_BT = ids_BT.clone()
    changed_BT[:, 0] = (ids_BT[:, 0] + 1) % 70
    difference_BTV = (gpt(ids_BT) - gpt(changed_BT)).abs()
    assert difference_BTV[:, 256].max() > 0  # two windows back, the last position that it can reach
    assert difference_BTV[:, 257].max() == 0


@pytest.mark.parametrize(("depth", "middle"), [(3, 1), (4, 2)])
def test_backout_takes_away_the_middle_layers_output(make_gpt, random_ids, depth, middle):
    """Oracle: the head on the blocks' own outputs; nanochat's middle is layer depth // 2."""
    gpt, outputs = make_gpt(depth=depth), []
    for block in gpt.blocks:
        block.register_forward_hook(lambda _, __, output: outputs.append(output))
    found_BTV = gpt(random_ids(1, 8))
    x_BTC = norm(outputs[-1] - gpt.backout_scale * outputs[middle])
    torch.testing.assert_close(found_BTV, 15 * torch.tanh(gpt.unembedding(x_BTC)[..., :70] / 15))


def test_every_parameter_gets_a_gradient(make_gpt, random_ids, flags):
    gpt, ids_BT = make_gpt(flags), random_ids(2, 160)
    gpt(ids_BT[:, :-1], ids_BT[:, 1:]).backward()
    assert [name for name, p in gpt.named_parameters() if p.grad is None or p.grad.abs().max() == 0] == []


def test_loss_is_the_mean_cross_entropy_of_learned_positions(make_gpt, random_ids):
    """Oracle: log-softmax of the returned logits, picked by hand."""
    gpt, ids_BT = make_gpt(), random_ids(2, 20)
    targets_BT = random_ids(2, 21)[:, 1:].clone()
    targets_BT[0, :15] = -1
    nats_BT = -gpt(ids_BT).log_softmax(-1).gather(-1, targets_BT.clamp(min=0)[..., None])[..., 0]
    nats_BT = nats_BT * (targets_BT != -1)
    torch.testing.assert_close(gpt(ids_BT, targets_BT, reduction="none"), nats_BT)
    torch.testing.assert_close(gpt(ids_BT, targets_BT, reduction="sum"), nats_BT.sum())
    torch.testing.assert_close(gpt(ids_BT, targets_BT), nats_BT.sum() / 25)


def test_a_batch_with_nothing_to_learn_has_zero_loss(make_gpt, random_ids):
    ids_BT = random_ids(1, 8)
    loss = make_gpt()(ids_BT, torch.full_like(ids_BT, -1))
    loss.backward()
    assert loss == 0


def test_logits_are_capped_and_cover_the_vocabulary_without_padding(make_gpt, random_ids, flags):
    gpt = make_gpt(flags)
    with torch.no_grad():
        gpt.unembedding.weight.mul_(1000)
    logits_BTV = gpt(random_ids(1, 8))
    assert logits_BTV.shape == (1, 8, 70)
    assert logits_BTV.dtype == torch.float32
    assert 14 < logits_BTV.abs().max() <= 15


def test_initialize_after_meta_sets_every_parameter_and_buffer(flags):
    with torch.device("meta"):
        gpt = GPT(GPTConfig(**flags))
    gpt.to_empty(device="cpu")
    with torch.no_grad():
        for tensor in (*gpt.parameters(), *gpt.buffers()):
            tensor.fill_(math.nan)
    gpt.initialize(torch.Generator().manual_seed(0))
    direct = GPT(GPTConfig(**flags))
    direct.initialize(torch.Generator().manual_seed(0))
    for (name, ours), theirs in zip(
        (*gpt.named_parameters(), *gpt.named_buffers()),
        (*direct.parameters(), *direct.buffers()),
        strict=True,
    ):
        assert torch.isfinite(ours).all(), name
        assert torch.equal(ours, theirs), name


def _initialized(flags: dict, **changes) -> dict[str, torch.Tensor]:
    gpt = GPT(GPTConfig(**flags | {"depth": 3, "width": 128} | changes))
    gpt.initialize(torch.Generator().manual_seed(0))
    return {name: parameter.detach() for name, parameter in gpt.named_parameters()}


def test_modern_initialization_has_nanochats_statistics():
    p = _initialized(EVERYTHING, kv_heads=4)
    bound = math.sqrt(3 / 128)
    for part in ("query", "key", "value"):
        weight = p[f"blocks.0.attention.{part}.weight"]
        assert bound * 0.99 < weight.abs().max() <= bound
        assert float(weight.std()) == pytest.approx(1 / math.sqrt(128), rel=0.03)
    assert float(p["blocks.0.mlp.expand.weight"].abs().max()) == pytest.approx(0.4 * bound, rel=0.01)
    assert float(p["value_embeddings.2.weight"].abs().max()) == pytest.approx(bound, rel=0.01)
    assert float(p["embedding.weight"].std()) == pytest.approx(0.8, rel=0.03)
    assert float(p["unembedding.weight"].std()) == pytest.approx(0.001, rel=0.03)
    assert float(p["blocks.0.attention.value_gate.weight"].min()) >= 0
    assert 0.015 < float(p["smear_gate.weight"].max()) <= 0.02
    assert p["residual_scalars"].tolist() == pytest.approx([1.15, 1.10, 1.05])
    assert p["x0_scalars"].tolist() == pytest.approx([0.2, 0.125, 0.05])
    assert p["smear_scale"].item() == 0
    assert p["backout_scale"].item() == pytest.approx(0.2)
    assert all(
        not p[f"blocks.{i}.{zero}.weight"].any()
        for i in range(3)
        for zero in ("attention.output", "mlp.contract")
    )


def test_classic_initialization_has_nanochats_statistics():
    p = _initialized(PLAIN)
    assert float(p["embedding.weight"].std()) == pytest.approx(1, rel=0.03)
    assert float(p["blocks.1.attention.query.weight"].std()) == pytest.approx(1 / math.sqrt(128), rel=0.03)
    assert float(p["blocks.1.mlp.expand.weight"].std()) == pytest.approx(1 / math.sqrt(128), rel=0.03)
    zeros = ("unembedding.weight", "blocks.1.attention.output.weight", "blocks.1.mlp.contract.weight")
    assert all(not p[name].any() for name in zeros)


def test_classic_initialization_shrinks_matrices_that_narrow():
    """Keys of one head in four: fan_out/fan_in is 1/4, so half the standard deviation."""
    p = _initialized(PLAIN, kv_heads=1)
    assert float(p["blocks.0.attention.key.weight"].std()) == pytest.approx(0.5 / math.sqrt(128), rel=0.04)


def test_roles_cover_every_parameter_and_agree_with_the_counts(flags):
    with torch.device("meta"):
        gpt = GPT(GPTConfig(**flags))
    roles, counts = gpt.parameter_roles(), {}
    for name, parameter in gpt.named_parameters():
        counts[roles[name]] = counts.get(roles[name], 0) + parameter.numel()
    assert counts == parameter_counts(gpt.hyperparameters)


def test_hyperparameters_rebuild_the_same_model(flags):
    assert GPT(GPTConfig(**flags)).hyperparameters == flags


def test_training_graph_compiles_whole(make_gpt, random_ids, flags):
    """fullgraph raises at any Python that the compiler would have to leave the graph for."""
    gpt, ids_BT = make_gpt(flags), random_ids(2, 160)
    expected = gpt(ids_BT[:, :-1], ids_BT[:, 1:])
    compiled = torch.compile(gpt, backend="eager", fullgraph=True, dynamic=False)
    torch.testing.assert_close(compiled(ids_BT[:, :-1], ids_BT[:, 1:]), expected)


def test_training_works_after_sampling_made_the_masks(make_gpt, random_ids):
    """Tensors made in inference mode cannot serve a backward pass: the kept masks must not be such."""
    gpt, ids_BT = make_gpt(), random_ids(1, 151)
    with torch.inference_mode():
        gpt(ids_BT)
    gpt(ids_BT, ids_BT).backward()


def test_bfloat16_embeddings_carry_their_dtype_through(make_gpt, random_ids, flags):
    gpt, ids_BT = make_gpt(flags), random_ids(2, 40)
    expected = gpt(ids_BT)
    gpt.prepare(dtype=torch.bfloat16)
    assert gpt.compute_dtype == torch.bfloat16
    assert gpt.blocks[0].mlp.expand.weight.dtype == torch.float32
    seen = []
    gpt.blocks[1].mlp.register_forward_hook(lambda _, __, output: seen.append(output.dtype))
    logits_BTV = gpt(ids_BT)
    assert (seen, logits_BTV.dtype) == ([torch.bfloat16], torch.float32)
    assert F.cosine_similarity(logits_BTV.flatten(), expected.flatten(), dim=0) > 0.99


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"heads": 3}, "width 32 must divide into 3 heads"),
        ({"heads": 32}, "even size"),
        ({"kv_heads": 3}, "multiple of kv_heads"),
        ({"window_pattern": "SX"}, "letters S and L"),
    ],
)
def test_impossible_sizes_are_refused(make_gpt, changes, words):
    with pytest.raises(ValueError, match=words):
        make_gpt(**changes)


def test_text_beyond_the_rotary_tables_is_refused(make_gpt, random_ids):
    with pytest.raises(ValueError, match="81 tokens; this model takes at most 80"):
        make_gpt(context=8)(random_ids(1, 81))
