"""The kB largest affinities of a whole batch: tokens that need more latents get more."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from jaxtyping import Float
from torch import Tensor

from sparseworks.codes.autoencoders.latent import LATENTS, Coded, LatentRule, Moment, chosen_at
from sparseworks.codes.autoencoders.module import SparseAutoencoder
from sparseworks.codes.autoencoders.rules.thresholds import Thresholds, by_threshold
from sparseworks.codes.autoencoders.rules.topk import annealed, check_k
from sparseworks.core.codes import Codes
from sparseworks.exec.codes import places_across


@LATENTS.register("batch_topk")
@dataclass(frozen=True)
class BatchTopK(LatentRule):
    """z = ReLU(pi) on the k B largest entries of the B x F matrix (mutual choice); at inference those above one threshold.

    Outside training the running mean of the least value kept is the threshold.

    Source: Bussmann et al., 2024, arXiv 2412.06410; as mutual choice Ayonrinde, 2024, arXiv 2411.02124.
    """

    k: int = 32
    start: int | None = None
    until: float = 0.5
    across: ClassVar[bool] = True

    def __post_init__(self) -> None:
        check_k(self.k, self.start)

    def __call__(self, sae: SparseAutoencoder, x: Float[Tensor, "rows d_in"], moment: Moment) -> Coded:
        """Exactly k B entries while training, counting those that are 0; the B x F matrix is never all in memory."""
        if not sae.training:
            return Coded(by_threshold(sae, x))
        k = min(annealed(self.k, self.start, self.until, moment.progress), sae.width)
        indices, lengths, threshold = places_across(x, sae.encoder, sae.b_enc, k * len(x))
        codes = chosen_at(x, sae.encoder, sae.b_enc, indices, lengths)
        return Coded(rectified(codes), threshold=threshold)

    def exported(self, sae: SparseAutoencoder, threshold: Tensor | None) -> LatentRule:
        """One threshold."""
        if threshold is not None:
            sae.threshold.copy_(threshold)
        return Thresholds()


def rectified(codes: Codes) -> Codes:
    """The codes with ReLU of their values."""
    return Codes(codes.values.relu(), codes.indices, codes.width, codes.lengths)
