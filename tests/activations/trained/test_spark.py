"""Statistical top-k, and the layers with a built-in predictor."""

from __future__ import annotations

import math

import pytest
import torch
from torch.nn import functional as F

from sparseworks.activations.trained import (
    Neurons,
    SparkFeedForward,
    StatisticalKeys,
    StatisticalTopK,
    TopKNeurons,
    spark_attention,
)
from sparseworks.core.errors import BudgetError, ShapeError
from sparseworks.evaluate import documentation_passages


def test_soft_cut_is_the_formula_and_has_a_gradient_of_mean_and_deviation():
    x = torch.randn(3, 50, dtype=torch.float64, requires_grad=True)
    theta = x.mean(dim=1, keepdim=True) + x.std(dim=1, correction=0, keepdim=True) * 1.4050715603  # Phi^-1(0.92)
    torch.testing.assert_close(StatisticalTopK(0.08)(x), (x - theta).clamp(min=0))
    assert torch.autograd.gradcheck(StatisticalTopK(0.3), x)
    for share in (0.0, 1.0):
        with pytest.raises(BudgetError):
            StatisticalTopK(share)


def test_feed_forward_layer_equals_its_formula_and_its_skipping_form_and_an_ungated_layer_in_size():
    torch.manual_seed(0)
    layer = SparkFeedForward(32, 256, share=0.1, predictor=12)
    assert sum(p.numel() for p in layer.parameters()) == 2 * 32 * 256
    x = torch.randn(4, 5, 32)
    k1, k2, v = layer.select.weight, layer.value.weight, layer.down.weight
    h = F.gelu(StatisticalTopK(0.1)(x[..., :12] @ k1.T)) * (x[..., 12:] @ k2.T)
    torch.testing.assert_close(layer(x), h @ v.T)
    torch.testing.assert_close(layer.skipping(x), layer(x), atol=1e-6, rtol=1e-5)
    assert float((h != 0).float().mean()) == pytest.approx(0.1, abs=0.01)
    with pytest.raises(ShapeError):
        SparkFeedForward(8, 16, predictor=8)


def by_hand(q, k, v, kept, r):
    d, queries, keys = q.shape[-1], q.shape[-2], k.shape[-2]
    out = torch.zeros(*q.shape[:-1], v.shape[-1])
    for b in range(q.shape[0]):
        for i in range(queries):
            at = [j for j in range(keys - queries + i + 1) if kept[b, i, j]]
            first = torch.stack([q[b, i, :r] @ k[b, j, :r] for j in at]) / math.sqrt(r)
            second = torch.stack([q[b, i, r:] @ k[b, j, r:] for j in at]) / math.sqrt(d - r)
            out[b, i] = (first.softmax(dim=0) * F.softplus(second)) @ v[b, at]
    return out


def test_attention_equals_a_loop_over_its_own_support():
    torch.manual_seed(0)
    q, k, v = torch.randn(2, 20, 16), torch.randn(2, 33, 16), torch.randn(2, 33, 8)
    out, kept = spark_attention(q, k, v, keep=5, predictor=6)
    torch.testing.assert_close(out, by_hand(q, k, v, kept, 6), atol=1e-6, rtol=1e-5)
    seen = torch.arange(33) <= torch.arange(13, 33)[:, None]
    assert not (kept & ~seen).any() and kept.any(dim=-1).all()
    whole, every = spark_attention(q, k, v, keep=33, predictor=6)
    assert every.equal(seen.expand_as(every))
    torch.testing.assert_close(whole, by_hand(q, k, v, every, 6), atol=1e-6, rtol=1e-5)


def test_attention_keeps_about_as_many_keys_as_asked_and_every_row_one():
    g = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(4, 600, 32, generator=g) for _ in range(3))
    _, kept = spark_attention(q, k, v, keep=50)
    counts = kept.sum(dim=-1).float()
    assert counts[:, :50].equal(torch.arange(1.0, 51).expand(4, 50))
    assert float(counts[:, 300:].mean()) == pytest.approx(50, rel=0.1)
    same, one = spark_attention(torch.ones(1, 4, 4), torch.ones(1, 4, 4), torch.ones(1, 4, 2), keep=1)
    assert one.any(dim=-1).all() and bool(same.isfinite().all())
    logits = torch.randn(7, 100, generator=g)
    assert float((StatisticalKeys(20)(logits) != 0).sum(dim=1).float().mean()) == pytest.approx(20, abs=3)
    with pytest.raises(ShapeError):
        spark_attention(q, k[:, :10], v[:, :10])


class Finder(torch.nn.Module):
    """One layer of attention from the last token, by `attend(q, k, v)`."""

    def __init__(self, attend, width=64, heads=4):
        super().__init__()
        self.attend, self.heads = attend, heads
        self.embed, self.places = torch.nn.Embedding(96, width), torch.nn.Parameter(torch.randn(48, width) * 0.02)
        torch.nn.init.normal_(self.embed.weight, std=0.3)
        self.qkv, self.out = torch.nn.Linear(width, 3 * width, bias=False), torch.nn.Linear(width, width, bias=False)
        self.norm, self.last, self.head = torch.nn.RMSNorm(width), torch.nn.RMSNorm(width), torch.nn.Linear(width, 96)

    def forward(self, ids):
        x = self.embed(ids) + self.places
        q, k, v = self.qkv(self.norm(x)).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        found = self.attend(q[:, :, -1:], k, v).transpose(1, 2).flatten(2)[:, 0]
        return self.head(self.last(x[:, -1] + self.out(found)))


def needles(rows, seed):
    """One of ten marks in filler, never among the last eight tokens, and which it is; a question at the end."""
    g = torch.Generator().manual_seed(seed)
    ids, wanted = torch.randint(60, 96, (rows, 48), generator=g), torch.randint(0, 10, (rows,), generator=g)
    ids[torch.arange(rows), torch.randint(1, 40, (rows,), generator=g)] = 16 + wanted
    ids[:, 0], ids[:, -1] = 0, 2
    return ids, 3 + wanted


def found_by(attend, steps):
    torch.manual_seed(0)
    model = Finder(attend)
    optimizer = torch.optim.Adam(model.parameters(), 3e-3)
    for step in range(steps):
        ids, wanted = needles(32, step)
        optimizer.zero_grad()
        F.cross_entropy(model(ids), wanted).backward()
        optimizer.step()
    ids, wanted = needles(256, 10**6)
    with torch.no_grad():
        return float((model(ids).argmax(-1) == wanted).float().mean())


def test_few_keys_chosen_by_half_of_their_entries_find_what_a_window_of_as_many_does_not():
    counts = []

    def chosen(q, k, v):
        out, kept = spark_attention(q, k, v, keep=6)
        counts.append(float(kept.float().sum(-1).mean()))
        return out

    spark = found_by(chosen, 150)
    near = found_by(lambda q, k, v: F.scaled_dot_product_attention(q, k[..., -6:, :], v[..., -6:, :]), 150)
    assert max(counts) < 8 and counts[-1] <= 6
    assert spark > near + 0.4, (spark, near)


CONTEXT, WIDTH, HIDDEN = 16, 128, 256


class Characters(torch.nn.Module):
    """The last 16 characters -> logits of the next, by two feed-forward layers."""

    def __init__(self, letters, layer):
        super().__init__()
        self.embed, self.enter = torch.nn.Embedding(letters, 16), torch.nn.Linear(CONTEXT * 16, WIDTH)
        self.norms = torch.nn.ModuleList(torch.nn.LayerNorm(WIDTH) for _ in range(2))
        self.layers = torch.nn.ModuleList(layer() for _ in range(2))
        self.head = torch.nn.Linear(WIDTH, letters)

    def forward(self, ids):
        x = self.enter(self.embed(ids).flatten(1))
        for norm, layer in zip(self.norms, self.layers, strict=True):
            x = x + layer(norm(x))
        return self.head(x)


def ungated(hidden, act):
    """A layer of two matrices."""
    return torch.nn.Sequential(
        torch.nn.Linear(WIDTH, hidden, bias=False), act, torch.nn.Linear(hidden, WIDTH, bias=False)
    )


def read(ids, layer, seed, steps=300):
    """Held-out nats a character after training from nothing."""
    cut = len(ids) * 9 // 10
    torch.manual_seed(seed)
    model, g = Characters(int(ids.max()) + 1, layer), torch.Generator().manual_seed(seed)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3, weight_decay=0.0)
    plan = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, total_steps=steps, pct_start=0.1, cycle_momentum=False)
    around = torch.arange(CONTEXT + 1)
    for _ in range(steps):
        windows = ids[torch.randint(0, cut - CONTEXT, (128, 1), generator=g) + around]
        optimizer.zero_grad()
        F.cross_entropy(model(windows[:, :-1]), windows[:, -1]).backward()
        optimizer.step()
        plan.step()
    windows = ids[torch.linspace(cut, len(ids) - CONTEXT - 1, 8192).long()[:, None] + around]
    with torch.no_grad():
        return float(F.cross_entropy(model(windows[:, :-1]), windows[:, -1]))


def test_layers_of_equal_work_lose_less_with_the_predictor_than_by_plain_top_k():
    """158 rows and columns of 128 weights are read for a token: 128 + 1.5 x 20 of Spark's 256 neurons; of plain top-k all keys first."""
    text = "\n".join(p.whole for p in documentation_passages(held_out=False))[:400_000]
    letters = {c: i for i, c in enumerate(sorted(set(text)))}
    ids = torch.tensor([letters[c] for c in text])
    for seed in range(2):
        dense = read(ids, lambda: ungated(HIDDEN, torch.nn.GELU()), seed)
        spark = read(ids, lambda: SparkFeedForward(WIDTH, HIDDEN, share=0.08), seed)
        plain = min(read(ids, lambda k=k: ungated(158 - k, Neurons(TopKNeurons(k))), seed) for k in (12, 30))
        assert spark < 1.03 * dense, (seed, dense, spark)
        assert spark < plain - 0.008, (seed, spark, plain)
