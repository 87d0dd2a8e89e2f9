"""alpha-entmax: a softmax with exact zeros, by bisection, for any alpha from 1 (softmax) over 2 (sparsemax) to larger ones."""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from sparseworks.core.errors import BudgetError


def entmax(x: Float[Tensor, "*rows n"], alpha: float = 1.5) -> Float[Tensor, "*rows n"]:
    """p = max(0, (alpha - 1) x - tau)^(1 / (alpha - 1)) with tau such that a row sums to 1 (Peters et al. 2019, arXiv 1905.05702).

    Differentiable: with s = p^(2 - alpha) on the support, dx = s (g - <s, g> / sum s).

    Raises:
        BudgetError: alpha below 1.
    """
    if alpha < 1:
        raise BudgetError(f"entmax takes alpha >= 1, got {alpha}.")
    return x.softmax(-1) if alpha < 1 + 1e-4 else _Entmax.apply(x, float(alpha))  # type: ignore[return-value]


def sparse_sigmoid(z: Float[Tensor, "*shape"], alpha: float) -> Float[Tensor, "*shape"]:
    """The first entry of entmax([z, 0]): the sigmoid at alpha = 1, a ramp with exact 0 and 1 beyond, a step as alpha grows."""
    return z.sigmoid() if alpha < 1 + 1e-4 else entmax(torch.stack([z, torch.zeros_like(z)], -1), alpha)[..., 0]


class _Entmax(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, alpha: float) -> Tensor:
        power = 1 / (alpha - 1)
        scaled = (alpha - 1) * (x - x.amax(-1, keepdim=True)).to(torch.promote_types(x.dtype, torch.float32))
        low = torch.full_like(scaled[..., :1], -1.0)  # the largest entry alone gives 1
        width = 1.0 - scaled.shape[-1] ** (1 - alpha)
        for _ in range(60 if scaled.dtype == torch.float64 else 28):
            width = width / 2
            middle = low + width
            low = torch.where((scaled - middle).clamp(min=0).pow(power).sum(-1, keepdim=True) >= 1, middle, low)
        p = (scaled - low).clamp(min=0).pow(power)
        p = (p / p.sum(-1, keepdim=True)).to(x.dtype)
        ctx.save_for_backward(p)
        ctx.alpha = alpha
        return p

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        (p,), g = ctx.saved_tensors, grads[0]
        s = torch.where(p > 0, p.clamp(min=1e-30).pow(2 - ctx.alpha), 0.0)
        return s * (g - (s * g).sum(-1, keepdim=True) / s.sum(-1, keepdim=True)), None
