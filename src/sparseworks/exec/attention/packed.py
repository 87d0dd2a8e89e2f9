"""Attention over all keys of q, k and v that lie side by side, as one projection makes them: nothing is moved before or after."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from sparseworks.exec.attention.blocks import _backward, _forward, _kept


def attend_packed(
    qkv: Float[Tensor, "batch tokens 3 heads d"], *, causal: bool = False
) -> tuple[Float[Tensor, "batch tokens heads d"], Float[Tensor, "batch heads tokens"]]:
    """softmax(q k' / sqrt(d)) v and log sum e^(q k' / sqrt(d)), by the extension: contiguous float32 on the CPU, not empty."""
    q, k, v = _heads(qkv)
    out, lse = _forward(q, k, v, _kept(None, q, k, 0, causal), causal, qkv.shape[-1] ** -0.5)
    return out.transpose(1, 2), lse


def attend_packed_backward(
    grad: Float[Tensor, "batch tokens heads d"],
    qkv: Float[Tensor, "batch tokens 3 heads d"],
    out: Float[Tensor, "batch tokens heads d"],
    lse: Float[Tensor, "batch heads tokens"],
    *,
    causal: bool = False,
) -> Float[Tensor, "batch tokens 3 heads d"]:
    """The gradient of qkv; `out` and `lse` as returned by `attend_packed`."""
    found = torch.empty_like(qkv)
    q, k, v = _heads(qkv)
    kept, scale = _kept(None, q, k, 0, causal), qkv.shape[-1] ** -0.5
    _backward(grad.transpose(1, 2), None, q, k, v, out.transpose(1, 2), lse, kept, causal, scale, into=_heads(found))
    return found


def _heads(qkv: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """q, k and v as (batch, heads, tokens, d)."""
    q, k, v = qkv.permute(2, 0, 3, 1, 4)
    return q, k, v
