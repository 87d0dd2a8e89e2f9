"""ReLU with an l1 penalty, the first rule of sparse autoencoders."""

from __future__ import annotations

from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from sparseworks.codes.autoencoders.latent import LATENTS, Coded, Moment, Penalised, chosen, preactivations
from sparseworks.codes.autoencoders.module import SparseAutoencoder


@LATENTS.register("relu")
@dataclass(frozen=True)
class ReLU(Penalised):
    """z = ReLU(pi); penalty mean_rows sum_i z_i ||d_i||.

    Attributes:
        weight: of the penalty.
        l0: mean latents a token that the weight is steered to; None: the weight stays.

    Source: Bricken et al., 2023, Towards Monosemanticity; Cunningham et al., 2023, arXiv 2309.08600.
    """

    @property
    def steady(self) -> bool:
        """Always."""
        return True

    def __call__(self, sae: SparseAutoencoder, x: Float[Tensor, "rows d_in"], moment: Moment) -> Coded:
        """All that are positive."""
        del moment
        codes = chosen(x, sae.encoder, sae.b_enc, preactivations(sae, x) > 0)
        norms = codes.of_latents(sae.W_dec.norm(dim=1))
        return Coded(codes, penalty=(codes.values * norms).sum() / max(len(codes), 1))
