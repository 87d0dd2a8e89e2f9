"""Matching pursuit as the encoder: latents one after another, each for what those before left over."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from sparseworks.codes.autoencoders.latent import LATENTS, Coded, LatentRule, Moment
from sparseworks.codes.autoencoders.module import SparseAutoencoder
from sparseworks.codes.autoencoders.rules.topk import check_k
from sparseworks.core.ahead import is_ahead
from sparseworks.core.codes import Codes
from sparseworks.core.errors import BudgetError
from sparseworks.exec.codes import decode, encode_topk


@LATENTS.register("matching_pursuit")
@dataclass(frozen=True)
class MatchingPursuit(LatentRule):
    """k times j = argmax ReLU(W r), z_j += (W r)_j, r <- r - (W r)_j w_j, with the decoder as W; differentiable through all steps.

    ||r||^2 falls by (W r)_j^2 each time (unit-norm rows), so any k is valid at inference.

    Attributes:
        k: steps.
        residual: a token ends where ||r|| <= residual ||x||; 0: never for that.
        tau: and where ||r|| <= tau, in units of the activations as they come.
        again: a token goes on where an atom was chosen that it has; else the step that leaves its support as it was is its last.

    Source: Costa et al., 2025, MP-SAE (arXiv 2506.03093).
    """

    k: int = 32
    residual: float = 0.0
    tau: float = 0.0
    again: bool = True
    tied: ClassVar[bool] = True
    biased: ClassVar[bool] = False

    def __post_init__(self) -> None:
        check_k(self.k)
        if not (self.residual >= 0 and self.tau >= 0):
            raise BudgetError(f"What may be left of a token is 0 or more, got {self.residual} of it and {self.tau}.")

    @property
    def steady(self) -> bool:
        """Always."""
        return True

    def __call__(self, sae: SparseAutoencoder, x: Float[Tensor, "rows d_in"], moment: Moment) -> Coded:
        """An atom may be chosen more than once; what it got is added up."""
        del moment
        left, values, indices, going = x, [], [], None
        for _ in range(self.k):
            step = encode_topk(left, sae.encoder, None, 1)
            step = step if going is None else step.with_values(step.values * going)
            left = left - decode(step, sae.encoder)
            values.append(step.values)
            indices.append(step.indices)
            going = self._going(sae, x, left, indices, going)
        return Coded(merged(torch.cat(values, 1), torch.cat(indices, 1), sae.width))

    @torch.no_grad()
    def _going(
        self, sae: SparseAutoencoder, x: Tensor, left: Tensor, indices: list[Tensor], going: Tensor | None
    ) -> Tensor | None:
        """Which tokens go on after a step; None: all, whatever comes."""
        if self.residual or self.tau:
            least = (self.residual * x.norm(dim=1, keepdim=True)).maximum(self.tau * sae.scale.to(x.dtype))
            more = left.norm(dim=1, keepdim=True) > least
            going = more if going is None else going & more
        if not self.again:
            new = (torch.cat([*indices[:-1], torch.full_like(indices[-1], -1)], 1) != indices[-1]).all(1, keepdim=True)
            going = new if going is None else going & new
        return going


def merged(values: Float[Tensor, "rows k"], indices: Tensor, width: int) -> Codes:
    """Codes of (value, index) pairs whose values add up where an index comes again; indices ascending, zeros left out."""
    # A value of 0 belongs to no atom: it goes behind all others.
    place = torch.where(values.detach() != 0, indices.long(), width)
    order = place.argsort(dim=1, stable=True)
    place, values = place.gather(1, order), values.gather(1, order)
    new = torch.ones_like(place, dtype=torch.bool)
    new[:, 1:] = place[:, 1:] != place[:, :-1]
    new &= place < width
    to = (new.cumsum(1) - 1).clamp(min=0)
    summed = torch.zeros_like(values).scatter_add(1, to, values)
    where = torch.zeros_like(place).scatter_reduce(1, to, torch.where(place < width, place, 0), "amax")
    lengths = new.sum(1)
    if is_ahead():
        return Codes.unchecked(summed, where, width, lengths)
    k = int(lengths.max()) if len(lengths) else 0
    return Codes.unchecked(summed[:, :k], where[:, :k], width, None if bool((lengths == k).all()) else lengths)
