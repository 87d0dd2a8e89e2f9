"""The kB largest affinities of a whole batch: tokens that need more latents get more."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from sparseworks.codes.autoencoders.latent import LATENTS, Coded, LatentRule, Moment, chosen, chosen_at, preactivations
from sparseworks.codes.autoencoders.module import SparseAutoencoder
from sparseworks.codes.autoencoders.rules.thresholds import Thresholds, by_threshold
from sparseworks.codes.autoencoders.rules.topk import annealed, check_k
from sparseworks.core.ahead import is_ahead
from sparseworks.core.codes import Codes
from sparseworks.exec.codes import places_across


@LATENTS.register("batch_topk")
@dataclass(frozen=True)
class BatchTopK(LatentRule):
    """z = ReLU(pi) on the k B largest entries of the B x F matrix (mutual choice); at inference those above one threshold.

    Outside training the running mean of the least value kept is the threshold.

    Source: Bussmann et al., 2024, arXiv 2412.06410 (initial encoder and betas of Adam as in the authors' code); as mutual choice Ayonrinde, 2024, arXiv 2411.02124.
    """

    k: int = 32
    start: int | None = None
    until: float = 0.5
    across: ClassVar[bool] = True
    betas: ClassVar[tuple[float, float]] = (0.9, 0.99)

    def __post_init__(self) -> None:
        check_k(self.k, self.start)

    @property
    def steady(self) -> bool:
        """With one k throughout."""
        return self.start is None

    def prepare(self, sae: SparseAutoencoder, x: Float[Tensor, "rows d_in"]) -> None:
        """Encoder rows of norm sqrt(2 d / latents)."""
        sae.encoder_weight.data *= math.sqrt(2 * x.shape[1] / sae.width)

    def __call__(self, sae: SparseAutoencoder, x: Float[Tensor, "rows d_in"], moment: Moment) -> Coded:
        """On the CPU exactly k B entries while training, counting those that are 0, and the B x F matrix is never all in memory.

        Ahead of a device the matrix is written out, and all that tie with the least entry kept are kept.
        """
        if not sae.training:
            return Coded(by_threshold(sae, x))
        k = min(annealed(self.k, self.start, self.until, moment.progress), sae.width)
        if is_ahead():
            scores = preactivations(sae, x).relu_()
            mask, threshold = _best_of_all(scores, k * len(x))
            return Coded(chosen(x, sae.encoder, sae.b_enc, mask), threshold=threshold)
        indices, lengths, threshold = places_across(x, sae.encoder, sae.b_enc, k * len(x))
        codes = chosen_at(x, sae.encoder, sae.b_enc, indices, lengths)
        return Coded(rectified(codes), threshold=threshold)

    def exported(self, sae: SparseAutoencoder, threshold: Tensor | None) -> LatentRule:
        """One threshold."""
        if threshold is not None:
            sae.threshold.copy_(threshold)
        return Thresholds()


def _best_of_all(
    scores: Float[Tensor, "rows width"], count: int
) -> tuple[Bool[Tensor, "rows width"], Float[Tensor, ""]]:
    """The `count` largest of a batch that are above 0 (all that tie with the least of them), and that least."""
    cut = scores.flatten().topk(count, sorted=False).values.min()
    mask = (scores >= cut) & (scores > 0)
    least = scores.masked_fill(~mask, torch.inf).min()
    return mask, torch.where(least.isinf(), torch.nan, least)


def rectified(codes: Codes) -> Codes:
    """The codes with ReLU of their values."""
    return codes.with_values(codes.values.relu())
