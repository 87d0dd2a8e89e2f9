"""When one compiled pass may stand for the modules, and what it checks before it does."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from sparseworks.core.errors import ShapeError
from sparseworks.core.support import Support
from sparseworks.exec.native import native
from sparseworks.exec.training import TrainableSparseAttention, TrainableSparseLinear, TrainableSparseMLP, onepass

WIDTH = 24


def linear(out: int, width: int, density: float = 0.3) -> TrainableSparseLinear:
    draw = torch.Generator().manual_seed(out)
    return TrainableSparseLinear.from_support(Support.from_mask(torch.rand(out, width, generator=draw) < density))


@pytest.fixture(params=["attention", "mlp"])
def block(request) -> nn.Module:
    """Half a transformer block."""
    norm = nn.LayerNorm(WIDTH)
    if request.param == "mlp":
        return TrainableSparseMLP(linear(48, WIDTH), "relu", linear(WIDTH, 48), norm=norm, residual=True)
    return TrainableSparseAttention(linear(3 * WIDTH, WIDTH), linear(WIDTH, WIDTH), 3, norm=norm, residual=True)


@pytest.fixture
def x() -> torch.Tensor:
    return torch.randn(9, 64, WIDTH, generator=torch.Generator().manual_seed(0))


def first(block: nn.Module) -> TrainableSparseLinear:
    return block.qkv if isinstance(block, TrainableSparseAttention) else block.up


def by_modules(block: nn.Module, x: torch.Tensor, monkeypatch) -> torch.Tensor:
    with monkeypatch.context() as patch:
        for name in ("attention", "feedforward"):
            patch.setattr(f"sparseworks.exec.training.{name}.runs_in_one_pass", lambda *_: False)
        return block(x)


def doubled(layer: TrainableSparseLinear) -> TrainableSparseLinear:
    class Doubled(TrainableSparseLinear):
        def forward(self, x):
            return 2 * super().forward(x)

    return Doubled(layer.index, layer.values, layer.bias)


def other_norm(block: nn.Module, norm: nn.Module) -> None:
    block.norm = norm


def patch_forward(block: nn.Module) -> None:
    layer = first(block)
    layer.forward = lambda x: 2 * TrainableSparseLinear.forward(layer, x)


def put_doubled(block: nn.Module) -> None:
    name = "qkv" if isinstance(block, TrainableSparseAttention) else "up"
    setattr(block, name, doubled(first(block)))


CHANGES = {
    "patched": patch_forward,
    "subclass": put_doubled,
    "rms": lambda block: other_norm(block, nn.RMSNorm(WIDTH)),
    "plain": lambda block: other_norm(block, nn.LayerNorm(WIDTH, elementwise_affine=False)),
    "parametrised": lambda block: nn.utils.parametrizations.weight_norm(block.norm, "weight", dim=0),
}


@pytest.mark.parametrize("change", CHANGES)
def test_parts_that_one_pass_does_not_know_run_by_themselves(block, x, change, monkeypatch):
    CHANGES[change](block)
    assert torch.equal(block(x), by_modules(block, x, monkeypatch))


def test_hooks_of_the_gradient_and_of_all_modules_are_called(block, x):
    calls = []
    hook = first(block).register_full_backward_pre_hook(lambda *_: calls.append("gradient"))
    block(x).sum().backward()
    hook.remove()
    seen = nn.modules.module.register_module_forward_hook(lambda module, *_: calls.append(module))
    block(x)
    seen.remove()
    assert "gradient" in calls and first(block) in calls


def test_an_eps_below_float32_does_no_harm(block, x):
    block.norm.eps = 1e-50
    block(x[:, :59]).sum().backward()  # the last tile is not full: its lanes without a token hold zeros
    assert all(p.grad.isfinite().all() for p in block.parameters())


def test_values_that_do_not_fit_are_refused_before_they_are_read(block, x):
    first(block).values.data = first(block).values.data[:5].clone()
    with pytest.raises(ShapeError):
        block(x)


def test_a_strided_bias(block, x):
    bias = torch.randn(2 * len(first(block).bias))[::2]
    first(block).bias.data = bias.contiguous()
    expected = block(x)
    first(block).bias.data = bias
    assert torch.equal(block(x), expected)


def test_a_support_that_changes_before_the_gradient_is_refused(block, x):
    y, layer = block(x), first(block)
    layer.change(Support.from_mask(torch.rand(layer.index.shape) < 0.05))
    with pytest.raises(ShapeError, match="between forward and backward"):
        y.sum().backward()


@pytest.mark.parametrize("tokens", [7, 600])  # products one by one, and in one pass
def test_a_support_of_one_layer_that_changes_is_refused_too(tokens):
    layer = linear(48, WIDTH)
    y = layer(torch.randn(tokens, WIDTH, requires_grad=True))
    layer.change(Support.from_mask(torch.rand(48, WIDTH) < 0.05))
    with pytest.raises(ShapeError, match="between forward and backward"):
        y.sum().backward()


@pytest.mark.skipif(native() is None, reason="the compiled extension is not built")
def test_a_type_that_changes_before_the_gradient_is_refused(block, x):
    y = block(x)
    first(block).values.data = first(block).values.data.half()
    with pytest.raises(ShapeError, match="between forward and backward"):
        y.sum().backward()


@pytest.mark.skipif(native() is None, reason="the compiled extension is not built")
def test_without_gradient_nothing_is_kept(block, x, monkeypatch):
    sizes, room = [], onepass.room

    def watched(*given, **options):
        kept = room(*given, **options)
        sizes.append(kept.tiles.numel() + kept.scale.numel())
        return kept

    monkeypatch.setattr(onepass, "room", watched)
    monkeypatch.setattr("sparseworks.exec.training.mlp.room", watched)
    block(x)
    assert all(sizes)
    kept = len(sizes)
    with torch.no_grad():
        block(x)
    assert len(sizes) == 2 * kept and not any(sizes[kept:])
