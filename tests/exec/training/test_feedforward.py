from __future__ import annotations

import pytest
import torch
from torch import nn

from sparseworks.core.errors import KernelError, ModelError, ShapeError
from sparseworks.core.support import Support
from sparseworks.exec.native import native
from sparseworks.exec.training import TrainableSparseLinear, TrainableSparseMLP
from sparseworks.exec.training import feedforward as module
from sparseworks.exec.training.mlp import ACTIVATIONS, mlp

needs_extension = pytest.mark.skipif(native() is None, reason="the compiled extension is not built")


def made(activation: str = "gelu", sizes=(30, 250, 20), density: float = 0.2, **options) -> TrainableSparseMLP:
    draw = torch.Generator().manual_seed(0)
    width, wide, out = sizes
    up, down = (Support.from_mask(torch.rand(s, generator=draw) < density) for s in ((wide, width), (out, wide)))
    layers = TrainableSparseLinear.from_support(up), activation, TrainableSparseLinear.from_support(down)
    return TrainableSparseMLP(*layers, **options)


def by_modules(mlp: TrainableSparseMLP, x: torch.Tensor) -> torch.Tensor:
    y = x if mlp.norm is None else mlp.norm(x)
    y = mlp.down(module._activate(mlp.up(y), mlp.activation))
    return x + y if mlp.residual else y


def gradients(mlp: TrainableSparseMLP, run, x: torch.Tensor, g: torch.Tensor) -> list[torch.Tensor]:
    mlp.zero_grad()
    x = x.clone().requires_grad_()
    y = run(x)
    y.backward(g)
    return [y.detach(), x.grad, *(p.grad.clone() for p in mlp.parameters())]


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("activation", sorted(ACTIVATIONS))
def test_one_pass_equals_the_modules_with_all_gradients(every_isa, activation, threads):
    mlp, before = made(activation), torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        for tokens in (0, 1, 9, 64, 65, 200):
            x, g = 2 * torch.randn(tokens, 30), torch.randn(tokens, 20)
            ours = gradients(mlp, mlp, x, g)
            theirs = gradients(mlp, lambda t: by_modules(mlp, t), x, g)
            for a, b in zip(ours, theirs, strict=True):
                assert a.shape == b.shape
                assert torch.allclose(a, b, rtol=1e-4, atol=2e-5 * (1 + float(b.abs().max()) if b.numel() else 1))
    finally:
        torch.set_num_threads(before)


def normed(width: int) -> nn.LayerNorm:
    norm = nn.LayerNorm(width, eps=1e-3)
    with torch.no_grad():
        norm.weight.uniform_(-1.5, 1.5)
        norm.bias.uniform_(-1, 1)
        norm.weight[0] = 0.0  # the input cannot be had back from the output
    return norm


@pytest.mark.parametrize("threads", [1, 2])
def test_half_a_transformer_block_equals_the_modules_with_all_gradients(every_isa, threads):
    mlp, before = made(sizes=(30, 130, 30), norm=normed(30), residual=True), torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        for tokens in (0, 1, 9, 64, 65, 200):
            x, g = 1 + 2 * torch.randn(tokens, 30), torch.randn(tokens, 30)
            ours = gradients(mlp, mlp, x, g)
            theirs = gradients(mlp, lambda t: by_modules(mlp, t), x, g)
            for a, b in zip(ours, theirs, strict=True):
                assert a.shape == b.shape
                assert torch.allclose(a, b, rtol=1e-4, atol=3e-5 * (1 + float(b.abs().max()) if b.numel() else 1))
    finally:
        torch.set_num_threads(before)


def test_a_norm_without_eps_and_one_with_a_hook_run_as_modules():
    for norm in (nn.LayerNorm(30, eps=0.0), nn.LayerNorm(30)):
        mlp, x, calls = made(norm=norm), torch.randn(70, 30), []
        norm.register_forward_hook(lambda *_, calls=calls: calls.append(1))
        assert torch.allclose(mlp(x), by_modules(mlp, x), atol=1e-5)
        assert len(calls) == 2


@needs_extension
def test_the_one_pass_is_taken(monkeypatch):
    mlp = made()
    calls = []
    monkeypatch.setattr(TrainableSparseLinear, "forward", lambda _, x: calls.append(x))
    mlp(torch.randn(3, 4, 30))
    assert not calls


@needs_extension
@pytest.mark.parametrize("reason", ["hook", "double", "autocast"])
def test_otherwise_the_modules_run(reason):
    mlp, x = made(), torch.randn(5, 30)
    seen = []
    if reason == "hook":
        mlp.up.register_forward_hook(lambda *_: seen.append(1))
        mlp(x)
        assert seen
    elif reason == "double":
        assert mlp.double()(x.double()).dtype is torch.float64
    else:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert mlp(x).dtype is torch.bfloat16


def test_inference_keeps_nothing_and_computes_the_same():
    mlp, x = made(), torch.randn(70, 30)
    with torch.inference_mode():
        assert torch.allclose(mlp(x), by_modules(mlp, x), atol=1e-5)


@needs_extension
def test_compiles_as_one_graph():
    mlp, x = made(), torch.randn(70, 30)
    compiled = torch.compile(mlp, fullgraph=True, backend="aot_eager")
    g = torch.randn(70, 20)
    assert all(
        torch.allclose(a, b, atol=1e-5)
        for a, b in zip(gradients(mlp, compiled, x, g), gradients(mlp, mlp, x, g), strict=True)
    )


def test_layers_that_do_not_fit_are_refused():
    mlp = made()
    with pytest.raises(ModelError, match="softmax"):
        TrainableSparseMLP(mlp.up, "softmax", mlp.down)
    with pytest.raises(ShapeError, match="do not fit"):
        TrainableSparseMLP(mlp.down, "relu", mlp.down)
    bare = TrainableSparseLinear.from_support(mlp.up.support(), bias=False)
    with pytest.raises(ShapeError, match="bias"):
        TrainableSparseMLP(bare, "relu", mlp.down)
    with pytest.raises(ShapeError):
        mlp(torch.randn(5, 29))
    with pytest.raises(ShapeError, match="residual"):
        TrainableSparseMLP(mlp.up, "relu", mlp.down, residual=True)
    with pytest.raises(ShapeError, match="norm"):
        TrainableSparseMLP(mlp.up, "relu", mlp.down, norm=nn.LayerNorm(31))
    with pytest.raises(ModelError, match="LayerNorm"):
        TrainableSparseMLP(mlp.up, "relu", mlp.down, norm=nn.LayerNorm(30, elementwise_affine=False))


@needs_extension
def test_the_one_pass_refuses_other_types():
    model = made()
    weights = [model.up.values, model.up.bias, model.down.values, model.down.bias]
    with pytest.raises(KernelError, match="float32"):
        mlp(torch.randn(4, 30).double(), weights, model.up.index, model.down.index, 0)
