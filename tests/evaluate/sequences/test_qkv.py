"""Synthetic tensors have the properties they are named for."""

from __future__ import annotations

import pytest
import torch

from sparseworks.core.errors import BudgetError, ShapeError
from sparseworks.evaluate.sequences import ar1, isolated, mass_recall, qkv, rotary


def attention(x):
    k = x.k.repeat_interleave(x.q.shape[1] // x.k.shape[1], dim=1)
    return (x.q @ k.mT / x.q.shape[-1] ** 0.5).softmax(-1)


def test_ar1_has_unit_variance_and_the_stated_correlation():
    x = ar1(8, n=2000, d=8, rho=0.9, generator=torch.Generator().manual_seed(0))
    assert x.var().item() == pytest.approx(1, abs=0.03)
    for lag in (1, 5):
        assert (x[:, lag:] * x[:, :-lag]).mean().item() == pytest.approx(0.9**lag, abs=0.03)
    with pytest.raises(BudgetError):
        ar1(n=4, rho=1.1, generator=torch.Generator())


def test_logits_have_the_deviation_scale_squared_and_the_seed_tells_all():
    x = qkv(512, scale=1.5, heads=4, kv_heads=2, rho=0.5)
    assert x.q.shape == (1, 4, 512, 64) and x.k.shape == x.v.shape == (1, 2, 512, 64)
    logits = x.q @ x.k.repeat_interleave(2, dim=1).mT / 8
    assert logits.std().item() == pytest.approx(1.5**2, rel=0.03)
    again, other = (
        qkv(512, scale=1.5, heads=4, kv_heads=2, rho=0.5),
        qkv(512, scale=1.5, heads=4, kv_heads=2, rho=0.5, seed=1),
    )
    assert torch.equal(x.q, again.q) and torch.equal(x.v, again.v) and not torch.equal(x.k, other.k)


def test_shared_tokens_make_attention_local():
    near = torch.ones(512, 512, dtype=torch.bool).tril(32).triu(-32)
    found = [float(mass_recall(x.q, x.k, near).mean()) for x in (qkv(512), qkv(512, shared=0.7))]
    assert found[0] < 0.25 and found[1] > 0.8


def test_clusters_lie_apart_and_labels_stay():
    x = qkv(512, clusters=8, spread=0.3)
    k = torch.nn.functional.normalize(x.k[0, 0], dim=-1)
    same = x.labels[0, 0][:, None] == x.labels[0, 0]
    assert (k @ k.T)[same].mean() > 0.8 and (k @ k.T)[~same].mean() < 0.1
    assert (x.labels[..., 1:] == x.labels[..., :-1]).float().mean() > 0.9


def test_outlier_channels_are_where_it_says():
    x = qkv(512, outliers=4, outlier_scale=6.0)
    size = x.k.abs().mean((0, 1, 2))
    assert size.topk(4).indices.sort().values.tolist() == x.channels.tolist()
    assert size[x.channels].min() > 3 * size.median()


def test_columns_are_isolated_and_take_the_mass():
    x = qkv(512, heads=4, kv_heads=2, columns=8)
    assert (x.columns.diff(dim=1) >= 3).all() and not torch.equal(x.columns[0], x.columns[1])
    a = attention(x)
    for head in range(4):
        assert a[0, head][:, x.columns[head // 2]].sum(-1).min() > 0.5
    assert qkv(512, heads=4, kv_heads=2).columns is None


def test_rotary_logits_depend_on_the_distance_alone():
    x = torch.randn(1, 16).expand(50, 16)
    turned = rotary(x)
    assert torch.allclose(turned.norm(dim=1), x.norm(dim=1), atol=1e-5)
    logits = turned @ turned.T
    for lag in (0, 3, 20):
        assert torch.allclose(logits.diagonal(lag), logits[0, lag], atol=1e-4)
    assert torch.allclose(qkv(64, rope=1e4).q, rotary(qkv(64).q, 1e4))


def test_shuffling_keeps_the_pairs_but_no_neighbourhood():
    x = qkv(512, columns=4)
    y = x.shuffled()
    out = [attention(z) @ z.v for z in (x, y)]
    assert torch.allclose(*out, atol=1e-5)
    near = [torch.cosine_similarity(z.k[..., 1:, :], z.k[..., :-1, :], dim=-1).mean() for z in (x, y)]
    assert near[0] > 0.85 and near[1] < 0.2
    assert torch.allclose(y.k[0, 0, y.columns[0]], x.k[0, 0, x.columns[0]])


def test_what_cannot_be_made_is_said():
    for wrong in ({"heads": 3, "kv_heads": 2}, {"outliers": 65}, {"d": 7, "rope": 1e4}):
        with pytest.raises(ShapeError):
            qkv(32, **wrong)
    with pytest.raises(BudgetError):
        qkv(32, shared=1.5)
    with pytest.raises(BudgetError):
        isolated(8, 4, 3, torch.Generator())
    assert isolated(10, 4, 3, torch.Generator()).tolist() == [0, 3, 6, 9]


def test_the_heaviest_blocks_hold_what_the_docstring_says():
    def heaviest(x):
        blocks = attention(x).view(1, 4, 32, 32, 32, 32).sum((3, 5)) / 32
        return float(blocks.topk(4, dim=-1).values.sum(-1).mean())

    local = qkv(1024, heads=4, scale=1.15, shared=0.7)
    assert heaviest(local) == pytest.approx(0.82, abs=0.03) and heaviest(local.shuffled()) == pytest.approx(
        0.31, abs=0.03
    )
    for scale, mass in ((0.9, 0.25), (1.6, 0.56)):
        assert heaviest(qkv(1024, heads=4, scale=scale)) == pytest.approx(mass, abs=0.03)
