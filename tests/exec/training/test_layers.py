from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

import sparseworks as sw
from sparseworks.core.errors import ModelError, ShapeError, UnknownNameError
from sparseworks.core.support import Support
from sparseworks.exec.training import TrainableSparseConv2d, TrainableSparseLinear, Window


def support_of(out: int, width: int, density: float = 0.2, seed: int = 0) -> Support:
    return Support.from_mask(torch.rand(out, width, generator=torch.Generator().manual_seed(seed)) < density)


def masked(layer: nn.Module, support: Support) -> nn.Module:
    with torch.no_grad():
        mask = support.mask()
        if layer.weight.dim() == 4:  # sites of convolutions are channels last
            out, width, *kernel = layer.weight.shape
            mask = mask.reshape(out, *kernel, width).permute(0, 3, 1, 2)
        layer.weight.mul_(mask)
    return layer


def test_a_linear_layer_is_taken_over():
    support, dense = support_of(30, 50), nn.Linear(50, 30)
    layer = TrainableSparseLinear.from_linear(dense, support)
    x = torch.randn(2, 3, 50)
    assert torch.allclose(layer(x), masked(dense, support)(x), atol=1e-6)
    assert layer.support() == support and layer.values.numel() == support.count
    assert sum(p.numel() for p in layer.parameters()) == support.count + 30


def steps(model: nn.Module, x: torch.Tensor, target: torch.Tensor, optimizer: str, mask=None) -> list[float]:
    made = getattr(torch.optim, optimizer)(model.parameters(), lr=0.01)
    losses = []
    for _ in range(6):
        made.zero_grad()
        loss = (model(x) - target).square().mean()
        loss.backward()
        if mask is not None:
            model.weight.grad.mul_(mask)
        made.step()
        losses.append(loss.item())
    return losses


@pytest.mark.parametrize("optimizer", ["SGD", "AdamW", "RMSprop"])
def test_training_equals_that_of_the_masked_dense_layer(optimizer):
    support, dense = support_of(30, 50), nn.Linear(50, 30)
    dense = masked(dense, support)
    sparse = TrainableSparseLinear.from_linear(dense, support)
    x, target = torch.randn(40, 50), torch.randn(40, 30)
    ours = steps(sparse, x, target, optimizer)
    theirs = steps(dense, x, target, optimizer, support.mask())
    assert ours == pytest.approx(theirs, rel=1e-4) and ours[-1] < ours[0]


def test_a_new_layer_begins_with_outputs_of_the_size_of_a_dense_one():
    torch.manual_seed(0)
    x = torch.randn(200, 400)
    sparse = TrainableSparseLinear.from_support(support_of(300, 400, 0.05))
    with torch.no_grad():
        ratio = float(sparse(x).std() / nn.Linear(400, 300)(x).std())
    assert 0.8 < ratio < 1.25


def trained() -> tuple[TrainableSparseLinear, torch.optim.Optimizer, torch.Tensor]:
    torch.manual_seed(0)
    layer = TrainableSparseLinear.from_support(support_of(30, 50))
    optimizer = torch.optim.Adam(layer.parameters(), lr=0.01)
    x = torch.randn(20, 50)
    for _ in range(2):
        optimizer.zero_grad()
        layer(x).square().sum().backward()
        optimizer.step()
    return layer, optimizer, x


@pytest.mark.parametrize("density", [0.2, 0.1, 0.4])
def test_a_changed_support_takes_values_gradients_and_moments_along(density):
    layer, optimizer, x = trained()
    before, after = layer.support(), support_of(30, 50, density, seed=1)
    stays = (before & after).mask()
    state = optimizer.state[layer.values]
    dense = [
        layer.index.scatter(t.detach())
        for t in (layer.values, layer.values.grad, state["exp_avg"], state["exp_avg_sq"])
    ]
    layer.change(after, [optimizer])
    moved = [layer.values, layer.values.grad, state["exp_avg"], state["exp_avg_sq"]]
    for old, new in zip(dense, moved, strict=True):
        assert torch.equal(layer.index.scatter(new.detach()), old * stays)
    assert layer.support() == after
    optimizer.zero_grad()
    layer(x).square().sum().backward()
    optimizer.step()


def test_drop_and_grow_keeps_the_parameter_and_its_memory():
    layer, optimizer, _ = trained()
    kept = torch.arange(layer.index.count) >= 10
    free = (~layer.support().mask()).flatten().nonzero().flatten()[:10]
    parameter, address = layer.values, layer.values.data_ptr()
    layer.exchange(kept, free, [optimizer])
    assert layer.values is parameter and layer.values.data_ptr() == address
    grown = layer.support().mask().flatten()[free]
    assert bool(grown.all()) and not layer.dense_matrix().flatten()[free].any()


def test_state_dict_brings_values_and_support_back():
    layer, _, x = trained()
    other = TrainableSparseLinear.from_support(support_of(30, 50, 0.5, seed=3))
    other.load_state_dict(layer.state_dict())
    assert other.support() == layer.support() and torch.equal(other(x), layer(x))
    twin = copy.deepcopy(layer)
    assert torch.equal(twin(x), layer(x)) and twin.values is not layer.values


def test_a_damaged_or_partial_state_is_refused():
    layer, _, _ = trained()
    state = layer.state_dict()
    with pytest.raises(RuntimeError, match="damaged"):
        layer.load_state_dict({**state, "columns": torch.full_like(state["columns"], 191)})
    with pytest.raises(RuntimeError, match="columns"):
        layer.load_state_dict({k: v for k, v in state.items() if k != "columns"})


def test_export_computes_the_same():
    layer, _, x = trained()
    packed = layer.export(kernel="tile-fp32")
    assert torch.allclose(packed(x), layer(x), atol=1e-5) and packed.support() == layer.support()


def test_compiles_as_one_graph():
    layer, _, x = trained()
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    expected = layer(x)
    y = compiled(x)
    assert torch.equal(y, expected)
    layer.zero_grad()
    expected.sum().backward()
    gradient = layer.values.grad.clone()
    layer.zero_grad()
    y.sum().backward()
    assert torch.allclose(layer.values.grad, gradient)


@pytest.mark.parametrize(
    "kernel, stride, padding, dilation", [(3, 1, 1, 1), (5, 2, 2, 1), (1, 1, 0, 1), (3, 1, 2, 2), (1, 2, 0, 1)]
)
def test_a_convolution_with_its_gradients(kernel, stride, padding, dilation, monkeypatch):
    monkeypatch.setattr("sparseworks.exec.training.conv._PATCH_BYTES", 40_000)  # more than one part
    dense = nn.Conv2d(8, 12, kernel, stride, padding, dilation)
    support = support_of(12, 8 * kernel * kernel, 0.3)
    layer = TrainableSparseConv2d.from_conv(dense, support)
    masked(dense, support)
    x = torch.randn(3, 8, 13, 17, requires_grad=True)
    twin = x.detach().clone().requires_grad_()
    y, expected = layer(x), dense(twin)
    g = torch.randn_like(expected)
    y.backward(g)
    expected.backward(g)
    assert torch.allclose(y, expected, atol=1e-5) and torch.allclose(x.grad, twin.grad, atol=1e-5)
    assert torch.allclose(
        layer.values.grad, layer.index.gather(dense.weight.grad.permute(0, 2, 3, 1).flatten(1)), rtol=1e-4, atol=1e-3
    )
    assert torch.allclose(layer.bias.grad, dense.bias.grad, rtol=1e-4, atol=1e-3)
    assert torch.allclose(layer(x[0]), layer(x)[0], atol=1e-6)
    assert torch.equal(layer.dense_weight(), dense.weight)


def test_convolutions_refuse_what_they_cannot_do():
    support = support_of(12, 72, 0.3)
    for conv in (nn.Conv2d(16, 12, 3, groups=2), nn.Conv2d(8, 12, 3, padding_mode="circular"), nn.Linear(72, 12)):
        with pytest.raises(ModelError):
            TrainableSparseConv2d.from_conv(conv, support)
    with pytest.raises(ShapeError):
        TrainableSparseConv2d.from_support(support, Window((5, 5)))
    layer = TrainableSparseConv2d.from_support(support, Window((3, 3)))
    for x in (torch.randn(2, 7, 9, 9), torch.randn(2, 8, 2, 9), torch.randn(8, 9)):
        with pytest.raises(ShapeError):
            layer(x)


def test_a_model_is_made_trainable():
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 16, 20), nn.ReLU(), nn.Linear(20, 4)
    )
    supports = {s.name: support_of(*s.shape, 0.4) for s in sw.sites(model, include=["*"]) if s.name != "5"}
    sparse = sw.trainable(model, supports)
    assert isinstance(sparse[0], TrainableSparseConv2d) and isinstance(sparse[3], TrainableSparseLinear)
    assert type(sparse[5]) is nn.Linear and sparse[5].weight is not model[5].weight
    for name, support in supports.items():
        masked(model.get_submodule(name), support)
    x = torch.randn(5, 3, 6, 6)
    assert torch.allclose(sparse(x), model(x), atol=1e-5)


def test_what_cannot_be_made_trainable_is_named():
    model = nn.Sequential(nn.Linear(4, 6))
    with pytest.raises(UnknownNameError):
        sw.trainable(model, {"7": support_of(6, 4)})
    with pytest.raises(ShapeError):
        sw.trainable(model, {"0": support_of(4, 6)})


class Fused(nn.Module):
    """q, k and v in one layer, which sites see as three."""

    def __init__(self):
        super().__init__()
        self.qkv = nn.Linear(12, 36)

    def forward(self, x):
        return self.qkv(x)


def test_slices_of_a_fused_layer_become_one_layer():
    model = nn.Sequential(Fused())
    names = [s.name for s in sw.sites(model, include=["*"])]
    assert len(names) == 3
    kept = {names[0]: support_of(12, 12, 0.3), names[2]: support_of(12, 12, 0.3, seed=1)}
    sparse = sw.trainable(model, kept)
    mask = torch.cat([kept[names[0]].mask(), torch.ones(12, 12, dtype=torch.bool), kept[names[2]].mask()])
    assert torch.equal(sparse[0].qkv.support().mask(), mask)
    masked(model[0].qkv, Support.from_mask(mask))
    x = torch.randn(5, 12)
    assert torch.allclose(sparse(x), model(x), atol=1e-6)


def test_a_convolution_under_compile_and_autocast():
    layer = TrainableSparseConv2d.from_support(support_of(12, 72, 0.3), Window((3, 3), padding=(1, 1)))
    x = torch.randn(2, 8, 9, 9)
    expected = layer(x)
    with torch.no_grad():  # with gradients torch warns of its own way past a broken graph
        assert torch.equal(torch.compile(layer, backend="aot_eager")(x), expected)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = layer(x.bfloat16())
    assert y.dtype is torch.bfloat16 and torch.allclose(y.float(), expected, atol=0.05)
    y.float().sum().backward()
    assert layer.values.grad is not None and layer.values.grad.dtype is torch.float32
