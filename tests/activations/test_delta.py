"""Deltas in time: exact at threshold 0, errors that do not add up, fewer sent where steps are alike, and attention with key deltas."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from sparseworks.activations.delta import Delta, DeltaLayer, accumulated_logits, delta_attention
from sparseworks.core.errors import BudgetError, ModelError, ShapeError


def autoregressive(time, n, rho, seed=0):
    g = torch.Generator().manual_seed(seed)
    x = torch.randn(time, n, generator=g)
    for t in range(1, time):
        x[t] = rho * x[t - 1] + (1 - rho**2) ** 0.5 * x[t]
    return x


def error(y, dense):
    return float((y - dense).norm() / dense.norm())


def test_delta_by_hand():
    x = torch.tensor([[0.05], [0.3], [0.35], [0.5]])
    torch.testing.assert_close(Delta(0.1)(x), torch.tensor([[0.0], [0.3], [0.0], [0.2]]))
    torch.testing.assert_close(Delta(0.0, step=0.25)(x), torch.tensor([[0.0], [0.25], [0.0], [0.25]]))


@pytest.mark.parametrize("delta", [Delta(0.2), Delta(0.1, step=0.5), Delta(0.0)])
def test_what_is_not_sent_stays_bounded_for_ever(delta):
    x = autoregressive(500, 16, 0.9)
    lost = (x - delta(x).cumsum(dim=0)).abs().amax(dim=1)
    assert float(lost.max()) <= max(delta.threshold, (delta.step or 0) / 2) + 1e-5
    assert float(lost[400:].mean()) <= 1.2 * float(lost[50:150].mean()) + 1e-6


@pytest.mark.parametrize(
    ("layer", "shape"),
    [
        (nn.Linear(12, 7), (12,)),
        (nn.Linear(12, 7, bias=False), (12,)),
        (nn.Conv2d(3, 5, 3, stride=2, padding=1), (3, 8, 8)),
    ],
)
@pytest.mark.parametrize("batch", [1, 3])
def test_clip_and_stream_agree_and_threshold_zero_is_exact(layer, shape, batch):
    torch.manual_seed(0)
    x = torch.randn(6, batch, *shape).cumsum(dim=0)
    for delta in (Delta(0.0), Delta(0.5), Delta(0.1, step=0.25)):
        module = DeltaLayer(layer, delta)
        clip = module(x)
        steps = torch.stack([module.stream(step) for step in x])
        torch.testing.assert_close(steps, clip, atol=1e-4, rtol=1e-4)
        module.reset()
        torch.testing.assert_close(module.stream(x[0]), clip[0], atol=1e-5, rtol=1e-4)
        if delta == Delta(0.0):
            torch.testing.assert_close(clip, layer(x.flatten(0, 1)).unflatten(0, x.shape[:2]), atol=1e-4, rtol=1e-4)
    with pytest.raises(ShapeError, match="call `reset`"):
        module.stream(x[0][:, :, :4] if len(shape) > 1 else x[0][:, :4])


def test_other_padding_is_refused():
    with pytest.raises(ModelError, match="padded with zeros"):
        DeltaLayer(nn.Conv2d(1, 1, 3, padding=1, padding_mode="circular"), Delta())


def test_features_that_change_slowly_lose_less_by_deltas_than_by_magnitude_and_white_noise_does_not():
    torch.manual_seed(0)
    layer = nn.Linear(256, 128, bias=False).requires_grad_(False)
    for rho, thresholds in ((0.97, (0.1, 0.2, 0.5)), (0.0, (0.2,))):
        x = autoregressive(400, 256, rho).relu()
        dense = layer(x)
        for threshold in thresholds:
            module = DeltaLayer(layer, Delta(threshold))
            by_delta = error(module(x[:, None])[:, 0], dense)
            cut = x.flatten().kthvalue(int((1 - module.sent) * x.numel())).values
            by_magnitude = error(layer(x.where(x > cut, 0.0)), dense)
            if rho:
                assert module.sent < 0.4 and by_delta < 0.55 * by_magnitude, (threshold, by_delta, by_magnitude)
            else:
                assert by_magnitude < by_delta


def clips(n, noise, g, time=8, width=12):
    """A short bar moves left or right; which is the class. Not still, since a still clip sends nothing."""
    way = torch.randint(0, 2, (n,), generator=g)
    start = torch.randint(0, width, (n,), generator=g)
    at = (start + (2 * way - 1) * torch.arange(time)[:, None]) % width
    return F.one_hot(at, width).float() + noise * torch.randn(time, n, width, generator=g), way


def test_penalty_makes_changes_rare_at_equal_accuracy():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.inside, self.sums = nn.Linear(12, 48), DeltaLayer(nn.Linear(48, 32), Delta(0.1))
            self.rest = nn.Sequential(nn.Linear(32 * 8, 32), nn.ReLU(), nn.Linear(32, 2))

        def forward(self, x):
            h = self.sums(self.inside(x).relu()).relu()
            return self.rest(h.transpose(0, 1).flatten(1))

    def train(weight):
        torch.manual_seed(0)
        model, g = Net(), torch.Generator().manual_seed(0)
        optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
        for _ in range(200):
            x, y = clips(64, 0.1, g)
            optimizer.zero_grad()
            (F.cross_entropy(model(x), y) + weight * model.sums.penalty).backward()
            optimizer.step()
        with torch.no_grad():
            x, y = clips(500, 0.1, torch.Generator().manual_seed(1))
            accuracy = float((model(x).argmax(dim=1) == y).float().mean())
        return accuracy, model.sums.sent

    (plain, often), (penalised, rarely) = train(0.0), train(0.5)
    assert penalised >= plain - 0.02 and plain > 0.9
    assert often > 1.5 * rarely


def test_key_deltas_are_exact_at_zero_and_inside_the_window():
    g = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(2, 3, n, 16, generator=g) for n in (20, 40, 40))
    at = torch.arange(40)
    seen = at <= at[20:, None]
    dense = F.scaled_dot_product_attention(q, k, v, attn_mask=seen)
    for options in (
        {"threshold": 0.0, "window": 0, "sink": 0},
        {"threshold": 1.0, "window": 40},
        {"threshold": 1.0, "window": 0, "sink": 40},
    ):
        torch.testing.assert_close(delta_attention(q, k, v, **options)[0], dense, atol=1e-5, rtol=1e-4)
    approximate, deltas = delta_attention(q, k, v, threshold=0.5, window=4, sink=2)
    held = deltas.cumsum(dim=-2)
    torch.testing.assert_close(accumulated_logits(q, deltas), q @ held.mT, atol=1e-4, rtol=1e-4)
    own = at[20:, None]
    exact = (own - at < 4) | (at < 2)
    logits = torch.where(exact, q @ k.mT, q @ held.mT).masked_fill(~seen, -math.inf) / 4
    torch.testing.assert_close(approximate, logits.softmax(dim=-1) @ v, atol=1e-5, rtol=1e-4)
    assert float((approximate - dense).norm()) > 0


def test_no_future_key_changes_an_output():
    g = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(1, 12, 8, generator=g) for _ in range(3))
    first, _ = delta_attention(q, k, v, threshold=0.4, window=2, sink=1)
    k[:, 8:], v[:, 8:] = 9.0, 9.0
    again, _ = delta_attention(q, k, v, threshold=0.4, window=2, sink=1)
    torch.testing.assert_close(again[:, :8], first[:, :8])
    with pytest.raises(ShapeError):
        delta_attention(q, k[:, :6], v[:, :6], threshold=0.1)
    for bad in (
        lambda: Delta(-1.0),
        lambda: Delta(0.1, step=0.0),
        lambda: delta_attention(q, k, v, threshold=0.1, sink=-1),
    ):
        with pytest.raises(BudgetError):
            bad()


@pytest.mark.parametrize(("rho", "threshold"), [(0.95, 0.3), (0.0, 0.3)])
def test_slow_keys_lose_less_by_deltas_than_by_zeroing_entries_and_white_noise_keys_do_not(rho, threshold):
    k, v = autoregressive(512, 64, rho, 1), autoregressive(512, 64, rho, 2)
    q = 1.2 * torch.randn(512, 64, generator=torch.Generator().manual_seed(3))
    at = torch.arange(512)
    exact = (at[:, None] - at < 32) | (at < 4)

    def attend(keys):
        logits = torch.where(exact, q @ k.T, q @ keys.T) / 8
        return logits.masked_fill(at > at[:, None], -math.inf).softmax(dim=-1) @ v

    dense = attend(k)
    found, deltas = delta_attention(q, k, v, threshold=threshold, window=32)
    zeros = float((deltas == 0).float().mean())
    cut = k.abs().flatten().kthvalue(max(1, int(zeros * k.numel()))).values
    raw = error(attend(k.where(k.abs() > cut, 0.0)), dense)
    if rho:
        assert zeros > 0.58 and error(found, dense) < 0.4 * raw
        early, late = (error(found[part], dense[part]) for part in (slice(100, 250), slice(350, 500)))
        assert late < 1.5 * early
    else:
        assert raw < error(found, dense)
