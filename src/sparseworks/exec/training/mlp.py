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
from torch.nn import functional as F

from sparseworks.core.errors import KernelError, ShapeError
from sparseworks.exec.native import native, why_missing
from sparseworks.exec.training.index import SparseIndex
from sparseworks.exec.training.onepass import CHANGED, Kept, Norm, address, fits, parted, room, transposed

ACTIVATIONS = {"gelu": 0, "gelu_tanh": 1, "relu": 2, "silu": 3}
"""Activations with their number in the extension; GELU is the exact one."""


def mlp(
    x: Float[Tensor, "tokens in"],
    weights: Sequence[Tensor],
    up: SparseIndex,
    down: SparseIndex,
    activation: int,
    norm: Norm | None = None,
    *,
    residual: bool = False,
) -> Float[Tensor, "tokens out"]:
    """down(activation(up(norm(x)))), plus x if `residual`, in float32 on the CPU; differentiable in x, the weights and the norm.

    Args:
        weights: values and bias of `up`, values and bias of `down`.
        activation: a number of `ACTIVATIONS`.
        norm: of the input, or none.
        residual: needs as many outputs as inputs.

    Raises:
        ShapeError: sizes do not fit.
        KernelError: there is no compiled extension, or another type.
    """
    if torch.compiler.is_compiling():
        from sparseworks.exec.training.ops import mlp_op

        inner = x if norm is None else F.layer_norm(x, norm.weight.shape, norm.weight, norm.bias, norm.eps)
        y = mlp_op(inner, weights, up, down, activation)
        return x + y if residual else y
    return _Mlp.apply(
        x, *weights, *(norm or (None, None, 0.0)), up, down, activation, residual, torch.is_grad_enabled()
    )


class _Mlp(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, uv, ub, dv, db, norm_weight, norm_bias, eps, up, down, activation, residual, recorded):  # type: ignore[override]
        norm = None if norm_weight is None else Norm(norm_weight, norm_bias, eps)
        keep, weights = recorded and any(ctx.needs_input_grad), (uv, ub, dv, db)
        y, kept = multiply(x, weights, up, down, activation, norm, residual=residual, keep=keep)
        ctx.save_for_backward(kept.tiles, kept.scale, *weights, norm_weight, norm_bias)
        ctx.facts, ctx.eps, ctx.residual = (up, down, activation), eps, residual
        return y

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, dy):  # type: ignore[override]
        tiles, scale, *weights, norm_weight, norm_bias = ctx.saved_tensors
        norm = None if norm_weight is None else Norm(norm_weight, norm_bias, ctx.eps)
        found = differentiate(dy, Kept(tiles, scale), weights, *ctx.facts, norm=norm, residual=ctx.residual)
        found += [None] * (7 - len(found))
        needed = [g if need else None for g, need in zip(found, ctx.needs_input_grad[:7], strict=True)]
        return *needed, None, None, None, None, None, None


def multiply(
    x: Tensor,
    weights: Sequence[Tensor],
    up: SparseIndex,
    down: SparseIndex,
    activation: int,
    norm: Norm | None = None,
    *,
    residual: bool = False,
    keep: bool,
) -> tuple[Tensor, Kept]:
    """`mlp` without gradient, and what the gradient needs if `keep`."""
    module, tokens, width, out = _extension(up, down), x.shape[0], up.shape[1], down.shape[0]
    affine = [] if norm is None else [norm.weight, norm.bias]
    if not all(t.dtype is torch.float32 and t.is_cpu for t in (x, *weights, *affine)):
        raise KernelError(
            "The sparse MLP runs in one pass in float32 on the CPU only; call the module, which does without."
        )
    x, weights = x.contiguous(), [t.contiguous() for t in weights]
    if x.shape[1:] != (width,) or not _fit(weights, up, down, norm) or (residual and width != out):
        raise ShapeError(
            f"Input {tuple(x.shape)}, values and biases do not fit an MLP of {width}, {up.shape[0]}, {out}."
        )
    y, kept = x.new_empty(tokens, out), room(x, norm, keep=keep)
    data = [x.data_ptr(), address(x if residual else None), y.data_ptr()]
    data += [kept.tiles.data_ptr() if keep else 0, kept.scale.data_ptr()]
    norms, eps = ([], 0.0) if norm is None else (norm.addresses, norm.eps)
    cuts = [*up.forward.addresses, *down.forward.addresses]
    at = [t.data_ptr() for t in weights]
    module.mlp(data, cuts, at, norms, eps, tokens, activation, torch.get_num_threads())
    return y, kept


def differentiate(
    dy: Tensor,
    kept: Kept,
    weights: Sequence[Tensor],
    up: SparseIndex,
    down: SparseIndex,
    activation: int,
    norm: Norm | None = None,
    *,
    residual: bool = False,
) -> list[Tensor]:
    """Gradients of x, of the four weights, and of weight and bias of the norm if there is one.

    Raises:
        ShapeError: the weights changed since the forward pass.
    """
    module, threads = _extension(up, down), torch.get_num_threads()
    up_values, up_bias, down_values, _ = weights = [t.contiguous() for t in weights]
    if not _fit(weights, up, down, norm):
        raise ShapeError(CHANGED)
    dy, dx = dy.contiguous(), dy.new_empty(dy.shape[0], up.shape[1])
    parts = [t.numel() for t in (*weights, *(() if norm is None else norm[:2]))]
    gradients = dy.new_zeros(threads, sum(parts))  # every thread adds up its own
    values = (up_values, up_bias, transposed(module, up_values, up), transposed(module, down_values, down))
    cuts = [n for cut in (up.forward, down.forward, up.backward, down.backward) for n in cut.addresses]
    data = (dy, dy if residual else None, kept.tiles, kept.scale, dx, gradients)
    norms, eps = ([], 0.0) if norm is None else (norm.addresses, norm.eps)
    at = [t.data_ptr() for t in values]
    module.mlp_gradient([address(t) for t in data], cuts, at, norms, eps, dy.shape[0], activation, threads)
    return [dx, *parted(gradients, parts)]


def _fit(weights: Sequence[Tensor], up: SparseIndex, down: SparseIndex, norm: Norm | None) -> bool:
    return fits(up, weights[0], weights[1], norm) and fits(down, weights[2], weights[3])


def _extension(up: SparseIndex, down: SparseIndex) -> ModuleType:
    module = native()
    if module is None:
        raise KernelError(f"The sparse MLP cannot run in one pass: {why_missing()}.")
    up.ensure_safe()
    down.ensure_safe()
    return module
