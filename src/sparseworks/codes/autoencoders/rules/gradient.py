"""Gradient-aware TopK: what a latent does to the model's loss counts beside how large it is."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from sparseworks.codes.autoencoders.latent import (
    LATENTS,
    Coded,
    LatentRule,
    Moment,
    best_of_rows,
    chosen,
    preactivations,
)
from sparseworks.codes.autoencoders.module import SparseAutoencoder
from sparseworks.codes.autoencoders.rules.batch_topk import rectified
from sparseworks.codes.autoencoders.rules.topk import TopK, check_k


@LATENTS.register("gradient_topk")
@dataclass(frozen=True)
class GradientTopK(LatentRule):
    """z = ReLU(pi) on the k largest of z (1 + beta |d_i^T g|) of each token, g the gradient of the model's loss at the input.

    Gradients are scaled to a mean norm of 1, batch by batch, so that beta means the same everywhere (ours). Without gradients, at
    inference, it is TopK.

    Source: Olmo et al., 2024, arXiv 2411.10397.
    """

    k: int = 32
    beta: float = 1.0

    def __post_init__(self) -> None:
        check_k(self.k)

    @property
    def steady(self) -> bool:
        """Always."""
        return True

    def prepare(self, sae: SparseAutoencoder, x: Float[Tensor, "rows d_in"]) -> None:
        """As TopK."""
        TopK(self.k).prepare(sae, x)

    def __call__(self, sae: SparseAutoencoder, x: Float[Tensor, "rows d_in"], moment: Moment) -> Coded:
        """Chosen by effect and size, with the size as value."""
        if moment.gradients is None:
            return TopK(self.k)(sae, x, moment)
        scores = preactivations(sae, x).relu_()
        with torch.no_grad():
            g = moment.gradients.to(x.dtype)
            g = g / g.norm(dim=1).mean().clamp(min=1e-30)
            scores *= 1 + self.beta * (g @ sae.W_dec.T).abs()
        mask = best_of_rows(scores, min(self.k, sae.width))
        return Coded(rectified(chosen(x, sae.encoder, sae.b_enc, mask)))

    def exported(self, sae: SparseAutoencoder, threshold: Tensor | None) -> LatentRule:
        """TopK."""
        del sae, threshold
        return TopK(self.k)
