"""Dense layers as experts: exact when all run, bounded by the mass; sparsified layers, learned norms and a number by token each lose less."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.nn import functional as F

import sparseworks as sw
from sparseworks.activations.predicted import (
    DynamicExperts,
    ExpertFeedForward,
    HoyerPenalty,
    feed_forwards,
    split_experts,
    square_hoyer,
)
from sparseworks.core.budget import Count, Mass, Peak
from sparseworks.core.errors import BudgetError, CalibrationError, ModelError, RecipeError
from sparseworks.testing.decoder import Decoder

METHOD = sw.method("d2dmoe").with_(activation=DynamicExperts(neurons=8, hidden=64))


class Net(nn.Module):
    """Two residual feed-forward layers behind norms."""

    def __init__(self, width: int = 48, hidden: int = 192):
        super().__init__()
        self.into, self.out = nn.Linear(64, width), nn.Linear(width, 10)
        feed = lambda: nn.Sequential(nn.Linear(width, hidden), nn.ReLU(), nn.Linear(hidden, width))  # noqa: E731
        self.layers = nn.ModuleList([feed(), feed()])
        self.norms = nn.ModuleList([nn.LayerNorm(width) for _ in range(3)])

    def forward(self, x):
        h = self.into(x)
        for norm, layer in zip(self.norms, self.layers, strict=False):
            h = h + layer(norm(h))
        return self.out(self.norms[2](h))

    @property
    def experts(self) -> list[ExpertFeedForward]:
        return [m for m in self.layers if isinstance(m, ExpertFeedForward)]


class World:
    """Digits, and the loss of a net at a mean share of its feed-forward work."""

    def __init__(self, seed: int):
        digits = load_digits()
        order = torch.randperm(len(digits.data), generator=torch.Generator().manual_seed(seed))
        x, y = torch.tensor(digits.data, dtype=torch.float32)[order] / 16, torch.tensor(digits.target)[order]
        self.x, self.y, self.x_test, self.y_test, self.seed = x[:1000], y[:1000], x[1000:], y[1000:], seed
        torch.manual_seed(seed)
        base = self.train(Net(), 300, 3e-3)
        self.plain = self.train(copy.deepcopy(base), 200, 1e-3)
        self.sparse = self.train(copy.deepcopy(base), 200, 1e-3, 0.01)

    def train(self, model: Net, steps: int, lr: float, weight: float = 0.0) -> Net:
        optimizer = torch.optim.AdamW(model.parameters(), lr=lr)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
        g = torch.Generator().manual_seed(self.seed)
        with HoyerPenalty(model) as penalty:
            for _ in range(steps):
                at = torch.randint(len(self.x), (64,), generator=g)
                optimizer.zero_grad()
                (F.cross_entropy(model(self.x[at]), self.y[at]) + weight * penalty()).backward()
                optimizer.step()
                schedule.step()
        return model.eval()

    def split(self, model: Net, classes: int = 0) -> Net:
        return split_experts(copy.deepcopy(model), METHOD, [self.x], classes=classes, steps=300, seed=self.seed)

    @torch.no_grad()
    def loss(self, model: Net, budget) -> tuple[float, float]:
        for layer in model.experts:
            layer.rule = replace(layer.rule, budget=budget)
        lost = float(F.cross_entropy(model(self.x_test), self.y_test))
        return lost, sum(layer.share for layer in model.experts) / 2

    def dynamic(self, model: Net, share: float) -> float:
        """At the mass whose mean share is the one asked for."""
        low, high = 0.0, 1.0
        for _ in range(8):
            middle = (low + high) / 2
            low, high = (middle, high) if self.loss(model, Mass(middle))[1] < share else (low, middle)
        lost, ran = self.loss(model, Mass(low))
        assert ran <= share + 1e-9
        return lost


def test_sparsified_layers_learned_norms_and_dynamic_numbers_each_lose_less():
    torch.set_num_threads(1)
    found = []
    for seed in (0, 1):
        world = World(seed)
        sparse = world.split(world.sparse)
        fixed = [world.loss(sparse, Count(k)) for k in (3, 4, 6)]
        assert [ran for _, ran in fixed] == pytest.approx([k / 24 for k in (3, 4, 6)])
        dynamic = [world.dynamic(sparse, k / 24) for k in (3, 4, 6)]
        others = (world.split(world.plain), world.split(world.sparse, classes=6))
        lost = [world.dynamic(m, 3 / 24) for m in others]
        found.append([dynamic[0], *lost, sum(dynamic) / 3, sum(lost for lost, _ in fixed) / 3])
    least, plain, classes, dynamic, fixed = torch.tensor(found).mean(0).tolist()
    assert least < 0.9 * plain, found
    assert least < 0.8 * classes, found
    assert dynamic < 0.97 * fixed, found


@pytest.mark.parametrize("make", [lambda: Decoder(24, 32, 64, 2, 4, 4, relu=True), Net], ids=["gated", "plain"])
@torch.no_grad()
def test_all_experts_are_the_layer_and_one_expert_is_its_neurons(make):
    torch.manual_seed(0)
    model = make().eval()
    x = torch.randint(0, 24, (3, 10)) if isinstance(model, Decoder) else torch.randn(30, 64)
    dense, whole = model(x), copy.deepcopy(model)
    split_experts(model, METHOD, [x], steps=2)
    layers = [m for m in model.modules() if isinstance(m, ExpertFeedForward)]
    assert len(layers) == 2 == len(feed_forwards(whole))
    for layer in layers:
        layer.rule = replace(layer.rule, budget=Mass(1.0))
    torch.testing.assert_close(model(x), dense, rtol=1e-5, atol=1e-5)
    assert all(layer.share == 1.0 for layer in layers)
    for layer in layers:
        layer.rule = replace(layer.rule, budget=Peak(1.0))
    cut = model(x)
    assert not torch.allclose(cut, dense, atol=1e-4) and all(bool((m.run.sum(1) == 1).all()) for m in layers)
    z = torch.randn(5, layers[0].router.body[0].in_features)
    wanted = sum(
        (layers[0].router(z).argmax(1) == e)[:, None] * expert(z) for e, expert in enumerate(layers[0].experts)
    )
    torch.testing.assert_close(layers[0](z), wanted + (0 if layers[0].bias is None else layers[0].bias))


def test_the_mass_bounds_what_is_left_out_and_the_peak_does_not():
    norms = torch.rand(200, 24, generator=torch.Generator().manual_seed(0)).square()
    norms[0] = 0
    for tau in (0.5, 0.9):
        run = DynamicExperts(Mass(tau)).mask(norms)
        lost = (norms * ~run).sum(1) / norms.sum(1).clamp(min=1e-9)
        assert float(lost.max()) <= 1 - tau + 1e-6 and int(run.sum(1).min()) == 1
    run = DynamicExperts(Peak(0.5)).mask(norms)
    assert run[1:].equal(norms[1:] >= 0.5 * norms[1:].amax(1, keepdim=True))
    assert float(((norms * ~run).sum(1) / norms.sum(1).clamp(min=1e-9)).max()) > 0.5
    assert bool((DynamicExperts(Count(3)).mask(norms).sum(1) == 3).all())


def test_square_hoyer_counts_neurons():
    a = torch.tensor([[3.0, 3.0, -3.0, 0.0], [0.0, 0.0, 5.0, 0.0]])
    assert float(square_hoyer(a)) == pytest.approx((3 + 1) / 2)
    assert float(square_hoyer(torch.zeros(2, 4))) == 0.0


def test_refusals():
    with pytest.raises(RecipeError, match="dynamic_experts"):
        split_experts(Net(), "qsparse", [torch.randn(2, 64)])
    with pytest.raises(CalibrationError):
        split_experts(Net(), METHOD, [])
    with pytest.raises(ModelError, match="feed-forward"):
        split_experts(nn.Sequential(nn.Linear(4, 4)), METHOD, [torch.randn(2, 4)])
    with pytest.raises(BudgetError, match="equal size"):
        split_experts(Net(), METHOD.with_(activation=DynamicExperts(neurons=7)), [torch.randn(2, 64)])
