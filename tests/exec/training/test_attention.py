from __future__ import annotations

import pytest
import torch
from torch import nn

from sparseworks.core.errors import ModelError, ShapeError
from sparseworks.core.support import Support
from sparseworks.exec.native import native
from sparseworks.exec.training import TrainableSparseAttention, TrainableSparseLinear

needs_extension = pytest.mark.skipif(native() is None, reason="the compiled extension is not built")


def linear(out: int, width: int, *, bias: bool = True, seed: int = 0) -> TrainableSparseLinear:
    draw = torch.Generator().manual_seed(seed)
    return TrainableSparseLinear.from_support(
        Support.from_mask(torch.rand(out, width, generator=draw) < 0.3), bias=bias
    )


def made(
    width: int = 24, heads: int = 3, *, norm: bool = True, bias: bool = True, **options
) -> TrainableSparseAttention:
    norms = nn.LayerNorm(width) if norm else None
    if norms is not None:
        with torch.no_grad():
            norms.weight.uniform_(-1.5, 1.5)
            norms.bias.uniform_(-1, 1)
    layers = linear(3 * width, width, bias=bias), linear(width, width, bias=bias, seed=1)
    return TrainableSparseAttention(*layers, heads, norm=norms, **options)


def dense(module: TrainableSparseAttention, x: torch.Tensor) -> torch.Tensor:
    """The same by torch alone, from dense weights."""
    n, tokens, width = x.shape
    y = x if module.norm is None else module.norm(x)
    y = nn.functional.linear(y, module.qkv.dense_matrix(), module.qkv.bias)
    q, k, v = y.view(n, tokens, 3, module.heads, width // module.heads).permute(2, 0, 3, 1, 4)
    y = nn.functional.scaled_dot_product_attention(q, k, v, is_causal=module.causal)
    y = nn.functional.linear(y.transpose(1, 2).flatten(2), module.out.dense_matrix(), module.out.bias)
    return x + y if module.residual else y


def gradients(module: nn.Module, run, x: torch.Tensor, g: torch.Tensor) -> list[torch.Tensor]:
    module.zero_grad()
    x = x.clone().requires_grad_()
    y = run(x)
    y.backward(g)
    return [y.detach(), x.grad, *(p.grad.clone() for p in module.parameters())]


def same(ours: list[torch.Tensor], theirs: list[torch.Tensor]) -> bool:
    return all(
        a.shape == b.shape
        and torch.allclose(a, b, rtol=1e-4, atol=3e-5 * (1 + float(b.abs().max()) if b.numel() else 1))
        for a, b in zip(ours, theirs, strict=True)
    )


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize(
    "options", [{}, {"residual": True}, {"norm": False}, {"bias": False}, {"causal": True}], ids=str
)
def test_equals_torch_with_all_gradients(every_isa, options, threads):
    module, before = made(**{"residual": False, **options}), torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        for n, tokens in ((0, 5), (1, 1), (3, 7), (2, 65), (9, 64)):
            x, g = 2 * torch.randn(n, tokens, 24), torch.randn(n, tokens, 24)
            run = lambda t: dense(module, t)  # noqa: E731
            assert same(gradients(module, module, x, g), gradients(module, run, x, g)), (n, tokens)
    finally:
        torch.set_num_threads(before)


@needs_extension
def test_the_one_pass_is_taken(monkeypatch):
    module, calls = made(residual=True), []
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
    monkeypatch.setattr(TrainableSparseLinear, "forward", lambda _, x: calls.append(x))
    module(torch.randn(3, 4, 24))
    assert not calls


@pytest.mark.parametrize("reason", ["hook", "double", "autocast"])
def test_otherwise_the_modules_run(reason):
    module, x = made(residual=True), torch.randn(2, 5, 24)
    if reason == "hook":
        seen = []
        module.norm.register_forward_hook(lambda *_: seen.append(1))
        assert torch.allclose(module(x), dense(module, x), atol=1e-5)
        assert seen
    elif reason == "double":
        y = module.double()(x.double())
        assert y.dtype is torch.float64 and torch.allclose(y, dense(module, x.double()))
    else:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert torch.allclose(module(x).float(), dense(module, x).float(), atol=0.1)


def test_gradients_that_are_not_wanted_are_not_made():
    module, x = made(residual=True), torch.randn(2, 6, 24)
    for p in (module.qkv.values, module.out.bias, module.norm.weight):
        p.requires_grad_(False)
    module(x).sum().backward()
    assert module.qkv.values.grad is None and module.out.bias.grad is None and module.norm.weight.grad is None
    assert module.out.values.grad is not None and module.qkv.bias.grad is not None


def test_a_strided_input_and_a_broadcast_gradient():
    module, x = made(), torch.randn(2, 24, 9).transpose(1, 2)
    y = module(x)
    assert torch.allclose(y, dense(module, x), atol=1e-5)
    y.sum().backward()


@pytest.mark.filterwarnings("ignore:The .grad attribute")  # of torch itself, where the graph breaks
def test_compiles():
    module, x, g = made(residual=True), torch.randn(3, 9, 24), torch.randn(3, 9, 24)
    compiled = torch.compile(module, backend="aot_eager")
    assert same(gradients(module, compiled, x, g), gradients(module, module, x, g))


def test_layers_that_do_not_fit_are_refused():
    qkv, out = linear(72, 24), linear(24, 24)
    with pytest.raises(ShapeError, match="q, k and v"):
        TrainableSparseAttention(out, out, 3)
    with pytest.raises(ShapeError, match="5 heads"):
        TrainableSparseAttention(qkv, out, 5)
    with pytest.raises(ShapeError, match="residual"):
        TrainableSparseAttention(linear(72, 20), out, 3, residual=True)
    with pytest.raises(ShapeError, match="norm"):
        TrainableSparseAttention(qkv, out, 3, norm=nn.LayerNorm(20))
    with pytest.raises(ModelError, match="LayerNorm"):
        TrainableSparseAttention(qkv, out, 3, norm=nn.LayerNorm(24, bias=False))
    with pytest.raises(ShapeError, match="batch, tokens"):
        TrainableSparseAttention(qkv, out, 3)(torch.randn(4, 24))
    with pytest.raises(ShapeError):
        TrainableSparseAttention(qkv, out, 3)(torch.randn(2, 4, 23))
