"""One fixed threshold a latent: the form that rules take for inference, in which tokens no longer depend on one another."""

from __future__ import annotations

from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from sparseworks.codes.autoencoders.latent import LATENTS, Coded, LatentRule, Moment, chosen, preactivations
from sparseworks.codes.autoencoders.module import SparseAutoencoder
from sparseworks.core.codes import Codes


@LATENTS.register("thresholds")
@dataclass(frozen=True)
class Thresholds(LatentRule):
    """z = pi 1{pi > 0, pi >= t} with the fixed t of the autoencoder's buffer `threshold`; what `export` gives.

    Source: Rajamanoharan et al., 2024, arXiv 2407.14435 (the inference form of JumpReLU).
    """

    def __call__(self, sae: SparseAutoencoder, x: Float[Tensor, "rows d_in"], moment: Moment) -> Coded:
        """Entries at or above their thresholds."""
        del moment
        return Coded(by_threshold(sae, x))


def by_threshold(sae: SparseAutoencoder, x: Float[Tensor, "rows d_in"]) -> Codes:
    """Entries that are positive and reach the thresholds, latents ascending."""
    scores = preactivations(sae, x)
    return chosen(x, sae.encoder, sae.b_enc, (scores >= sae.threshold) & (scores > 0))
