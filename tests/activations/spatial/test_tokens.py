"""Tokens unlike the class token leave, as many as each image's elbow says."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from sparseworks.activations.spatial import ElbowTokens, compact
from sparseworks.core.budget import Count, Mass
from sparseworks.core.errors import BudgetError


def scenes(counts, tokens=60, width=768, seed=0):
    """The class token, `counts[i]` tokens much like it at random places, and unlike ones."""
    g = torch.Generator().manual_seed(seed)
    about = F.normalize(torch.randn(len(counts), 1, width, generator=g), dim=-1)
    x = 0.4 * torch.randn(len(counts), tokens + 1, width, generator=g)
    planted = torch.zeros(len(counts), tokens + 1, dtype=torch.bool)
    for i, k in enumerate(counts):
        planted[i, 1 + torch.randperm(tokens, generator=g)[:k]] = True
    x = x + planted[:, :, None] * (15 + torch.rand(*x.shape[:2], 1, generator=g)) * about
    x[:, :1] = about
    return x, planted


def test_the_elbow_finds_the_planted_tokens_of_each_image_where_a_fixed_number_cannot():
    x, planted = scenes([10, 18, 30, 45] * 4)
    mask = ElbowTokens().mask(x)
    assert mask[:, 0].all()
    wrong = (mask[:, 1:] != planted[:, 1:]).sum(dim=1) / planted.sum(dim=1)
    assert float(wrong.median()) <= 0.05 and float(wrong.mean()) <= 0.1
    similar = F.cosine_similarity(x[:, 1:], x[:, :1], dim=-1)
    k = round(float(planted.sum(dim=1).float().mean()))
    fixed = torch.zeros_like(planted[:, 1:]).scatter(1, similar.topk(k).indices, True)
    assert float(((fixed != planted[:, 1:]).sum(dim=1) / planted.sum(dim=1)).mean()) > 0.4


def test_compact_keeps_order_and_pads_to_the_longest():
    x, _ = scenes([3, 9])
    activation = ElbowTokens()
    mask = activation.mask(x)
    short, real = compact(x, mask)
    assert short.shape[1] == int(mask.sum(dim=1).max()) and real.sum(dim=1).equal(mask.sum(dim=1))
    for i in range(2):
        assert short[i][real[i]].equal(x[i][mask[i]])
    assert activation(x).equal(x * mask[:, :, None])
    torch.testing.assert_close(
        F.scaled_dot_product_attention(x[:, :1], x, x, attn_mask=mask[:, None]),
        F.scaled_dot_product_attention(x[:, :1], short, short, attn_mask=real[:, None]),
    )


def test_other_budgets():
    x, _ = scenes([8])
    x = x.abs()
    assert 1 < int(ElbowTokens(Mass(0.5)).mask(x).sum()) < int(ElbowTokens(Mass(0.9)).mask(x).sum())
    with pytest.raises(BudgetError, match="does not look at them"):
        ElbowTokens(Count(3)).mask(x)


def test_attention_of_the_class_token_loses_less_than_by_random_tokens_at_the_same_mean_number():
    x, _ = scenes([10, 18, 30, 45] * 4)
    mask = ElbowTokens().mask(x)
    g = torch.Generator().manual_seed(1)
    rate = float(mask[:, 1:].float().mean())
    random = torch.rand(mask.shape, generator=g) < rate
    random[:, 0] = True

    def attend(kept):
        return F.scaled_dot_product_attention(40 * x[:, :1], x, x, attn_mask=kept[:, None])

    dense = attend(torch.ones_like(mask))
    by_elbow, by_chance = (float((attend(m) - dense).norm() / dense.norm()) for m in (mask, random))
    assert by_elbow < 0.5 * by_chance
