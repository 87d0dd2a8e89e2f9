"""Gated: which latents are on and how strong they are is told apart, so that the penalty shrinks none."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

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
from sparseworks.exec.codes import decode


@LATENTS.register("gated")
@dataclass(frozen=True)
class Gated(Penalised):
    """z = 1{g > 0} ReLU(exp(r) W x + b_enc), g = W x + b_gate - level; penalty sum_i ReLU(g_i) ||d_i||, further loss ||x - Dec(ReLU(g))||^2 with
    the decoder held fixed.

    Attributes:
        weight: of the penalty, where no L0 is asked for.
        l0: mean latents a token. Gates then begin to open at a t where the first codes have it and the weight at 2 t, the threshold that
            an l1 penalty amounts to; the common level of the gates follows the L0 of the batches, and the weight what keeps it (ours).

    Source: Rajamanoharan et al., 2024, arXiv 2404.16014.
    """

    betas: ClassVar[tuple[float, float]] = (0.0, 0.999)

    def parameters(self, width: int, d_in: int) -> dict[str, Tensor]:
        """r and b_gate; b_enc is the bias of the magnitudes."""
        del d_in
        return {"r_mag": torch.zeros(width), "b_gate": torch.zeros(width)}

    def prepare(self, sae: SparseAutoencoder, x: Float[Tensor, "rows d_in"]) -> None:
        """The level at the quantile of the pre-activations that has the L0."""
        if self.l0 is not None:
            sae.level.copy_(least_kept(preactivations(sae, x), self.l0))
            sae.pressure.copy_(2 * sae.level.clamp(min=1e-3))

    @property
    def steady(self) -> bool:
        """Always."""
        return True

    def __call__(self, sae: SparseAutoencoder, x: Float[Tensor, "rows d_in"], moment: Moment) -> Coded:
        """Those whose gate is open."""
        del moment
        bias = sae.b_gate - sae.level.to(sae.b_gate.dtype)
        with torch.no_grad():
            gate = torch.nn.functional.linear(x, sae.encoder, bias)
            is_open = gate > 0
        plain = chosen(x, sae.encoder, None, is_open)
        kept = plain.among(is_open)
        gain, shift = plain.of_latents(sae.r_mag.exp()), plain.of_latents(sae.b_enc)
        strength = (gain * plain.values + shift).relu() * kept
        codes = plain.with_values(strength)
        if not sae.training:
            return Coded(codes)
        gates = (plain.values + plain.of_latents(bias)).relu() * kept
        penalty = (gates * plain.of_latents(sae.W_dec.norm(dim=1))).sum() / max(len(x), 1)
        rough = decode(plain.with_values(gates), sae.W_dec.detach(), sae.b_dec.detach())
        extra = (sae.wanted - rough).square().mean() if sae.wanted is not None else None
        return Coded(codes, penalty, extra, above=torch.stack([torch.count_nonzero(gate > o) for o in OFFSETS]))

    def fold(self, sae: SparseAutoencoder, scale: float) -> None:
        """(b_gate - level) / scale."""
        sae.b_gate.data -= sae.level.to(sae.b_gate.dtype)
        sae.b_gate.data /= scale
        sae.level.zero_()

    def exported(self, sae: SparseAutoencoder, threshold: Tensor | None) -> LatentRule:
        """g > 0 is pi > b_enc - exp(r) b_gate for pi = exp(r) W x + b_enc: the gain goes into the encoder."""
        del threshold
        gain = sae.r_mag.detach().exp()
        cut = sae.b_enc.detach() - gain * (sae.b_gate.detach() - sae.level.to(gain.dtype))
        sae.encoder.data *= gain.unsqueeze(1)
        sae.threshold.copy_(torch.nextafter(cut, torch.full_like(cut, torch.inf)).clamp(min=0))
        return Thresholds()
