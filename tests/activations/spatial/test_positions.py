"""Shared positions: masks from one map, the reduced product, and training that adapts to them."""

from __future__ import annotations

import pytest
import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.nn import functional as F

import sparseworks as sw
from sparseworks.activations.spatial import PositionConv2d, ReducedConv2d, SharedMasks, SharedPositions, positions
from sparseworks.activations.trained import export
from sparseworks.core.errors import BudgetError, ModelError, ShapeError


@pytest.mark.parametrize("sparsity", [0.0, 0.1, 0.3, 0.77])
@pytest.mark.parametrize("size", [(16, 16), (8, 8), (5, 7)])
def test_lowest_pooled_positions_are_left_out_exactly(sparsity, size):
    scores = torch.rand(16, 16, generator=torch.Generator().manual_seed(0))
    mask = positions(scores, size, sparsity)
    pooled = F.adaptive_avg_pool2d(scores[None, None], size)[0, 0]
    assert int((~mask).sum()) == round(sparsity * mask.numel())
    assert not (~mask).any() or pooled[~mask].max() <= pooled[mask].min()


def test_activation_zeroes_the_same_positions_in_all_channels_and_images():
    x = torch.rand(3, 4, 6, 6) + 1
    kept = SharedPositions(0.5)(x) != 0
    assert kept.eq(kept[:1, :1]).all() and int(kept[0, 0].sum()) == 18
    with pytest.raises(BudgetError):
        SharedPositions(1.0)
    with pytest.raises(ShapeError, match="cannot be pooled to the larger"):
        positions(torch.rand(4, 4), (8, 8), 0.5)


@pytest.mark.parametrize(
    "options", [{"kernel_size": 3, "padding": 1}, {"kernel_size": 3, "stride": 2, "padding": 1, "bias": False}, {"kernel_size": (1, 5), "padding": (0, 2), "dilation": 1}, {"kernel_size": 3, "dilation": 2}, {"kernel_size": 1}]
)  # fmt: skip
def test_reduced_product_equals_the_masked_convolution(options):
    torch.manual_seed(0)
    layer = PositionConv2d(nn.Conv2d(4, 6, **options))
    x = torch.randn(3, 4, 12, 10)
    size = layer(x).shape[-2:]
    layer.mask = positions(torch.rand(12, 12), (size[0], size[1]), 0.4)
    reduced = layer.export()
    assert reduced.rows == size.numel() - round(0.4 * size.numel())
    torch.testing.assert_close(reduced(x), layer(x), atol=1e-5, rtol=1e-5)
    assert reduced(x)[:, :, ~layer.mask].eq(0).all()
    with pytest.raises(ShapeError):
        reduced(torch.randn(1, 4, 20, 20))
    with pytest.raises(ShapeError):
        layer(torch.randn(1, 4, 20, 20))


def net(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(1, 12, 3, padding=1), nn.ReLU(), nn.Conv2d(12, 16, 3, stride=2, padding=1), nn.ReLU(),
        nn.Conv2d(16, 16, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(256, 10),
    )  # fmt: skip


def digits():
    pixels, labels = load_digits(return_X_y=True)
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))
    x = torch.tensor(pixels, dtype=torch.float32)[order].reshape(-1, 1, 8, 8) / 16
    return x, torch.tensor(labels)[order]


def test_the_run_ramps_alternates_remembers_and_freezes():
    model, x = net(), digits()[0][:4]
    masks = SharedMasks(
        model,
        sw.method("semi_structured_activations", activation=SharedPositions(0.5)),
        x,
        steps=20,
        freeze=10,
        every=2,
    )
    seen, maps = [], []
    for step in range(20):
        masks.before()
        first = model[0].mask
        seen.append(None if first is None else 1 - float(first.float().mean()))
        maps.append(masks._map)
        masks.after(5.0 if step != 4 else 1.0)
    assert seen[1:10:2] == [None] * 5 and seen[10:] == [0.5] * 10
    ramp = [0.5 * (1 - (1 - t / 10) ** 2) for t in range(0, 10, 2)]
    assert seen[0:10:2] == pytest.approx(ramp, abs=0.02)
    assert masks.best.equal(maps[4]) and masks.frozen
    assert model[2].mask.equal(positions(masks.best, (4, 4), 0.5))
    with torch.no_grad():
        before, after = model(x), export(model)(x)
    assert isinstance(model[0], ReducedConv2d)
    torch.testing.assert_close(after, before, atol=1e-5, rtol=1e-5)


def test_errors_say_what_to_do():
    x = torch.randn(1, 1, 8, 8)
    with pytest.raises(BudgetError, match="freeze"):
        SharedMasks(net(), "semi_structured_activations", x, steps=5, freeze=9)
    with pytest.raises(ModelError, match="no convolutions"):
        SharedMasks(nn.Sequential(nn.Linear(2, 2)), "semi_structured_activations", x, steps=5)
    with pytest.raises(ModelError, match="shared positions"):
        SharedMasks(net(), "qsparse", x, steps=5)
    with pytest.raises(ModelError, match="No positions"):
        PositionConv2d(nn.Conv2d(1, 1, 1)).export()


def test_training_with_the_masks_beats_masking_afterwards():
    x, y = digits()

    def train(masked):
        model, g = net(), torch.Generator().manual_seed(0)
        optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
        method = sw.method("semi_structured_activations", activation=SharedPositions(0.4))
        masks = SharedMasks(model, method, x[:2], steps=150, freeze=75)
        for _ in range(150):
            at = torch.randint(0, 1200, (64,), generator=g)
            if masked:
                masks.before()
            optimizer.zero_grad()
            loss = F.cross_entropy(model(x[at]), y[at])
            loss.backward()
            optimizer.step()
            if masked:
                masks.after(float(loss.detach()))
        accuracy = lambda: float((model(x[1200:]).argmax(dim=1) == y[1200:]).float().mean())  # noqa: E731
        with torch.no_grad():
            dense = accuracy()
            masks.put(masks.best, 0.4)
            return dense, accuracy()

    dense, afterwards = train(masked=False)
    _, trained = train(masked=True)
    assert trained > afterwards + 0.05 and trained > dense - 0.06, (dense, afterwards, trained)
