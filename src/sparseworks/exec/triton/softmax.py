"""One step of a softmax over keys that arrive in parts, shared by prefill and decode (Milakov & Gimelshein 2018, arXiv 1805.02867)."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from jaxtyping import Float
from torch import Tensor

from sparseworks.exec.triton.product import multiply

LOG2E = 1.4426950408889634


@triton.jit
def absorb(
    s: tl.tensor, v: tl.tensor, scale: tl.tensor, top: tl.tensor, total: tl.tensor, acc: tl.tensor
) -> tuple[tl.tensor, tl.tensor, tl.tensor]:
    """Products `s` (queries, keys), -inf where a key is not seen, and values `v` (keys, d) enter the running maximum (of
    `scale * s`, in powers of two; scale > 0), sum and weighted values. A query that has seen no key keeps the maximum -inf and the sum 0."""
    new = tl.maximum(top, tl.max(s, axis=1) * scale)
    safe = tl.where(new == -float("inf"), 0.0, new)
    p = tl.exp2(s * scale - safe[:, None])
    fade = tl.exp2(top - safe)
    total = total * fade + tl.sum(p, axis=1)
    acc = multiply(p.to(v.dtype), v, acc * fade[:, None])
    return new, total, acc


@triton.jit
def finish(top: tl.tensor, total: tl.tensor, acc: tl.tensor) -> tuple[tl.tensor, tl.tensor]:
    """Weighted mean of the values and natural log of the sum of exponentials: zeros and -inf for a query without keys."""
    seen = total > 0.0
    mean = acc / tl.where(seen, total, 1.0)[:, None]
    lse = tl.where(seen, (top + tl.log2(tl.where(seen, total, 1.0))) * 0.6931471805599453, -float("inf"))
    return mean, lse


def positive(q: Float[Tensor, "*n d"], scale: float | None) -> tuple[Float[Tensor, "*n d"], float]:
    """Queries and a scale in powers of two that is above 0, as `absorb` takes them; default 1 / sqrt(d)."""
    factor = q.shape[-1] ** -0.5 if scale is None else float(scale)
    if factor == 0:
        return torch.zeros_like(q), 1.0
    return (-q if factor < 0 else q), LOG2E * abs(factor)
