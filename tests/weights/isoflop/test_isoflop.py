"""Sparse iso-FLOP transformations: the same multiplications, and the stated formulas."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import sparseworks as sw
from sparseworks.core.errors import BudgetError, ModelError, UnknownNameError
from sparseworks.weights.isoflop import TRANSFORMS, DopedLayer, FactorisedLayer, ParallelLayer


def mlp(seed: int = 0, hidden: int = 32) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(64, hidden), nn.ReLU(), nn.Linear(hidden, hidden), nn.ReLU(), nn.Linear(hidden, 10))


class Residual(nn.Module):
    def __init__(self, channels: int):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(channels, channels, 3, padding=1, bias=False), nn.BatchNorm2d(channels)
        self.conv2, self.bn2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False), nn.BatchNorm2d(channels)

    def forward(self, x):
        return torch.relu(x + self.bn2(self.conv2(torch.relu(self.bn1(self.conv1(x))))))


def cnn() -> nn.Sequential:
    torch.manual_seed(0)
    head = nn.Sequential(nn.Conv2d(1, 12, 3, stride=2, padding=1), nn.BatchNorm2d(12), nn.PReLU(12))
    tail = nn.Sequential(nn.Conv2d(12, 16, 3), nn.BatchNorm2d(16), nn.ReLU(), nn.Flatten(), nn.Linear(16 * 4, 10))
    return nn.Sequential(head, Residual(12), tail)


def started(found: sw.weights.IsoFlop, method="sparse_ift", steps: int = 10) -> sw.Sparsifier:
    optimizer = torch.optim.SGD(found.model.parameters(), lr=0.1)
    return sw.Sparsifier(found.model, found.method(method), optimizer, steps=steps, sites=found.sites)


def multiplications(model: nn.Module, x: torch.Tensor) -> int:
    """Counted while the model runs: entries that are not zero, times positions (or rows) of the output."""
    total, hooks = 0, []

    def count(layer, _, y):
        nonlocal total
        positions = y[0, 0].numel() if y.dim() == 4 else y[..., 0].numel() // len(y)
        total += int(layer.weight.count_nonzero()) * positions

    for layer in model.modules():
        if isinstance(layer, nn.Linear | nn.Conv2d) or type(layer).__name__ == "Conv1D":
            hooks.append(layer.register_forward_hook(count))
    with torch.no_grad():
        model.eval()(x)
    for hook in hooks:
        hook.remove()
    return total


@pytest.mark.parametrize("sparsity", [0.5, 0.75, 0.9])
@pytest.mark.parametrize("transform", TRANSFORMS.names())
@pytest.mark.parametrize(("build", "shape"), [(mlp, (1, 64)), (cnn, (1, 1, 8, 8))])
def test_counted_multiplications_are_those_of_the_dense_model(build, shape, transform, sparsity):
    dense = build()
    skip = [] if transform == "wide" else [s.name for s in sw.sites(dense) if s.shape[0] == 10 or s.shape[1] == 9]
    found = sw.isoflop(dense, transform, sparsity=sparsity, skip=skip)
    run, x = started(found), torch.randn(*shape)
    assert multiplications(found.model, x) == pytest.approx(multiplications(dense, x), rel=0.01)
    for layer in found.layers:
        kept = {s.name: s for s in found.sites if s.name in layer.kept}
        counted = sum(int(site.read(found.model).count_nonzero()) for site in kept.values()) + layer.extra
        assert counted == pytest.approx(layer.dense, rel=0.01) and layer.multiplications == counted
        assert run.supports[next(iter(layer.kept))].density <= max(1 - sparsity, (1 - sparsity) ** 0.5) + 0.02


def test_wide_has_more_units_and_their_norms_and_leaves_the_ends():
    found = sw.isoflop(cnn(), "wide", sparsity=0.75)
    conv1, bn1, conv2 = (getattr(found.model[1], n) for n in ("conv1", "bn1", "conv2"))
    assert (conv1.out_channels, bn1.num_features, conv2.in_channels) == (24, 24, 24)
    assert (conv1.in_channels, conv2.out_channels, found.model[1].bn2.num_features) == (
        12,
        12,
        12,
    )  # the residual stream
    tail = found.model[2]
    assert (tail[0].out_channels, tail[1].num_features, tail[4].in_features) == (32, 32, 128) and tail[
        4
    ].out_features == 10
    assert found.model[0][0].out_channels == 12 and found.model[0][2].num_parameters == 12
    assert {x.name for x in found.layers} == {"1.conv1", "1.conv2", "2.0", "2.4"}


def test_wide_enlarges_feed_forward_layers_of_language_models(llama, tokens):
    dense = llama()
    found = sw.isoflop(dense, "wide", sparsity=0.75)
    assert found.model.model.layers[0].mlp.gate_proj.weight.shape == (64, 16)
    assert found.model.model.layers[0].mlp.down_proj.weight.shape == (16, 64)
    assert all(layer.dense == 512 for layer in found.layers) and len(found.layers) == 9
    with torch.no_grad():
        assert found.model(**tokens[0]).logits.shape == dense(**tokens[0]).logits.shape
    assert dense.model.layers[0].mlp.gate_proj.weight.shape == (32, 16)  # left as it was


def test_parallel_is_the_sum_of_normalised_branches():
    layer = ParallelLayer(nn.Linear(6, 5), 0.75)
    x = torch.randn(3, 6)
    by_hand = sum(norm(x @ branch.weight.T) for branch, norm in zip(layer.branches, layer.norms, strict=True))
    assert len(layer.branches) == 4 and torch.allclose(layer(x), by_hand, atol=1e-6)
    assert layer(torch.randn(4096, 6)).var().item() == pytest.approx(1.0, abs=0.2)  # that of one branch
    assert len(ParallelLayer(nn.Conv2d(2, 3, 3), 0.9).branches) == 10


def test_factorised_and_doped_have_the_sizes_of_the_paper():
    factorised, doped = FactorisedLayer(nn.Linear(24, 40), 0.75), DopedLayer(nn.Linear(24, 40), 0.75)
    assert factorised.first.out_features == 60 == 24 * 40 / (0.25 * 64) and factorised.second.bias is not None
    assert doped.low.out_features == 11 == int(0.75 * 24 * 40 / 64) and doped.extra == 11 * 64
    x = torch.randn(3, 24)
    hidden = torch.relu(factorised.norm(x @ factorised.first.weight.T))
    assert torch.allclose(factorised(x), hidden @ factorised.second.weight.T + factorised.second.bias, atol=1e-6)
    whole = doped.main.weight + doped.high.weight @ doped.low.weight
    assert torch.allclose(doped(x), x @ whole.T + doped.high.bias, atol=1e-5)


@pytest.mark.parametrize("kind", [ParallelLayer, FactorisedLayer, DopedLayer])
def test_convolutions_keep_their_window(kind):
    conv = nn.Conv2d(4, 6, 3, stride=2, padding=1, dilation=1)
    x = torch.randn(2, 4, 9, 9)
    assert kind(conv, 0.75)(x).shape == conv(x).shape


def test_a_seed_gives_the_same_model_and_the_callers_generator_stays():
    torch.manual_seed(5)
    before = torch.get_rng_state()
    a, b, c = (sw.isoflop(mlp(), "doped", seed=s) for s in (0, 0, 1))
    torch.manual_seed(5)
    assert torch.equal(torch.get_rng_state(), before)
    one, same, other = (x.model[0].main.weight for x in (a, b, c))
    assert torch.equal(one, same) and not torch.equal(one, other)


def test_what_cannot_be_enlarged_is_said():
    with pytest.raises(UnknownNameError, match="wide"):
        sw.isoflop(mlp(), "wider")
    with pytest.raises(BudgetError, match="below 1"):
        sw.isoflop(mlp(), "wide", sparsity=1.0)
    with pytest.raises(BudgetError, match="no rank"):
        sw.isoflop(nn.Sequential(nn.Linear(1, 4)), "doped", sparsity=0.5)
    with pytest.raises(ModelError, match="inner units"):
        sw.isoflop(nn.Sequential(nn.Linear(4, 4)), "wide")
    with pytest.raises(ModelError, match="Name it in `skip`"):
        sw.isoflop(nn.Sequential(nn.TransformerEncoderLayer(8, 2)), "parallel")
    with pytest.raises(ModelError, match="leaves all"):
        sw.isoflop(mlp(), "parallel", skip=["*"])
