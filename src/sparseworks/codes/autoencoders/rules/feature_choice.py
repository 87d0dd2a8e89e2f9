"""Each feature keeps its m_i tokens of a batch: no feature is ever left without."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float, Int
from torch import Tensor

from sparseworks.codes.autoencoders.latent import LATENTS, Coded, LatentRule, Moment, chosen, preactivations
from sparseworks.codes.autoencoders.module import SparseAutoencoder
from sparseworks.codes.autoencoders.rules.batch_topk import BatchTopK, rectified
from sparseworks.codes.autoencoders.rules.thresholds import Thresholds, by_threshold
from sparseworks.codes.autoencoders.rules.topk import check_k
from sparseworks.core.errors import BudgetError
from sparseworks.core.patterns import unstructured
from sparseworks.core.select import select_mask


@LATENTS.register("feature_choice")
@dataclass(frozen=True)
class FeatureChoice(LatentRule):
    """z = ReLU(pi) on the m_i largest entries of column i, with sum m_i = k B.

    Attributes:
        k: mean latents a token.
        quotas: "uniform" (m_i the same up to rounding) or "zipf", m_i proportional to (rank_i + offset)^-exponent by running density.
        exponent, offset: of the Zipf law.
        mutual: share of training at the beginning in which the batch's k B largest are kept, until densities are known.

    Source: Ayonrinde, 2024, arXiv 2411.02124. The paper fits exponent and offset to observed densities and does not say for how long
    it begins with mutual choice: the defaults here are ours.
    """

    k: int = 32
    quotas: str = "zipf"
    exponent: float = 1.0
    offset: float = 7.0
    mutual: float = 0.1
    across: ClassVar[bool] = True

    def __post_init__(self) -> None:
        check_k(self.k)
        if self.quotas not in ("uniform", "zipf"):
            raise BudgetError(f"Quotas are uniform or zipf, got {self.quotas!r}.")

    @property
    def steady(self) -> bool:
        """Never: mutual choice comes first, and quotas follow the densities."""
        return False

    def __call__(self, sae: SparseAutoencoder, x: Float[Tensor, "rows d_in"], moment: Moment) -> Coded:
        """Exactly m_i entries a column while training, counting those that are 0."""
        if not sae.training:
            return Coded(by_threshold(sae, x))
        if moment.progress < self.mutual:
            return BatchTopK(self.k)(sae, x, moment)
        scores = preactivations(sae, x).relu_()
        mask = select_mask(scores, unstructured("column"), self.counts(sae, len(x)))
        least = scores.masked_fill(~(mask & (scores > 0)), torch.inf).amin(dim=0)
        threshold = torch.where(least.isinf(), torch.nan, least)
        return Coded(rectified(chosen(x, sae.encoder, sae.b_enc, mask)), threshold=threshold)

    def counts(self, sae: SparseAutoencoder, rows: int) -> Int[Tensor, " width"]:
        """m_i <= rows that sum to k rows; at least one each where the budget allows."""
        weight = torch.ones(sae.width, dtype=torch.float64, device=sae.W_dec.device)
        if self.quotas == "zipf":
            weight = zipf(sae.density, self.exponent, self.offset)
        return shares(weight, min(self.k, sae.width) * rows, rows)

    def exported(self, sae: SparseAutoencoder, threshold: Tensor | None) -> LatentRule:
        """One threshold a latent."""
        if threshold is not None:
            sae.threshold.copy_(threshold)
        return Thresholds()


def zipf(density: Float[Tensor, " width"], exponent: float, offset: float) -> Float[Tensor, " width"]:
    """(rank + offset)^-exponent, the densest latent having rank 0; sums to 1."""
    order = density.argsort(descending=True, stable=True)
    law = (torch.arange(len(density), device=density.device, dtype=torch.float64) + max(offset, 1e-9)) ** -exponent
    return torch.empty_like(law).scatter(0, order, law / law.sum())


def shares(weight: Float[Tensor, " n"], total: int, most: int) -> Int[Tensor, " n"]:
    """Integers in 0..most in proportion to `weight` that sum to `total`, at least one each where total >= n (largest remainders)."""
    least = 1 if total >= len(weight) else 0
    counts = torch.full((len(weight),), least, dtype=torch.long, device=weight.device)
    left = total - int(counts.sum())
    while left:
        room = most - counts
        wish = torch.where(room > 0, weight, torch.zeros_like(weight))
        wish = wish * (left / wish.sum())
        step = torch.minimum(wish.floor().long(), room)
        if not bool(step.any()):  # what is left is less than one each: to the largest remainders
            order = torch.where(room > 0, wish, -1.0).argsort(descending=True, stable=True)
            step = torch.zeros_like(counts).scatter(0, order[: min(left, int((room > 0).sum()))], 1)
        counts, left = counts + step, left - int(step.sum())
    return counts
