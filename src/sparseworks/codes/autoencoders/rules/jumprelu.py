"""JumpReLU: a learned threshold a latent, trained for L0 by pseudo-gradients."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from sparseworks.codes.autoencoders.latent import (
    LATENTS,
    OFFSETS,
    Coded,
    LatentRule,
    Moment,
    Penalised,
    chosen,
    least_kept,
    preactivations,
)
from sparseworks.codes.autoencoders.module import SparseAutoencoder
from sparseworks.codes.autoencoders.rules.thresholds import Thresholds
from sparseworks.core.errors import RecipeError


@LATENTS.register("jumprelu")
@dataclass(frozen=True)
class JumpReLU(Penalised):
    """z = pi 1{pi > theta}, theta = exp(log_threshold + level); penalty mean_rows ||z||_0.

    dz/dtheta = -(theta / eps) K((pi - theta) / eps) and d1{pi > theta}/dtheta = -(1 / eps) K(..), K the unit rectangle; pi gets a share of both, the
    other way round, beside its own gradient 1{pi > theta}.

    Attributes:
        weight: of the penalty, where no L0 is asked for.
        l0: mean latents a token. Thresholds then begin where the first pre-activations have it, and the weight at theta^2; the common level of the
            thresholds follows the L0 of the batches, and the weight what an entry at its threshold is worth, the mean of 2 theta <r, d>: that is
            the multiplier of this L0, so that pseudo-gradients move thresholds apart and not all together (ours).
        threshold: theta at the beginning; None: as `l0` says, or 0.001.
        warmup: share of training in which a weight that is asked for rises from 0 in a straight line.
        bandwidth: eps. It and the threshold are for inputs of mean square norm 1, so that they mean the same whatever their size; the default is for
            long training: with some thousand steps too few entries lie so near to their thresholds, 0.05 teaches them.
        to_input: the share of pseudo-gradients that pi gets, so that encoder rows learn too from what nearly is on; 0 as published, 1 as Conerly
            et al. have it.

    Source: Rajamanoharan et al., 2024, arXiv 2407.14435: threshold and eps as there; the weight rises in 10,000 of 2 million steps. Their Adam has
    no momentum (`betas=(0.0, 0.999)`), which cost 0.05 to 0.8 points of variance in 2000 steps. Gradients of pi: Conerly et al., 2025, Dictionary learning
    optimization techniques (Transformer Circuits, January 2025).
    """

    weight: float = 3e-2
    threshold: float | None = None
    bandwidth: float = 1e-3
    warmup: float = 0.005
    to_input: float = 0.0

    def __post_init__(self) -> None:
        if not (self.bandwidth > 0 and 0 <= self.to_input <= 1):
            raise RecipeError(
                f"JumpReLU has a bandwidth above 0 and gives inputs a share of 0 to 1, got {self.bandwidth} and {self.to_input}."
            )

    def parameters(self, width: int, d_in: int) -> dict[str, Tensor]:
        """log_threshold."""
        first = 1e-3 if self.threshold is None else self.threshold
        return {"log_threshold": torch.full((width,), math.log(first * math.sqrt(d_in)))}

    def prepare(self, sae: SparseAutoencoder, x: Float[Tensor, "rows d_in"]) -> None:
        """Thresholds where the L0 that is asked for is, and the weight at their square."""
        if self.l0 is not None:
            first = least_kept(preactivations(sae, x), self.l0).clamp(min=1e-3)
            sae.pressure.fill_(float(first.square()))
            if self.threshold is None:
                sae.log_threshold.data.fill_(float(first.log()))

    @property
    def steady(self) -> bool:
        """Where no weight rises."""
        return self.l0 is not None or not self.warmup

    def __call__(self, sae: SparseAutoencoder, x: Float[Tensor, "rows d_in"], moment: Moment) -> Coded:
        """While training the codes hold, at 0, also what lies within eps / 2 below its threshold, where pseudo-gradients act."""
        theta = self.thresholds(sae)
        scores = preactivations(sae, x)
        bars = [theta.detach() * math.exp(o) for o in OFFSETS]
        on = scores > bars[1]
        if not sae.training:
            return Coded(chosen(x, sae.encoder, sae.b_enc, on))
        bandwidth = self.bandwidth * math.sqrt(x.shape[1])
        near = scores >= theta.detach() - bandwidth / 2
        pre = chosen(x, sae.encoder, sae.b_enc, near)
        on, kept, at = pre.among(on), pre.among(near), pre.of_latents(theta)
        values, count = _Jump.apply(pre.values, at, on, kept, bandwidth, self.to_input)
        above = torch.stack([torch.count_nonzero(scores > bar) for bar in bars])
        codes = pre.with_values(values)
        penalty = self._risen(moment.progress) * count.sum() / max(len(x), 1)
        edge = None if self.l0 is None else (((pre.values - at).abs() <= bandwidth / 2) & kept, at.detach())
        return Coded(codes, penalty, above=above, on=on, edge=edge)

    def _risen(self, progress: float) -> float:
        """Share of the weight that counts at a time of training."""
        return 1.0 if self.steady else min(1.0, progress / self.warmup)

    def thresholds(self, sae: SparseAutoencoder) -> Float[Tensor, " width"]:
        """theta."""
        return (sae.log_threshold + sae.level.to(sae.log_threshold.dtype)).exp()

    def fold(self, sae: SparseAutoencoder, scale: float) -> None:
        """theta / scale, the level inside."""
        sae.log_threshold.data += float(sae.level) - math.log(scale)
        sae.level.zero_()

    def exported(self, sae: SparseAutoencoder, threshold: Tensor | None) -> LatentRule:
        """The number after theta, since those equal to it are off."""
        del threshold
        theta = self.thresholds(sae).detach()
        sae.threshold.copy_(torch.nextafter(theta, torch.full_like(theta, torch.inf)))
        return Thresholds()


class _Jump(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, pre: Tensor, theta: Tensor, on: Tensor, kept: Tensor, width: float, to_input: float
    ) -> tuple[Tensor, Tensor]:
        ctx.save_for_backward(pre, theta, on, kept)
        ctx.width, ctx.to_input = width, to_input
        return torch.where(on, pre, pre.new_zeros(())), on.to(pre.dtype)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor, counted: Tensor) -> tuple[Tensor | None, ...]:
        pre, theta, on, kept = ctx.saved_tensors
        near = (((pre - theta) / ctx.width).abs() <= 0.5) & kept
        pseudo = -(theta * grad + counted) / ctx.width * near
        return grad * on - ctx.to_input * pseudo, pseudo, None, None, None, None
