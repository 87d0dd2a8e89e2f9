"""The rule of bilinear autoencoders: none cuts; a penalty on how many tokens use a latent makes it sparse."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from jaxtyping import Float
from torch import Tensor

from sparseworks.codes.autoencoders.bilinear import BilinearAutoencoder
from sparseworks.codes.autoencoders.latent import LATENTS, Coded, LatentRule, Moment
from sparseworks.codes.autoencoders.module import SparseAutoencoder
from sparseworks.core.errors import BudgetError, RecipeError


@LATENTS.register("bilinear")
@dataclass(frozen=True)
class Bilinear(LatentRule):
    """f_k = (l_k^T x)(r_k^T x), + alpha mean_k (||f_k||_1 / ||f_k||_2 - 1) / (sqrt(n) - 1) over the batch.

    Attributes:
        alpha: of the density.
        warmup: share of training in which alpha rises from 0 in a straight line.
        ordered: mean of the loss over all prefixes of the latents: pair (i, j) counts (F - max(i, j)) / F.
        mixed: latents are mixed by D (2 d x F) before and by D^T after, which clusters them.

    Source: Dooms and Gauderis, 2025, arXiv 2510.16820, constants as in their code.
    """

    alpha: float = 0.1
    warmup: float = 0.25
    ordered: bool = False
    mixed: bool = False

    def __post_init__(self) -> None:
        if self.alpha < 0 or self.warmup < 0 or (self.ordered and self.mixed):
            raise BudgetError("A bilinear autoencoder takes alpha and warmup >= 0, and is ordered or mixed, not both.")

    @property
    def steady(self) -> bool:
        """Not looked at."""
        return False

    def __call__(self, sae: SparseAutoencoder, x: Float[Tensor, "rows d_in"], moment: Moment) -> Coded:
        """Refused: there are no codes."""
        raise RecipeError("Latents of a bilinear autoencoder are dense: call `latents`.")

    def build(self, method: Any, d_in: int, width: int, d_out: int, seed: int) -> BilinearAutoencoder:
        """A bilinear autoencoder."""
        del d_out
        return BilinearAutoencoder(method, d_in, width, seed=seed)
