"""`sparseworks::attend`: attention over kept blocks, with fake and autograd rules."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from math import ceil
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from sparseworks.core.errors import ShapeError
from sparseworks.core.support import Support
from sparseworks.exec.attention.checks import check_heads, check_lists, scale_of
from sparseworks.exec.attention.reference import attend_backward, attend_rows
from sparseworks.exec.format import FLOATS
from sparseworks.exec.native import native
from sparseworks.exec.triton import on_gpu

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
    support: Support | None = None,
    *,
    block: int = 64,
    causal: bool = False,
    scale: float | None = None,
    return_lse: bool = False,
) -> Tensor | tuple[Float[Tensor, "batch heads queries d"], Float[Tensor, "batch heads queries"]]:
    """softmax(scale q k' over the kept blocks) v; with `return_lse` also log sum e^{scale q k'} (at least float32).

    Query heads share key heads in groups. Rows that attend to nothing give 0 and -inf. Differentiable in q, k, v through both
    outputs; the backward computes kept blocks only. On the CPU float32 runs in the extension, bfloat16 and half are widened;
    on a GPU blocks of 16 to 128 run in Triton, the backward and everything else in plain torch. (Dao 2023, arXiv 2307.08691)

    Args:
        support: kept blocks (default: all), over (query blocks, key blocks), with heads (or 1) and then batch (or 1) in front if they differ.
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
    scale, wide = scale_of(scale, q.shape[-1]), torch.promote_types(q.dtype, torch.float32)
    rows, cols = -(-q.shape[2] // block), -(-k.shape[2] // block)
    if torch.compiler.is_compiling() or not _runs(q, wide, k.shape[2]):
        kept = support if support is not None else Support.full((rows, cols))
        ptr, idx = _eager_lists(kept, q.shape[0], q.shape[1], rows, cols, causal)
        out, lse = torch.ops.sparseworks.attend(q, k, v, ptr, idx, block, causal, scale)
    else:
        kept = _kept(support, q, k, block, causal)
        out, lse = _Attend.apply(q.to(wide), k.to(wide), v.to(wide), kept, causal, scale)
        out = out.to(q.dtype)
    return (out, lse) if return_lse else out


def _runs(q: Tensor, wide: torch.dtype, keys: int) -> bool:
    """Whether the extension computes this."""
    return native() is not None and q.is_cpu and wide is torch.float32 and q.numel() > 0 and keys > 0


def _runs_on_gpu(q: Tensor, block: int) -> bool:
    """Whether the Triton kernel computes this."""
    return on_gpu(q) and q.dtype in FLOATS and block in (16, 32, 64, 128) and q.shape[-1] in (16, 32, 64, 128)


def _on_gpu(q, k, v, ptr, idx, block: int, causal: bool, scale: float) -> tuple[Tensor, Tensor]:
    from sparseworks.exec.triton.attention import block_attention

    at = ptr.to(q.device), idx.to(q.device)
    return block_attention(q.contiguous(), k.contiguous(), v.contiguous(), *at, block, causal, scale, shift=0)


@dataclass(frozen=True)
class _KeptBlocks:
    """Kept blocks as the extension takes them: lists over (batch, heads, query blocks), each leading size 1 where all share
    them; without lists all blocks are kept."""

    ptr: Tensor | None
    columns: Tensor | None
    batch: int
    heads: int
    tall: int
    wide: int

    def of(self, batch: int, rows: int) -> list[int]:
        """Arguments for one sequence (or for all, where they share the lists)."""
        if self.ptr is None or self.columns is None:
            return [0, 0, 1, self.tall, self.wide]
        first = batch * self.heads * rows * self.ptr.element_size()
        return [self.ptr.data_ptr() + first, self.columns.data_ptr(), self.heads, self.tall, self.wide]


def _kept(support: Support | None, q: Tensor, k: Tensor, block: int, causal: bool) -> _KeptBlocks:
    """Lists of kept blocks; blocks that are larger than registers and caches like are cut up."""
    queries, keys = q.shape[2], k.shape[2]
    if support is None and not causal:
        tall, wide = ceil(queries / max(1, round(queries / 64))), ceil(keys / max(1, round(keys / 80)))
        return _KeptBlocks(None, None, 1, 1, tall, min(ceil(wide / 16) * 16, keys))
    if support is None:
        block, support = 64, Support.full((-(-queries // 64), -(-keys // 64)))
    mask = _over_blocks(support, q.shape[0], q.shape[1], -(-queries // block), -(-keys // block))
    split = next((p for p in range(1, block + 1) if block % p == 0 and block // p <= 96), 1)
    if split > 1 and block // split >= 32:
        block //= split
        mask = mask.repeat_interleave(split, -2).repeat_interleave(split, -1)
        mask = mask[..., : -(-queries // block), : -(-keys // block)]
    ptr, columns = _lists(mask.tril() if causal else mask)
    return _KeptBlocks(ptr, columns, mask.shape[0], mask.shape[1], block, block)


class _Attend(torch.autograd.Function):
    """The eager way; the registered op would cost ten times as much per call."""

    @staticmethod
    def forward(ctx, q, k, v, kept, causal, scale):  # type: ignore[override]
        q, k, v = (t if t.stride(3) == 1 else t.contiguous() for t in (q, k, v))
        out, lse = _forward(q, k, v, kept, causal, scale)
        ctx.save_for_backward(q, k, v, out, lse)
        ctx.facts = kept, causal, scale
        ctx.set_materialize_grads(False)
        return out, lse

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad, grad_lse):  # type: ignore[override]
        grad = torch.zeros_like(ctx.saved_tensors[3]) if grad is None else grad
        return *_backward(grad, grad_lse, *ctx.saved_tensors, *ctx.facts), None, None, None


def _forward(q: Tensor, k: Tensor, v: Tensor, kept: _KeptBlocks, causal: bool, scale: float) -> tuple[Tensor, Tensor]:
    """Output and log-sum-exp by the extension."""
    out, lse = _room_like(q), torch.empty(q.shape[:3], dtype=torch.float32, device="cpu")
    for b, sizes in _sequences(q, k, kept):
        views = [_view(t[b]) for t in (q, k, v, out)]
        native().prefill(*views, lse[b].data_ptr(), *sizes, causal, scale, torch.get_num_threads())  # type: ignore[union-attr]
    return out, lse


def _backward(
    grad: Tensor,
    grad_lse: Tensor | None,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    lse: Tensor,
    kept: _KeptBlocks,
    causal: bool,
    scale: float,
    into: tuple[Tensor, Tensor, Tensor] | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of q, k and v by the extension, written where told."""
    grad = grad if grad.stride(3) == 1 else grad.contiguous()
    grad_lse = None if grad_lse is None else grad_lse.contiguous()
    dq, dk, dv = into or (_room_like(q), _room_like(k), _room_like(v))
    for b, sizes in _sequences(q, k, kept):
        views = [_view(t[b]) for t in (q, k, v, out, grad, dq, dk, dv)]
        logs = lse[b].data_ptr(), 0 if grad_lse is None else grad_lse[b].data_ptr()
        native().prefill_gradient(views, *logs, *sizes, causal, scale, torch.get_num_threads())  # type: ignore[union-attr]
    return dq, dk, dv


def _sequences(q: Tensor, k: Tensor, kept: _KeptBlocks) -> Iterator[tuple[slice, list[list[int]]]]:
    """The whole batch at once where it shares its lists, otherwise one sequence after the other."""
    batch, rows = q.shape[0], -(-q.shape[2] // kept.tall)
    each = [slice(0, batch)] if kept.batch == 1 else [slice(b, b + 1) for b in range(batch)]
    for b in each:
        sizes = [b.stop - b.start, q.shape[1], k.shape[1], q.shape[2], k.shape[2], k.shape[3]]
        yield b, [kept.of(b.start, rows), sizes]


def _room_like(t: Tensor) -> Tensor:
    """Laid out as `t` where that leaves the last dimension together; overlapping windows do not."""
    made = torch.empty_like(t)
    return made if made.stride(3) == 1 else torch.empty(t.shape, dtype=t.dtype, device=t.device)


def _view(t: Tensor) -> list[int]:
    return [t.data_ptr(), *t.stride()[:3]]


def block_lists(
    support: Support, batch: int, heads: int, rows: int, cols: int, causal: bool
) -> tuple[Int[Tensor, " lists+1"], Int[Tensor, " count"]]:
    """int32 `(ptr, idx)` over (batch, heads, query blocks); blocks above the diagonal left out where `causal`.

    Raises:
        ShapeError: the support is not over these blocks.
    """
    mask = _over_blocks(support, batch, heads, rows, cols)
    return _lists((mask.tril() if causal else mask).expand(batch, heads, rows, cols))


def _over_blocks(support: Support, batch: int, heads: int, rows: int, cols: int) -> Tensor:
    """The support as a mask over (batch or 1, heads or 1, query blocks, key blocks)."""
    lead = (1,) * (4 - len(support.shape)) + support.shape[:-2]
    wanted = f"([[{batch} or 1,] {heads} or 1,] {rows}, {cols})"
    fits = len(lead) == 2 and lead[0] in (1, batch) and lead[1] in (1, heads)
    if not fits or support.shape[-2:] != (rows, cols):
        raise ShapeError(f"The support of blocks should have shape {wanted}, has {support.shape}.")
    return support.mask().view(*lead, rows, cols)


def _lists(mask: Tensor) -> tuple[Tensor, Tensor]:
    """int32 row pointers and columns of a mask over (..., rows, columns)."""
    mask = mask.flatten(0, -2).cpu()
    rows, cols = mask.shape
    # numpy finds what is set several times faster than torch, which also would count it in 64 bits.
    at = np.flatnonzero(mask.numpy())
    ptr = np.searchsorted(at, np.arange(rows + 1, dtype=np.int64) * cols).astype(np.int32)
    return torch.from_numpy(ptr), torch.from_numpy((at % max(cols, 1)).astype(np.int32))


# Supports are no tensors: a compiled caller breaks its graph here.
_eager_lists: Any = torch.compiler.disable(block_lists)


def _attend(q, k, v, ptr, idx, block: int, causal: bool, scale: float) -> tuple[Tensor, Tensor]:
    check_heads(q, k, v, 4)
    blocks, wide = -(-q.shape[2] // block), torch.promote_types(q.dtype, torch.float32)
    check_lists(ptr, idx, q.shape[0] * q.shape[1] * blocks, -(-k.shape[2] // block))
    if _runs_on_gpu(q, block):
        return _on_gpu(q, k, v, ptr, idx, block, causal, scale)
    q_, k_, v_ = (t.to(wide).contiguous() for t in (q, k, v))
    if _runs(q, wide, k.shape[2]):
        out, lse = _forward(q_, k_, v_, _KeptBlocks(ptr, idx, q.shape[0], q.shape[1], block, block), causal, scale)
    else:
        out, lse = attend_rows(q_, k_, v_, ptr, idx, block, causal, scale)
    return out.to(q.dtype), lse


def _attend_backward(grad, grad_lse, q, k, v, out, lse, ptr, idx, block: int, causal: bool, scale: float):
    grad, grad_lse, out, q_, k_, v_ = (t.to(lse.dtype).contiguous() for t in (grad, grad_lse, out, q, k, v))
    if _runs(q, lse.dtype, k.shape[2]):
        kept = _KeptBlocks(ptr, idx, q.shape[0], q.shape[1], block, block)
        grads = _backward(grad, grad_lse, q_, k_, v_, out, lse, kept, causal, scale)
    else:
        grads = attend_backward(grad, grad_lse, q_, k_, v_, out, lse, ptr, idx, block, causal, scale)
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
