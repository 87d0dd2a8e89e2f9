"""`sparseworks::attend`: attention over kept blocks, with fake and autograd rules."""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from sparseworks.core.errors import ShapeError
from sparseworks.core.support import Support
from sparseworks.exec.attention.checks import check_heads, check_lists, prepared, scale_of
from sparseworks.exec.attention.reference import attend_backward, attend_rows
from sparseworks.exec.native import native

_LIBRARY = torch.library.Library("sparseworks", "FRAGMENT")
_LISTS = "Tensor ptr, Tensor idx, int block, bool causal, float scale"
_LIBRARY.define(f"attend(Tensor q, Tensor k, Tensor v, {_LISTS}) -> (Tensor, Tensor)")
_LIBRARY.define(
    "attend_backward(Tensor grad, Tensor grad_lse, Tensor q, Tensor k, Tensor v, Tensor out, Tensor lse, "
    f"{_LISTS}) -> (Tensor, Tensor, Tensor)"
)


def attend(
    q: Float[Tensor, "batch heads queries d"],
    k: Float[Tensor, "batch kv_heads keys d"],
    v: Float[Tensor, "batch kv_heads keys d"],
    support: Support,
    *,
    block: int = 64,
    causal: bool = False,
    scale: float | None = None,
    return_lse: bool = False,
) -> Tensor | tuple[Float[Tensor, "batch heads queries d"], Float[Tensor, "batch heads queries"]]:
    """softmax(scale q k' over the kept blocks) v; with `return_lse` also log sum e^{scale q k'} (at least float32).

    Query heads share key heads in groups. Rows that attend to nothing give 0 and -inf. Differentiable in q, k, v through both
    outputs; the backward computes kept blocks only. float32 runs in the extension where `block` is a multiple of 32 up to
    128, bfloat16 and half are widened; everything else runs in plain torch. (Dao 2023, arXiv 2307.08691)

    Args:
        support: kept blocks, over (query blocks, key blocks), with heads (or 1) and then batch (or 1) in front if they differ.
        block: tokens of a block, of queries and of keys; the last ones may be shorter.
        causal: query i sees keys j <= i, both counted from 0: diagonal blocks are masked inside, blocks above are ignored.
        scale: of the scores; default 1 / sqrt(d).

    Raises:
        ShapeError: sizes that do not fit together, or a support of another shape.
        DtypeError: types that are not floating or differ.
    """
    check_heads(q, k, v, 4)
    if block < 1:
        raise ShapeError(f"A block has at least one token, got block={block}.")
    ptr, idx = _eager_lists(support, q.shape[0], q.shape[1], -(-q.shape[2] // block), -(-k.shape[2] // block), causal)
    out, lse = torch.ops.sparseworks.attend(q, k, v, ptr, idx, block, causal, scale_of(scale, q.shape[-1]))
    return (out, lse) if return_lse else out


def block_lists(
    support: Support, batch: int, heads: int, rows: int, cols: int, causal: bool
) -> tuple[Int[Tensor, " lists+1"], Int[Tensor, " count"]]:
    """int32 `(ptr, idx)` over (batch, heads, query blocks); blocks above the diagonal left out where `causal`.

    Raises:
        ShapeError: the support is not over these blocks.
    """
    lead = (1,) * (4 - len(support.shape)) + support.shape[:-2]
    wanted = f"([[{batch} or 1,] {heads} or 1,] {rows}, {cols})"
    fits = len(lead) == 2 and lead[0] in (1, batch) and lead[1] in (1, heads)
    if not fits or support.shape[-2:] != (rows, cols):
        raise ShapeError(f"The support of blocks should have shape {wanted}, has {support.shape}.")
    mask = support.mask().view(*lead, rows, cols)
    mask = (mask.tril() if causal else mask).expand(batch, heads, rows, cols).reshape(batch * heads * rows, cols)
    ptr = torch.zeros(len(mask) + 1, dtype=torch.int32)
    torch.cumsum(mask.sum(-1), 0, out=ptr[1:])
    return ptr, mask.nonzero()[:, 1].int().contiguous()


# Supports are no tensors: a compiled caller breaks its graph here.
_eager_lists: Any = torch.compiler.disable(block_lists)


def _attend(q, k, v, ptr, idx, block: int, causal: bool, scale: float) -> tuple[Tensor, Tensor]:
    check_heads(q, k, v, 4)
    batch, heads, queries, d = q.shape
    kv_heads, keys = k.shape[1:3]
    blocks, key_blocks = -(-queries // block), -(-keys // block)
    check_lists(ptr, idx, batch * heads * blocks, key_blocks)
    wide = torch.promote_types(q.dtype, torch.float32)
    module = native()
    if (
        module is None
        or not q.is_cpu
        or wide is not torch.float32
        or block % 32
        or block > 128
        or not q.numel()
        or not keys
    ):
        out, lse = attend_rows(q.to(wide), k.to(wide), v.to(wide), ptr, idx, block, causal, scale)
        return out.to(q.dtype), lse
    qs, ks, vs = prepared(q), prepared(k), prepared(v)
    width = qs.shape[-1]
    out, lse = torch.empty_like(qs), torch.empty(batch, heads, queries)
    order = _longest_first(ptr, batch * kv_heads)
    buffers = (qs, ks, vs, out, lse, ptr, idx, order)
    sizes = batch, heads, kv_heads, queries, keys, width, block
    module.prefill(*(t.data_ptr() for t in buffers), *sizes, causal, scale, torch.get_num_threads())
    return out[..., :d].to(q.dtype).contiguous(), lse


def _longest_first(ptr: Tensor, key_heads: int) -> Tensor:
    """Rows by falling number of kept blocks, key head by key head: so ordered, threads end together."""
    counts = ptr.diff().view(key_heads, -1)
    order = counts.argsort(dim=-1, descending=True)
    return (order + torch.arange(0, counts.numel(), counts.shape[1])[:, None]).int()


def _attend_backward(grad, grad_lse, q, k, v, out, lse, ptr, idx, block: int, causal: bool, scale: float):
    grad, grad_lse, out = grad.to(lse.dtype), grad_lse.to(lse.dtype), out.to(lse.dtype)
    qs, ks, vs = (t.to(lse.dtype) for t in (q, k, v))
    grads = attend_backward(grad, grad_lse, qs, ks, vs, out, lse, ptr, idx, block, causal, scale)
    return tuple(g.to(q.dtype) for g in grads)


def _fake(q, k, v, ptr, idx, block, causal, scale):
    wide = torch.promote_types(q.dtype, torch.float32)
    return q.new_empty(q.shape), q.new_empty(q.shape[:-1], dtype=wide)


def _fake_backward(grad, grad_lse, q, k, v, out, lse, ptr, idx, block, causal, scale):
    return q.new_empty(q.shape), k.new_empty(k.shape), v.new_empty(v.shape)


def _save(ctx, inputs, output):
    q, k, v, ptr, idx, *ctx.statics = inputs
    ctx.save_for_backward(q, k, v, *output, ptr, idx)


def _grad(ctx, grad, grad_lse):
    q, k, v, out, lse, ptr, idx = ctx.saved_tensors
    grads = torch.ops.sparseworks.attend_backward(grad, grad_lse, q, k, v, out, lse, ptr, idx, *ctx.statics)
    return *grads, None, None, None, None, None


_LIBRARY.impl("attend", _attend, "CompositeExplicitAutograd")
_LIBRARY.impl("attend_backward", _attend_backward, "CompositeExplicitAutograd")
torch.library.register_fake("sparseworks::attend", _fake, lib=_LIBRARY)
torch.library.register_fake("sparseworks::attend_backward", _fake_backward, lib=_LIBRARY)
torch.library.register_autograd("sparseworks::attend", _grad, setup_context=_save, lib=_LIBRARY)
