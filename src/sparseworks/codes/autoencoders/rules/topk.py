"""The k largest pre-activations of each token, signed or by magnitude; k may come down while training."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
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
from sparseworks.core.errors import BudgetError
from sparseworks.exec.codes import decode, encode_topk

_DIRECTIONS = 256


def annealed(k: int, start: int | None, until: float, progress: float) -> int:
    """From `start` down to k in a straight line over the first `until` of training."""
    if start is None or progress >= until:
        return k
    return round(start + (k - start) * progress / until)


def check_k(k: int, start: int | None = None) -> None:
    """Raise BudgetError unless 1 <= k <= start."""
    if type(k) is not int or k < 1 or (start is not None and start < k):
        raise BudgetError(f"A rule keeps k >= 1 latents and starts with no fewer, got k={k!r}, start={start!r}.")


@LATENTS.register("topk")
@dataclass(frozen=True)
class TopK(LatentRule):
    """z = pi on the k largest of each token, then ReLU.

    Attributes:
        k: latents a token.
        start, until: begin with `start` latents and come down to k over this share of training (Makhzani and Frey's annealing: latents
            that many tokens may use do not die).
        relu: cut negative values off; without it an entry may be negative.

    Source: Makhzani and Frey, 2013, arXiv 1312.5663; Gao et al., 2024, arXiv 2406.04093, initialisation and eps of Adam as in their code.
    """

    k: int = 32
    start: int | None = None
    until: float = 0.5
    relu: bool = True
    eps: ClassVar[float] = 6.25e-10

    def __post_init__(self) -> None:
        check_k(self.k, self.start)

    @property
    def steady(self) -> bool:
        """With one k throughout."""
        return self.start is None

    @torch.no_grad()
    def prepare(self, sae: SparseAutoencoder, x: Float[Tensor, "rows d_in"]) -> None:
        """An encoder with which reconstructions of random directions begin as long as these (Gao et al.)."""
        if self.tied:
            return
        draws = torch.randn(_DIRECTIONS, x.shape[1], generator=torch.Generator().manual_seed(0))
        codes = encode_topk(F.normalize(draws, dim=1).to(x), sae.encoder, None, min(self.k, sae.width), self.relu)
        sae.encoder_weight.div_(decode(codes, sae.W_dec).norm(dim=1).mean().clamp(min=1e-30))

    def __call__(self, sae: SparseAutoencoder, x: Float[Tensor, "rows d_in"], moment: Moment) -> Coded:
        """The products are never all in memory; see `exec.codes.encode_topk`."""
        k = min(annealed(self.k, self.start, self.until, moment.progress), sae.width)
        return Coded(encode_topk(x, sae.encoder, sae.b_enc, k, self.relu))


@LATENTS.register("k_sparse")
@dataclass(frozen=True)
class KSparse(TopK):
    """z = W x + b on the k largest of each token, negative ones too, x^ = z W + b': linear, with one matrix whose norms are free.

    Nothing is taken from the input, and any k' serves afterwards (`sae.at(k=2 * k)`).

    Attributes:
        k, start, until: as `topk`.
        relu: cut negative values off.

    Source: Makhzani and Frey, 2013, arXiv 1312.5663.
    """

    relu: bool = False
    tied: ClassVar[bool] = True
    centred: ClassVar[bool] = False
    normed: ClassVar[bool] = False


@LATENTS.register("absolute_topk")
@dataclass(frozen=True)
class AbsoluteTopK(LatentRule):
    """z = pi on the k largest |pi| of each token: a latent may be used in both directions.

    Source: after k-sparse autoencoders (arXiv 1312.5663) with the magnitude as score.
    """

    k: int = 32

    def __post_init__(self) -> None:
        check_k(self.k)

    @property
    def steady(self) -> bool:
        """Always."""
        return True

    def __call__(self, sae: SparseAutoencoder, x: Float[Tensor, "rows d_in"], moment: Moment) -> Coded:
        """Chosen by |pi|, row by row."""
        del moment
        scores = preactivations(sae, x).abs()
        mask = best_of_rows(scores, min(self.k, sae.width))
        return Coded(chosen(x, sae.encoder, sae.b_enc, mask))
