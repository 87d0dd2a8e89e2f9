"""Feed-forward channels: CFSP against its baselines, smaller layers that compute the same, budgets in multiples."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from sparseworks.core.errors import BudgetError, CalibrationError, ModelError, ShapeError
from sparseworks.stream import couplings, slice_units
from sparseworks.weights import ChannelMethod, prune_channels
from sparseworks.weights.channels import Seen, block_angles, by_angle, relative_weight, uniform, wanda_sp


@pytest.mark.parametrize("name", [m.name for m in ChannelMethod.all()])
@pytest.mark.parametrize("multiple", [1, 8])
def test_cutting_equals_masking_and_meets_the_budget(llama, tokens, name, multiple):
    models = [llama(), llama()]
    found = [
        prune_channels(m, name, tokens, density=0.5, multiple=multiple, cut=c)
        for m, c in zip(models, (True, False), strict=True)
    ]
    kept = [int(k.sum()) for k in found[0].kept.values()]
    assert sum(kept) == 48 and all(n % multiple == 0 for n in kept)
    assert all(torch.equal(a, b) for a, b in zip(found[0].kept.values(), found[1].kept.values(), strict=True))
    with torch.no_grad():
        a, b = (m(**tokens[0]).logits for m in models)
    torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)
    mlp = models[0].model.layers[0].mlp
    assert (
        mlp.up_proj.weight.shape == mlp.gate_proj.weight.shape == (kept[0], 16) and mlp.up_proj.out_features == kept[0]
    )
    assert mlp.down_proj.weight.shape == (16, kept[0]) and mlp.down_proj.in_features == kept[0]
    assert all(s.count == kept[0] * 16 for n, s in found[0].supports.items() if n.startswith("model.layers.0."))


def test_shares_compare_channels_and_do_not_cancel():
    g = torch.Generator().manual_seed(0)
    from sparseworks.core.stats import InputMoments

    inputs = InputMoments(4, 6)
    inputs.update(torch.ones(10, 6))
    down, up = torch.rand(4, 6, generator=g), torch.rand(6, 3, generator=g)
    score = relative_weight(Seen(down, [up], inputs))
    by_hand = (down / down.sum(1, keepdim=True)).mean(0) + (up.T / up.T.sum(1, keepdim=True)).mean(0)
    torch.testing.assert_close(score, by_hand.double())
    assert float(score.std()) > 0.01  # as released, equal activations would give equal scores


def test_blocks_that_turn_more_keep_more(llama, tokens):
    model = llama()
    angles = block_angles(model, tokens)
    order = sorted(angles, key=angles.__getitem__)
    found = prune_channels(model, "cfsp", tokens, density=0.6, multiple=1)
    kept = [int(k.sum()) for k in found.kept.values()]
    assert kept[order[0]] < kept[order[-1]] and sorted(range(3), key=kept.__getitem__) == order
    assert list(found.influence.values()) == pytest.approx([angles[i] for i in range(3)])
    x = torch.randn(2, 5, 8)
    quarter = nn.Sequential(*(nn.Sequential(nn.Linear(8, 8, bias=False)) for _ in range(2)))
    with torch.no_grad():
        for block in quarter:
            block[0].weight.copy_(torch.tensor([[0.0, -1], [1, 0]]).kron(torch.eye(4)))
    assert list(block_angles(quarter, [x]).values()) == pytest.approx([0.5, 0.5])


def test_budgets_that_would_exceed_a_layer_are_drawn_to_the_mean():
    import numpy as np

    angles = np.array([0.1, 0.3, 0.9])
    for density in (0.3, 0.6, 0.9, 0.99):
        shares = by_angle(angles, density)
        assert shares.max() <= 1 and shares.mean() == pytest.approx(density) and np.all(np.diff(shares) >= 0)


def test_refuses_what_it_cannot_do(llama, tokens):
    with pytest.raises(ModelError, match="No feed-forward"):
        prune_channels(nn.Linear(4, 4), "cfsp", [torch.zeros(1, 4)], density=0.5)
    with pytest.raises(CalibrationError, match="calibration data"):
        prune_channels(llama(), "cfsp", [], density=0.5)
    with pytest.raises(BudgetError, match="density"):
        prune_channels(llama(), "cfsp", tokens, density=0.0)
    model = llama()
    (first, *_) = listed = [c for c in couplings(model) if c.kind == "neuron"]
    with pytest.raises(ShapeError, match="at least one"):
        slice_units(model, listed, {first.name: torch.zeros(32, dtype=torch.bool)})


def test_cfsp_beats_wanda_sp_and_itself_with_uniform_budgets(tiny_lm):
    def perplexity(method, **changes):
        model = copy.deepcopy(tiny_lm.dense)
        prune_channels(model, method, tiny_lm.data[:2], density=0.5, multiple=32, **changes)
        return tiny_lm.perplexity(model)

    ours = perplexity("cfsp")
    assert ours < perplexity(ChannelMethod.of("wanda_sp"))
    assert ours < perplexity("cfsp", shares=uniform)
    assert wanda_sp is ChannelMethod.of("wanda_sp").score
