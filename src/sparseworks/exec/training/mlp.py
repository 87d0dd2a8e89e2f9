"""The products of an MLP of two sparse layers in one pass over tiles of tokens, forward and backward.

The hidden layer is several times as wide as what goes in and out. Layer by layer it is written as a matrix, read by the
activation, written, read again; here it stays in the cache. Only the tiles of x are kept for the gradient, since computing the
hidden layer again costs less than writing and reading it.
"""

from __future__ import annotations

from collections.abc import Sequence
from types import ModuleType

import torch
from jaxtyping import Float
from torch import Tensor

from sparseworks.core.errors import KernelError, ShapeError
from sparseworks.exec.native import native, why_missing
from sparseworks.exec.training.index import SparseIndex
from sparseworks.exec.training.products import tile_floats, transposed

ACTIVATIONS = {"gelu": 0, "gelu_tanh": 1, "relu": 2, "silu": 3}
"""Activations with their number in the extension; GELU is the exact one."""


def mlp(
    x: Float[Tensor, "tokens in"], weights: Sequence[Tensor], up: SparseIndex, down: SparseIndex, activation: int
) -> Float[Tensor, "tokens out"]:
    """down(activation(up(x))) in float32 on the CPU; differentiable in x and the weights.

    Args:
        weights: values and bias of `up`, values and bias of `down`.
        activation: a number of `ACTIVATIONS`.

    Raises:
        ShapeError: sizes do not fit.
        KernelError: there is no compiled extension.
    """
    if torch.compiler.is_compiling():
        from sparseworks.exec.training.ops import mlp_op

        return mlp_op(x, weights, up, down, activation)
    return _Mlp.apply(x, *weights, up, down, activation)


class _Mlp(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, up_values, up_bias, down_values, down_bias, up, down, activation):  # type: ignore[override]
        weights = (up_values, up_bias, down_values, down_bias)
        y, kept = multiply(x, weights, up, down, activation, keep=any(ctx.needs_input_grad))
        ctx.save_for_backward(kept, *weights)
        ctx.facts = (up, down, activation)
        return y

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, dy):  # type: ignore[override]
        kept, *weights = ctx.saved_tensors
        found = differentiate(dy, kept, weights, *ctx.facts)
        needed = [g if need else None for g, need in zip(found, ctx.needs_input_grad[:5], strict=True)]
        return *needed, None, None, None


def multiply(
    x: Tensor, weights: Sequence[Tensor], up: SparseIndex, down: SparseIndex, activation: int, *, keep: bool
) -> tuple[Tensor, Tensor]:
    """`mlp` without gradient, and the tiles of x if `keep`."""
    module, tokens, width, out = _extension(up, down), x.shape[0], up.shape[1], down.shape[0]
    if not all(t.dtype is torch.float32 and t.is_cpu for t in (x, *weights)):
        raise KernelError(
            "The sparse MLP runs in one pass in float32 on the CPU only; call the module, which does without."
        )
    x, weights = x.contiguous(), [t.contiguous() for t in weights]
    sizes = ((up.count,), (up.shape[0],), (down.count,), (out,))
    if x.shape[1:] != (width,) or any(t.shape != s for t, s in zip(weights, sizes, strict=True)):
        raise ShapeError(
            f"Input {tuple(x.shape)}, values and biases do not fit an MLP of {width}, {up.shape[0]}, {out}."
        )
    y, kept = torch.empty(tokens, out), torch.empty(tile_floats(tokens, width) if keep else 0)
    at = (x.data_ptr(), y.data_ptr(), kept.data_ptr() if keep else 0, tokens, activation, torch.get_num_threads())
    module.mlp(*at, [*up.forward.addresses, *down.forward.addresses], [t.data_ptr() for t in weights])
    return y, kept


def differentiate(
    dy: Tensor, kept: Tensor, weights: Sequence[Tensor], up: SparseIndex, down: SparseIndex, activation: int
) -> list[Tensor]:
    """Gradients of x and of the four weights."""
    module, threads = _extension(up, down), torch.get_num_threads()
    up_values, up_bias, down_values, _ = weights = [t.contiguous() for t in weights]
    dy, dx = dy.contiguous(), torch.empty(dy.shape[0], up.shape[1])
    parts = [t.numel() for t in weights]
    gradients = torch.zeros(threads, sum(parts))  # every thread adds up its own
    values = (up_values, up_bias, transposed(module, up_values, up), transposed(module, down_values, down))
    cuts = (up.forward, down.forward, up.backward, down.backward)
    at = (dy.data_ptr(), kept.data_ptr(), dx.data_ptr(), gradients.data_ptr(), dy.shape[0], activation, threads)
    module.mlp_gradient(*at, [n for cut in cuts for n in cut.addresses], [t.data_ptr() for t in values])
    total = gradients[0] if threads == 1 else gradients.sum(dim=0)
    return [dx, *(g.clone() for g in total.split(parts))]


def _extension(up: SparseIndex, down: SparseIndex) -> ModuleType:
    module = native()
    if module is None:
        raise KernelError(f"The sparse MLP cannot run in one pass: {why_missing()}.")
    up.ensure_safe()
    down.ensure_safe()
    return module
