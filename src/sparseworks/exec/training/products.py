"""The three products of sparse training, as ops: y = x W^T + b, x' = y' W, and W' = y'^T x at the kept entries only.

No dense weight and no dense gradient is ever formed. Follows the backward pass of SparseProp (Nikdan et al. 2023, arXiv
2302.04852): each product is one pass over the kept entries with tokens in the vector lanes. float32 on the CPU runs compiled;
everything else (and machines without the extension) goes through a dense reference.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from types import ModuleType

import torch
from jaxtyping import Float
from torch import Tensor

from sparseworks.core.errors import ShapeError
from sparseworks.exec.native import features, native
from sparseworks.exec.training.cut import Cut
from sparseworks.exec.training.index import SparseIndex

LIBRARY = torch.library.Library("sparseworks", "FRAGMENT")
_INDEX = "Tensor[] index, int out, int width, int[] blocks"
LIBRARY.define(f"spmm(Tensor x, Tensor values, Tensor? bias, {_INDEX}, bool keep) -> (Tensor, Tensor)")
LIBRARY.define(f"spmm_backward(Tensor dy, Tensor kept, Tensor values, {_INDEX}, bool[] needs) -> (Tensor, Tensor)")
LIBRARY.define(f"sddmm(Tensor dy, Tensor x, {_INDEX}) -> Tensor")


def spmm(
    x: Float[Tensor, "tokens in"] | Float[Tensor, "images in positions"],
    values: Float[Tensor, " entries"],
    bias: Float[Tensor, " out"] | None,
    index: SparseIndex,
) -> Float[Tensor, "tokens out"] | Float[Tensor, "images out positions"]:
    """y = x W^T + b, or for maps y[n] = W x[n] + b, with W given by its kept values. Differentiable in x, values and bias.

    Raises:
        ShapeError: sizes do not fit.
    """
    keep = torch.is_grad_enabled() and values.requires_grad
    return torch.ops.sparseworks.spmm(x, values, bias, *index_facts(index), keep)[0]


def backward(
    dy: Float[Tensor, "tokens out"], values: Float[Tensor, " entries"], index: SparseIndex
) -> Float[Tensor, "tokens in"]:
    """The gradient of the input of `spmm`: dy W, in the layout of `dy`."""
    kept = dy.new_empty(0)
    return torch.ops.sparseworks.spmm_backward(dy.contiguous(), kept, values, *index_facts(index), [True, False])[0]


def sddmm(
    dy: Float[Tensor, "tokens out"], x: Float[Tensor, "tokens in"], index: SparseIndex
) -> Float[Tensor, " entries"]:
    """sum over tokens of dy[t, row] x[t, column] at every entry of the index (sampled dense-dense product).

    The gradient of weights on the support; of others for scores of growth (RigL, Evci et al. 2020, arXiv 1911.11134). Maps of
    shape (images, features, positions) count their positions as tokens.

    Raises:
        ShapeError: sizes do not fit.
    """
    return torch.ops.sparseworks.sddmm(dy, x, *index_facts(index))


def index_facts(index: SparseIndex) -> tuple[list[Tensor], int, int, list[int]]:
    """An index as ops take it: buffers, outputs, inputs, row blocks."""
    return index.tensors, *index.shape, [index.forward.row_block, index.backward.row_block]


def read_index(tensors: Sequence[Tensor], out: int, width: int, blocks: Sequence[int]) -> SparseIndex:
    """Inverse of `index_facts`."""
    a, b = tensors[:4], tensors[4:8]
    forward = Cut(a[0], a[1], a[2], a[3], (out, width), blocks[0])
    return SparseIndex(forward, Cut(b[0], b[1], b[2], b[3], (width, out), blocks[1]), tensors[8])


# -- the compiled products ------------------------------------------------------------------------------------------------------


def _compiled(*tensors: Tensor | None) -> ModuleType | None:
    """The extension, if it takes these tensors."""
    fits = all(t is None or (t.dtype is torch.float32 and t.is_cpu) for t in tensors)
    return native() if fits else None


def _tokens(x: Tensor) -> int:
    return x.shape[0] * (x.shape[2] if x.dim() == 3 else 1)


def _positions(x: Tensor) -> int:
    return x.shape[2] if x.dim() == 3 else 0


def tile_floats(tokens: int, width: int) -> int:
    """Floats of `tokens` tokens in tiles: full tiles of eight vectors, and a last one of eight, four, two or one."""
    lanes = int(features()["lanes"])
    rest = tokens % (8 * lanes)
    last = next((v * lanes for v in (1, 2, 4, 8) if rest <= v * lanes), 0) if rest else 0
    return (tokens - rest + last) * width


def _tiles(module: ModuleType, x: Tensor) -> Tensor:
    """`x` in tiles, see cpp/training/training.h."""
    x = x.contiguous()
    tiles = torch.empty(tile_floats(_tokens(x), x.shape[1]))
    module.to_tiles(x.data_ptr(), tiles.data_ptr(), _tokens(x), x.shape[1], _positions(x), torch.get_num_threads())
    return tiles


def _multiply(
    module: ModuleType, tiles: Tensor, like: Tensor, cut: Cut, values: Tensor, bias: Tensor | None = None
) -> Tensor:
    """The product of tiles that were made of a tensor of the layout of `like`."""
    y = torch.empty((like.shape[0], cut.shape[0], *like.shape[2:]))
    sizes = (_tokens(like), _positions(like), torch.get_num_threads())
    address = 0 if bias is None else bias.data_ptr()
    module.spmm(tiles.data_ptr(), values.data_ptr(), address, y.data_ptr(), *sizes, *cut.addresses)
    return y


def _sample(module: ModuleType, dy: Tensor, x: Tensor, tokens: int, cut: Cut) -> Tensor:
    gradient = torch.zeros(cut.columns.numel())
    module.sddmm(dy.data_ptr(), x.data_ptr(), gradient.data_ptr(), tokens, torch.get_num_threads(), *cut.addresses)
    return gradient


# -- implementations of the ops -------------------------------------------------------------------------------------------------


def _spmm(x, values, bias, tensors, out, width, blocks, keep):
    index = read_index(tensors, out, width, blocks)
    _check(x, width, "features")
    if values.shape != (index.count,) or (bias is not None and bias.shape != (out,)):
        raise ShapeError(
            f"A sparse weight with {index.count} entries and {out} outputs got {tuple(values.shape)} values."
        )
    module = _compiled(x, values, bias)
    if module is None:
        y = _dense(x, index.scatter(values).to(x.dtype), bias)
        return y, x.clone() if keep else x.new_empty(0)
    index.ensure_safe()
    values, bias = values.contiguous(), None if bias is None else bias.contiguous()
    tiles = _tiles(module, x)
    return _multiply(module, tiles, x, index.forward, values, bias), tiles if keep else tiles.new_empty(0)


def _spmm_backward(dy, kept, values, tensors, out, width, blocks, needs):
    index, empty = read_index(tensors, out, width, blocks), dy.new_empty(0)
    module = _compiled(dy, values)
    if module is None:
        dx = _dense(dy, index.scatter(values).T.to(dy.dtype)) if needs[0] else empty
        return dx, _sample_dense(dy, kept, index).to(values.dtype) if needs[1] else values.new_empty(0)
    index.ensure_safe()
    values = values.contiguous()
    dx, tiles = empty, _tiles(module, dy)
    if needs[0]:
        moved = torch.empty_like(values)
        at = (values.data_ptr(), index.order.data_ptr(), moved.data_ptr())
        module.reorder(*at, moved.numel(), torch.get_num_threads())
        dx = _multiply(module, tiles, dy, index.backward, moved)
    return dx, _sample(module, tiles, kept, _tokens(dy), index.forward) if needs[1] else empty


def _sddmm(dy, x, tensors, out, width, blocks):
    index = read_index(tensors, out, width, blocks)
    _check(x, width, "features")
    _check(dy, out, "outputs")
    if dy.shape[0] != x.shape[0] or dy.shape[2:] != x.shape[2:]:
        raise ShapeError(f"Inputs of shape {tuple(x.shape)} do not belong to gradients of shape {tuple(dy.shape)}.")
    module = _compiled(dy, x)
    if module is None:
        return _sample_dense(dy, x, index)
    index.ensure_safe()
    return _sample(module, _tiles(module, dy), _tiles(module, x), _tokens(x), index.forward)


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


# -- gradients and shapes -------------------------------------------------------------------------------------------------------


def _fake_spmm(x, values, bias, index, out, width, blocks, keep):
    y = x.new_empty(x.shape[0], out, *x.shape[2:])
    if not keep:
        return y, x.new_empty(0)
    if _compiled(x, values) is None:
        return y, torch.empty_like(x)
    return y, x.new_empty(tile_floats(_tokens(x), width))


def _fake_backward(dy, kept, values, index, out, width, blocks, needs):
    dx = dy.new_empty(dy.shape[0], width, *dy.shape[2:]) if needs[0] else dy.new_empty(0)
    return dx, torch.empty_like(values) if needs[1] else values.new_empty(0)


def _save(ctx, inputs, output):
    _, values, bias, tensors, *ctx.statics, _ = inputs
    ctx.bias_dtype = None if bias is None else bias.dtype
    ctx.save_for_backward(values, output[1], *tensors)


def _grad(ctx, dy, _):
    values, kept, *tensors = ctx.saved_tensors
    needs = [ctx.needs_input_grad[0], ctx.needs_input_grad[1]]
    dx, dvalues, dbias = None, None, None
    if any(needs):
        dx, dvalues = torch.ops.sparseworks.spmm_backward(dy.contiguous(), kept, values, tensors, *ctx.statics, needs)
    if ctx.bias_dtype is not None and ctx.needs_input_grad[2]:
        dbias = dy.sum(dim=(0, *range(2, dy.dim()))).to(ctx.bias_dtype)
    return (
        (dx if needs[0] else None),
        (dvalues if needs[1] else None),
        dbias,
        [None] * len(tensors),
        None,
        None,
        None,
        None,
    )


def _autocast(device: str) -> Callable[..., tuple[Tensor, Tensor]]:
    """Products are made in float32 and returned in the autocast type."""
    key = torch._C.DispatchKeySet(getattr(torch._C.DispatchKey, f"Autocast{device.upper()}"))

    def run(x, values, bias, *rest):
        with torch._C._ExcludeDispatchKeyGuard(key):
            y, kept = torch.ops.sparseworks.spmm(x.to(values.dtype), values, bias, *rest)
        return y.to(torch.get_autocast_dtype(device)), kept

    return run


for _name, _run in (("spmm", _spmm), ("spmm_backward", _spmm_backward), ("sddmm", _sddmm)):
    LIBRARY.impl(_name, _run, "CompositeExplicitAutograd")
torch.library.register_fake("sparseworks::spmm", _fake_spmm, lib=LIBRARY)
torch.library.register_fake("sparseworks::spmm_backward", _fake_backward, lib=LIBRARY)
torch.library.register_fake("sparseworks::sddmm", lambda dy, x, index, *_: dy.new_empty(index[0].shape), lib=LIBRARY)
torch.library.register_autograd("sparseworks::spmm", _grad, setup_context=_save, lib=LIBRARY)
LIBRARY.impl("spmm", _autocast("cpu"), "AutocastCPU")
LIBRARY.impl("spmm", _autocast("cuda"), "AutocastCUDA")
