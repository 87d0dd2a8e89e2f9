"""The products of sparse training as registered ops: for compile, export and autocast, which do not see through the eager way."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from sparseworks.exec.native import native
from sparseworks.exec.training import mlp as mlp_products
from sparseworks.exec.training.cut import Cut
from sparseworks.exec.training.index import SparseIndex
from sparseworks.exec.training.onepass import Kept, tile_floats
from sparseworks.exec.training.products import differentiate, multiply

_COMPILED = native() is not None
_LIBRARY = torch.library.Library("sparseworks", "FRAGMENT")
_INDEX = "Tensor[] index, int out, int width, int[] blocks"
_LIBRARY.define(f"spmm(Tensor x, Tensor values, Tensor? bias, {_INDEX}, bool keep) -> (Tensor, Tensor)")
_LIBRARY.define(f"spmm_backward(Tensor dy, Tensor kept, Tensor values, {_INDEX}, bool[] needs) -> Tensor[]")
_WEIGHTS = "Tensor up_values, Tensor up_bias, Tensor down_values, Tensor down_bias"
_TWO = "Tensor[] up, Tensor[] down, int[] sizes, int[] blocks, int activation"
_LIBRARY.define(f"mlp(Tensor x, {_WEIGHTS}, {_TWO}, bool keep) -> (Tensor, Tensor)")
_LIBRARY.define(f"mlp_backward(Tensor dy, Tensor kept, {_WEIGHTS}, {_TWO}) -> Tensor[]")


def spmm_op(x: Tensor, values: Tensor, bias: Tensor | None, index: SparseIndex) -> Tensor:
    """`products.spmm` as an op."""
    keep = torch.is_grad_enabled() and values.requires_grad
    return torch.ops.sparseworks.spmm(x, values, bias, index.tensors, *index.shape, _blocks(index), keep)[0]


def mlp_op(x: Tensor, weights: Sequence[Tensor], up: SparseIndex, down: SparseIndex, activation: int) -> Tensor:
    """`mlp.mlp` as an op."""
    keep = torch.is_grad_enabled() and any(t.requires_grad for t in (x, *weights))
    sizes, blocks = [up.shape[1], up.shape[0], down.shape[0]], [*_blocks(up), *_blocks(down)]
    return torch.ops.sparseworks.mlp(x, *weights, up.tensors, down.tensors, sizes, blocks, activation, keep)[0]


def _blocks(index: SparseIndex) -> list[int]:
    return [index.forward.row_block, index.backward.row_block]


def _index(tensors: Sequence[Tensor], out: int, width: int, blocks: Sequence[int]) -> SparseIndex:
    a, b = tensors[:4], tensors[4:8]
    forward = Cut(a[0], a[1], a[2], a[3], (out, width), blocks[0])
    return SparseIndex(forward, Cut(b[0], b[1], b[2], b[3], (width, out), blocks[1]), tensors[8])


# -- spmm -----------------------------------------------------------------------------------------------------------------------


def _spmm(x, values, bias, tensors, out, width, blocks, keep):
    return multiply(x, values, bias, _index(tensors, out, width, blocks), keep=keep)


def _spmm_backward(dy, kept, values, tensors, out, width, blocks, needs):
    return list(differentiate(dy, kept, values, _index(tensors, out, width, blocks), tuple(needs)))


def _fake_spmm(x, values, bias, index, out, width, blocks, keep):
    y = x.new_empty(x.shape[0], out, *x.shape[2:])
    if not keep:
        return y, x.new_empty(0)
    if not (_COMPILED and x.dtype is values.dtype is torch.float32 and x.device.type == "cpu"):
        return y, torch.empty_like(x)
    return y, x.new_empty(tile_floats(x.shape[0] * (x.shape[2] if x.dim() == 3 else 1), width))


def _fake_spmm_backward(dy, kept, values, index, out, width, blocks, needs):
    dx = dy.new_empty(dy.shape[0], width, *dy.shape[2:]) if needs[0] else dy.new_empty(0)
    dvalues = torch.empty_like(values) if needs[1] else values.new_empty(0)
    return [dx, dvalues, dy.new_empty(out if needs[2] else 0)]


def _save_spmm(ctx, inputs, output):
    _, values, bias, tensors, *ctx.statics, _ = inputs
    ctx.bias_dtype = None if bias is None else bias.dtype
    ctx.save_for_backward(values, output[1], *tensors)


def _grad_spmm(ctx, dy, _):
    values, kept, *tensors = ctx.saved_tensors
    needs = [*ctx.needs_input_grad[:2], ctx.bias_dtype is not None and ctx.needs_input_grad[2]]
    dx, dvalues, dbias = torch.ops.sparseworks.spmm_backward(dy, kept, values, tensors, *ctx.statics, needs)
    dbias = dbias.to(ctx.bias_dtype) if needs[2] else None
    return dx if needs[0] else None, dvalues if needs[1] else None, dbias, [None] * len(tensors), None, None, None, None


def _autocast(device: str) -> Callable[..., tuple[Tensor, Tensor]]:
    key = torch._C.DispatchKeySet(getattr(torch._C.DispatchKey, f"Autocast{device.upper()}"))

    def run(x, values, bias, *rest):
        with torch._C._ExcludeDispatchKeyGuard(key):
            y, kept = torch.ops.sparseworks.spmm(x.to(values.dtype), values, bias, *rest)
        return y.to(torch.get_autocast_dtype(device)), kept

    return run


# -- mlp ------------------------------------------------------------------------------------------------------------------------


def _pair(up, down, sizes, blocks):
    width, wide, out = sizes
    return _index(up, wide, width, blocks[:2]), _index(down, out, wide, blocks[2:])


def _mlp(x, up_values, up_bias, down_values, down_bias, up, down, sizes, blocks, activation, keep):
    weights = (up_values, up_bias, down_values, down_bias)
    y, kept = mlp_products.multiply(x, weights, *_pair(up, down, sizes, blocks), activation, keep=keep)
    return y, kept.tiles


def _mlp_backward(dy, kept, up_values, up_bias, down_values, down_bias, up, down, sizes, blocks, activation):
    weights = (up_values, up_bias, down_values, down_bias)
    kept = Kept(kept, kept.new_empty(0))
    return mlp_products.differentiate(dy, kept, weights, *_pair(up, down, sizes, blocks), activation)


def _fake_mlp(x, up_values, up_bias, down_values, down_bias, up, down, sizes, blocks, activation, keep):
    return x.new_empty(x.shape[0], sizes[2]), x.new_empty(tile_floats(x.shape[0], sizes[0]) if keep else 0)


def _fake_mlp_backward(dy, kept, up_values, up_bias, down_values, down_bias, up, down, sizes, blocks, activation):
    weights = (up_values, up_bias, down_values, down_bias)
    return [dy.new_empty(dy.shape[0], sizes[0]), *(torch.empty_like(w) for w in weights)]


def _save_mlp(ctx, inputs, output):
    _, *weights, up, down, sizes, blocks, activation, _ = inputs
    ctx.split, ctx.statics = len(up), (sizes, blocks, activation)
    ctx.save_for_backward(output[1], *weights, *up, *down)


def _grad_mlp(ctx, dy, _):
    kept, *tensors = ctx.saved_tensors
    weights, up, down = tensors[:4], tensors[4 : 4 + ctx.split], tensors[4 + ctx.split :]
    found = torch.ops.sparseworks.mlp_backward(dy, kept, *weights, up, down, *ctx.statics)
    needed = [g if need else None for g, need in zip(found, ctx.needs_input_grad[:5], strict=True)]
    return *needed, [None] * len(up), [None] * len(down), None, None, None, None


for _name, _run, _fake in (
    ("spmm", _spmm, _fake_spmm),
    ("spmm_backward", _spmm_backward, _fake_spmm_backward),
    ("mlp", _mlp, _fake_mlp),
    ("mlp_backward", _mlp_backward, _fake_mlp_backward),
):
    _LIBRARY.impl(_name, _run, "CompositeExplicitAutograd")
    torch.library.register_fake(f"sparseworks::{_name}", _fake, lib=_LIBRARY)
torch.library.register_autograd("sparseworks::spmm", _grad_spmm, setup_context=_save_spmm, lib=_LIBRARY)
torch.library.register_autograd("sparseworks::mlp", _grad_mlp, setup_context=_save_mlp, lib=_LIBRARY)
_LIBRARY.impl("spmm", _autocast("cpu"), "AutocastCPU")
_LIBRARY.impl("spmm", _autocast("cuda"), "AutocastCUDA")
