"""JumpReLU: a learned threshold a latent, trained for L0 by pseudo-gradients."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from sparseworks.codes.autoencoders.latent import LATENTS, Coded, LatentRule, Moment, chosen, preactivations
from sparseworks.codes.autoencoders.module import SparseAutoencoder
from sparseworks.codes.autoencoders.rules.thresholds import Thresholds
from sparseworks.core.codes import Codes


@LATENTS.register("jumprelu")
@dataclass(frozen=True)
class JumpReLU(LatentRule):
    """z = pi 1{pi > theta}, theta = exp(log_threshold); penalty mean_rows ||z||_0.

    dz/dtheta = -(theta / eps) K((pi - theta) / eps) and d1{pi > theta}/dtheta = -(1 / eps) K(..), K the unit rectangle.

    Attributes:
        weight: of the penalty.
        l0: mean latents a token that the weight is steered to; None: the weight stays.
        threshold: theta at the beginning.
        bandwidth: eps, on activations of unit mean square.

    Source: Rajamanoharan et al., 2024, arXiv 2407.14435, threshold and eps 0.001 as there.
    """

    weight: float = 3e-2
    l0: float | None = None
    threshold: float = 1e-3
    bandwidth: float = 1e-3

    def parameters(self, width: int) -> dict[str, Tensor]:
        """log_threshold."""
        return {"log_threshold": torch.full((width,), math.log(self.threshold))}

    def __call__(self, sae: SparseAutoencoder, x: Float[Tensor, "rows d_in"], moment: Moment) -> Coded:
        """While training the codes hold, at 0, also what lies within eps / 2 below its threshold, where pseudo-gradients act."""
        del moment
        theta = sae.log_threshold.exp()
        scores = preactivations(sae, x)
        on = scores > theta.detach()
        if not sae.training:
            return Coded(chosen(x, sae.encoder, sae.b_enc, on))
        near = on | ((scores - theta.detach()).abs() <= self.bandwidth / 2)
        pre = chosen(x, sae.encoder, sae.b_enc, near)
        at, kept = pre.indices.long(), pre.kept()
        on = on.gather(1, at) & kept
        values, count = _Jump.apply(pre.values, theta[at], on, kept, self.bandwidth)
        return Coded(Codes(values, pre.indices, pre.width, pre.lengths), count.sum() / max(len(x), 1), on=on)

    def pressure(self) -> float:
        """The weight."""
        return self.weight

    def target_l0(self) -> float | None:
        """The L0 to steer to."""
        return self.l0

    def fold(self, sae: SparseAutoencoder, scale: float) -> None:
        """theta / scale."""
        sae.log_threshold.data -= math.log(scale)

    def exported(self, sae: SparseAutoencoder, threshold: Tensor | None) -> LatentRule:
        """The number after theta, since those equal to it are off."""
        del threshold
        theta = sae.log_threshold.detach().exp()
        sae.threshold.copy_(torch.nextafter(theta, torch.full_like(theta, torch.inf)))
        return Thresholds()


class _Jump(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, pre: Tensor, theta: Tensor, on: Tensor, kept: Tensor, width: float) -> tuple[Tensor, Tensor]:
        ctx.save_for_backward(pre, theta, on, kept)
        ctx.width = width
        return torch.where(on, pre, pre.new_zeros(())), on.to(pre.dtype)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor, counted: Tensor) -> tuple[Tensor | None, ...]:
        pre, theta, on, kept = ctx.saved_tensors
        near = (((pre - theta) / ctx.width).abs() <= 0.5) & kept
        pseudo = -(theta * grad + counted) / ctx.width * near
        return grad * on, pseudo, None, None, None
