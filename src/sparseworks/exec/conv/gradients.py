"""A sparse convolution with what autograd needs: gradients flow to the input and to the bias."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn.grad import conv2d_input

from sparseworks.exec.ops import plain

if TYPE_CHECKING:
    from sparseworks.exec.conv.layer import SparseConv2d


class _Conv(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, bias, layer):  # type: ignore[override]
        ctx.layer, ctx.size = layer, x.shape
        return layer._run(x, bias)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, dy):  # type: ignore[override]
        w, needs = ctx.layer.window, ctx.needs_input_grad
        grads, size = (dy, ctx.size) if dy.dim() == 4 else (dy[None], (1, *ctx.size))
        weight = ctx.layer.dense_weight()
        dx = conv2d_input(size, weight, grads, w.stride, w.padding, w.dilation) if needs[0] else None
        return None if dx is None else dx.view(ctx.size), grads.sum((0, 2, 3)) if needs[1] else None, None


def with_gradients(layer: SparseConv2d, x: Tensor) -> Tensor:
    """The convolution with what autograd needs; torch's own where another transform than a gradient is at work."""
    with torch.no_grad():
        usual = plain(x, layer.bias) and layer._compiled(x)  # no transform but a gradient is at work
    return _Conv.apply(x, layer.bias, layer) if usual else layer._torch(x, layer.dense_weight())
