"""The three products of sparse training: y = x W^T + b, x' = y' W, and W' = y'^T x at the kept entries only.

No dense weight and no dense gradient is ever formed. Follows the backward pass of SparseProp (Nikdan et al. 2023, arXiv
2302.04852): each product is one pass over the kept entries with tokens in the vector lanes. float32 on the CPU runs compiled;
everything else (and machines without the extension) goes through a dense reference.
"""

from __future__ import annotations

from types import ModuleType

import torch
from jaxtyping import Float
from torch import Tensor

from sparseworks.core.errors import ShapeError
from sparseworks.exec.native import native
from sparseworks.exec.training.cut import Cut
from sparseworks.exec.training.index import SparseIndex
from sparseworks.exec.training.onepass import CHANGED, Kept, backward, forward, suits, tile_floats, transposed


def spmm(
    x: Float[Tensor, "tokens in"] | Float[Tensor, "images in positions"],
    values: Float[Tensor, " entries"],
    bias: Float[Tensor, " out"] | None,
    index: SparseIndex,
) -> Float[Tensor, "tokens out"] | Float[Tensor, "images out positions"]:
    """y = x W^T + b, or for maps y[n] = W x[n] + b, with W given by its kept values. Differentiable in x, values and bias.

    Under autocast the product is made in the type of the values and returned in the autocast type.

    Raises:
        ShapeError: sizes do not fit.
    """
    if torch.compiler.is_compiling() or torch.is_autocast_enabled(x.device.type):
        from sparseworks.exec.training.ops import spmm_op

        return spmm_op(x, values, bias, index)
    return _Spmm.apply(x, values, bias, index, torch.is_grad_enabled())


class _Spmm(torch.autograd.Function):
    """The eager way; the registered op would cost ten times as much per call."""

    @staticmethod
    def forward(ctx, x, values, bias, index, recorded):  # type: ignore[override]
        y, kept = multiply(x, values, bias, index, keep=recorded and ctx.needs_input_grad[1])
        ctx.save_for_backward(values, kept)
        ctx.index, ctx.bias_dtype = index, None if bias is None else bias.dtype
        return y

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, dy):  # type: ignore[override]
        values, kept = ctx.saved_tensors
        needs = ctx.needs_input_grad[:3]
        dx, dvalues, dbias = differentiate(dy, kept, values, ctx.index, needs)
        dbias = dbias.to(ctx.bias_dtype) if needs[2] else None
        return dx if needs[0] else None, dvalues if needs[1] else None, dbias, None, None


def multiply(
    x: Tensor, values: Tensor, bias: Tensor | None, index: SparseIndex, *, keep: bool
) -> tuple[Tensor, Tensor]:
    """`spmm` without gradient, and what the gradient of the values needs if `keep`.

    Raises:
        ShapeError: sizes do not fit.
    """
    out, width = index.shape
    _check(x, width, "features")
    if values.shape != (index.count,) or (bias is not None and bias.shape != (out,)):
        raise ShapeError(
            f"A sparse weight with {index.count} entries and {out} outputs got {tuple(values.shape)} values."
        )
    module = _compiled(x, values)
    if module is None:
        y = _dense(x, index.scatter(values).to(x.dtype), bias)
        return y, x.clone() if keep else x.new_empty(0)
    index.ensure_safe()
    values, bias = values.contiguous(), None if bias is None else bias.to(x.dtype).contiguous()
    if x.dim() == 2 and suits(module, x.shape[0], index):
        y, kept = forward(module, x.contiguous(), values, bias, index, keep=keep)
        return y, kept.tiles
    tiles = _tiles(module, x)
    return _multiply(module, tiles, x, index.forward, values, bias), tiles if keep else tiles.new_empty(0)


def differentiate(
    dy: Tensor, kept: Tensor, values: Tensor, index: SparseIndex, needs: tuple[bool, bool, bool]
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of x, of the values and of a bias; empty where not needed.

    Raises:
        ShapeError: the support changed since the forward pass.
    """
    if values.shape != (index.count,):
        raise ShapeError(CHANGED)
    empty, (need_x, need_values, need_bias) = dy.new_empty(0), needs
    module = _compiled(dy, values)
    if module is None:
        dx = _dense(dy, index.scatter(values).T.to(dy.dtype)) if need_x else empty
        dvalues = _sample_dense(dy, kept, index).to(values.dtype) if need_values else values.new_empty(0)
        return dx, dvalues, _over_tokens(dy) if need_bias else empty
    index.ensure_safe()
    dy, values = dy.contiguous(), values.contiguous()
    if dy.dim() == 2 and suits(module, dy.shape[0], index):
        dx, (dvalues, dbias) = backward(module, dy, Kept(kept, empty), values, index, needs=needs)
        return dx, dvalues if need_values else empty, dbias if need_bias else empty
    dx, tiles = empty, _tiles(module, dy)
    if need_x:
        dx = _multiply(module, tiles, dy, index.backward, transposed(module, values, index))
    dvalues = _sample(module, tiles, kept, _tokens(dy), index.forward) if need_values else empty
    return dx, dvalues, _over_tokens(dy) if need_bias else empty


def sddmm(
    dy: Float[Tensor, "tokens out"], x: Float[Tensor, "tokens in"], index: SparseIndex
) -> Float[Tensor, " entries"]:
    """sum over tokens of dy[t, row] x[t, column] at every entry of the index (sampled dense-dense product).

    The gradient of weights on the support; of others for scores of growth (RigL, Evci et al. 2020, arXiv 1911.11134). Maps of
    shape (images, features, positions) count their positions as tokens. No gradient flows through it.

    Raises:
        ShapeError: sizes do not fit.
    """
    _check(x, index.shape[1], "features")
    _check(dy, index.shape[0], "outputs")
    if dy.shape[0] != x.shape[0] or dy.shape[2:] != x.shape[2:]:
        raise ShapeError(f"Inputs of shape {tuple(x.shape)} do not belong to gradients of shape {tuple(dy.shape)}.")
    dy, x = dy.detach(), x.detach()
    module = _compiled(dy, x)
    if module is None:
        return _sample_dense(dy, x, index)
    index.ensure_safe()
    return _sample(module, _tiles(module, dy), _tiles(module, x), _tokens(x), index.forward)


# -- the compiled products ------------------------------------------------------------------------------------------------------


def _compiled(*tensors: Tensor | None) -> ModuleType | None:
    """The extension, if it takes these tensors."""
    fits = all(t is None or (t.dtype is torch.float32 and t.is_cpu) for t in tensors)
    return native() if fits else None


def _over_tokens(dy: Tensor) -> Tensor:
    """The sum over tokens, or over images and positions."""
    return dy.sum(dim=(0, *range(2, dy.dim())))


def _tokens(x: Tensor) -> int:
    return x.shape[0] * (x.shape[2] if x.dim() == 3 else 1)


def _positions(x: Tensor) -> int:
    return x.shape[2] if x.dim() == 3 else 0


def _tiles(module: ModuleType, x: Tensor) -> Tensor:
    """`x` in tiles, see cpp/training/training.h."""
    x = x.contiguous()
    tiles = x.new_empty(tile_floats(_tokens(x), x.shape[1]))
    module.to_tiles(x.data_ptr(), tiles.data_ptr(), _tokens(x), x.shape[1], _positions(x), torch.get_num_threads())
    return tiles


def _multiply(
    module: ModuleType, tiles: Tensor, like: Tensor, cut: Cut, values: Tensor, bias: Tensor | None = None
) -> Tensor:
    """The product of tiles that were made of a tensor of the layout of `like`."""
    y = like.new_empty((like.shape[0], cut.shape[0], *like.shape[2:]))
    sizes = (_tokens(like), _positions(like), torch.get_num_threads())
    address = 0 if bias is None else bias.data_ptr()
    module.spmm(tiles.data_ptr(), values.data_ptr(), address, y.data_ptr(), *sizes, *cut.addresses)
    return y


def _sample(module: ModuleType, dy: Tensor, x: Tensor, tokens: int, cut: Cut) -> Tensor:
    gradient = dy.new_zeros(cut.columns.numel())
    module.sddmm(dy.data_ptr(), x.data_ptr(), gradient.data_ptr(), tokens, torch.get_num_threads(), *cut.addresses)
    return gradient


def _dense(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """The reference: the product with the dense weight."""
    if x.dim() == 2:
        return torch.nn.functional.linear(x, weight, None if bias is None else bias.to(x.dtype))
    y = weight @ x
    return y if bias is None else y + bias.to(x.dtype)[:, None]


def _sample_dense(dy: Tensor, x: Tensor, index: SparseIndex) -> Tensor:
    """The reference: the dense gradient, of which the kept entries are taken."""
    a, b = (t if t.dim() == 2 else t.movedim(1, -1).flatten(0, 1) for t in (dy, x))
    return index.gather(a.T @ b.to(a.dtype))


def _check(x: Tensor, size: int, what: str) -> None:
    if x.dim() not in (2, 3) or x.shape[1] != size:
        raise ShapeError(
            f"This weight takes (tokens, {size}) or (images, {size}, positions) {what}, got {tuple(x.shape)}."
        )
