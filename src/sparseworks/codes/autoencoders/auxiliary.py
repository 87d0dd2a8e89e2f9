"""Auxiliary: what brings latents back that are dead or dying."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from sparseworks.codes.autoencoders.latent import best_of_rows
from sparseworks.codes.autoencoders.module import SparseAutoencoder
from sparseworks.codes.autoencoders.rules.feature_choice import zipf
from sparseworks.core.ahead import is_ahead
from sparseworks.core.config import NOUNS
from sparseworks.core.errors import RecipeError
from sparseworks.core.registry import Registry
from sparseworks.exec.codes import decode, encode_topk
from sparseworks.exec.codes.encode import MOST_ON_GPU

AUXILIARIES: Registry[type[Auxiliary]] = Registry("auxiliary", "sparseworks.codes.autoencoders.auxiliary")


class Auxiliary:
    """Base of all: a further loss, or latents set anew after a step, or both."""

    def __call__(
        self, sae: SparseAutoencoder, x: Float[Tensor, "rows d_in"], residual: Float[Tensor, "rows d_out"]
    ) -> Tensor | None:
        """A loss from centred inputs and what the codes leave over; None: nothing to add."""
        del sae, x, residual
        return None

    @property
    def steady(self) -> bool:
        """As that of `LatentRule`, of the loss; `renew` is never recorded."""
        return False

    def due(self, batches: int) -> bool:
        """Whether to `renew` after so many batches."""
        del batches
        return False

    def renew(
        self,
        sae: SparseAutoencoder,
        x: Float[Tensor, "rows d_in"],
        residual: Float[Tensor, "rows d_out"],
        generator: torch.Generator,
    ) -> Int[Tensor, " latents"] | None:
        """Set latents anew after a step; which ones, so that the optimiser forgets them."""
        del sae, x, residual, generator
        return None


NOUNS["auxiliary"] = (Auxiliary, AUXILIARIES)


@AUXILIARIES.register("aux_k")
@dataclass(frozen=True)
class AuxK(Auxiliary):
    """weight ||e - e^||^2 / ||e - mean(e)||^2, beside a main error that is a share of the target's variance: the error e is reconstructed by
    the k largest pi among latents that are dead.

    Attributes:
        k: latents for it; None: half of the features. More than are dead: all those. With few each rebuilds so much that it is chosen again
            afterwards: of BatchTopK's latents (MiniLM's layer 2 at L0 8, 2000 steps of 1024 tokens) 12 % were dead with 512, as in the code of
            Bussmann et al., and 0.05 % with 16 (two seeds).
        weight: of the loss.
        after: tokens of silence after which a latent is dead.
        relu: rectify these pi, as the authors' code does; then no gradient reaches latents that are below 0 for all tokens. On MiniLM's layer 2
            (BatchTopK at L0 16, 2000 steps of 1024 tokens, one seed) 6.1 % were dead with it, 0.5 % without, at the same error.
        normalised: False: weight times the mean squared error of an entry, beside that of the codes.

    Source: Gao et al., 2024, arXiv 2406.04093, and their code (10 million tokens at their scale); not normalised: the code of Bussmann et al.,
    2024, arXiv 2412.06410.
    """

    k: int | None = None
    weight: float = 1 / 32
    after: int = 200_000
    relu: bool = False
    normalised: bool = True

    @property
    def steady(self) -> bool:
        """Always."""
        return True

    def __call__(
        self, sae: SparseAutoencoder, x: Float[Tensor, "rows d_in"], residual: Float[Tensor, "rows d_out"]
    ) -> Tensor | None:
        """The loss, or None where no latent is dead."""
        return _loss_of(self, sae, x, residual, sae.silent >= self.after)


@AUXILIARIES.register("aux_zipf")
@dataclass(frozen=True)
class AuxZipf(Auxiliary):
    """As `aux_k`, for latents that are dying: whose running density is below `share` of what Zipf's law gives their rank.

    Attributes:
        k, weight, relu, normalised: as `aux_k`.
        exponent, offset: of the law (rank + offset)^-exponent, scaled to the mean L0 seen.
        share: below this share of the law's density a latent is dying.

    Source: Ayonrinde, 2024, arXiv 2411.02124; which latents and with what weight is not said there: the reading is ours.
    """

    k: int | None = None
    weight: float = 1 / 32
    exponent: float = 1.0
    offset: float = 7.0
    share: float = 0.5
    relu: bool = False
    normalised: bool = True

    @property
    def steady(self) -> bool:
        """Always."""
        return True

    def __call__(
        self, sae: SparseAutoencoder, x: Float[Tensor, "rows d_in"], residual: Float[Tensor, "rows d_out"]
    ) -> Tensor | None:
        """The loss, or None where no latent is dying."""
        law = zipf(sae.density, self.exponent, self.offset) * sae.density.sum()
        dying = (sae.density <= self.share * law) & (sae.batches > 0)
        return _loss_of(self, sae, x, residual, dying)


@AUXILIARIES.register("pre_act")
@dataclass(frozen=True)
class PreAct(Auxiliary):
    """weight * mean_rows sum_dead (theta - pi)_+: thresholds of dead latents fall and their pi rise, until they meet.

    For rules with a learned threshold a latent: one that is off for all tokens gets no gradient otherwise, and `aux_k` moves pi alone. On MiniLM's
    layer 2 (JumpReLU at L0 8, 2000 steps of 1024 tokens) 0.1 and 0.3 % were dead with it (two seeds) and 1.5 % without (one); where pi has no gradient of
    thresholds (`to_input=0`), 5 % with it and 37 % with `aux_k`.

    Attributes:
        weight: beside a main error that is the mean squared error of an entry.
        after: tokens of silence after which a latent is dead.

    Source: Conerly et al., 2025, Dictionary learning optimization techniques (Transformer Circuits, January 2025), weight as there, where it
    stands beside an error summed over entries; that it is for the dead alone, and not for all latents, is as SAELens has it.
    """

    weight: float = 3e-6
    after: int = 200_000

    @property
    def steady(self) -> bool:
        """Always."""
        return True

    def __call__(
        self, sae: SparseAutoencoder, x: Float[Tensor, "rows d_in"], residual: Float[Tensor, "rows d_out"]
    ) -> Tensor | None:
        """The loss, or None where no latent is dead.

        Raises:
            RecipeError: the rule has no threshold a latent.
        """
        theta, dead = sae.rule.thresholds(sae), sae.silent >= self.after
        if theta is None:
            raise RecipeError(
                f"`pre_act` is for rules with a threshold a latent, such as jumprelu, not for {type(sae.rule).__name__}."
            )
        if is_ahead():
            below = (theta - F.linear(x, sae.encoder, sae.b_enc)).relu() * dead
            return self.weight * below.sum(1).mean()
        some = dead.nonzero().flatten()
        if not len(some):
            return None
        below = theta[some] - F.linear(x, sae.encoder[some], sae.b_enc[some])
        return self.weight * below.relu().sum(1).mean()


@AUXILIARIES.register("resample")
@dataclass(frozen=True)
class Resample(Auxiliary):
    """Every so often dead latents point at inputs that are badly reconstructed, drawn with probability ~ ||e||^4, none twice.

    Attributes:
        every: batches between.
        after: tokens of silence after which a latent is dead.
        gain: norm of the new encoder row over the mean of the living.

    Source: Bricken et al., 2023, Towards Monosemanticity (gain 0.2); Kissane et al., 2024, arXiv 2406.17759.
    """

    every: int = 2500
    after: int = 200_000
    gain: float = 0.2

    @property
    def steady(self) -> bool:
        """Always: there is no loss."""
        return True

    def due(self, batches: int) -> bool:
        """Every so many batches."""
        return batches % self.every == 0

    def renew(
        self,
        sae: SparseAutoencoder,
        x: Float[Tensor, "rows d_in"],
        residual: Float[Tensor, "rows d_out"],
        generator: torch.Generator,
    ) -> Int[Tensor, " latents"] | None:
        """Dead latents, as many as there are examples, get one each: its input's direction as atom (a transcoder's: its error's) and as
        encoder, bias 0, the clock at 0."""
        dead = (sae.silent >= self.after).nonzero().flatten()
        weight = residual.double().square().sum(1).square().cpu()
        dead = dead[: int((weight > 0).sum())]
        if not len(dead):
            return None
        living = sae.encoder.norm(dim=1)[sae.silent < self.after]
        size = self.gain * (living.mean() if len(living) else sae.encoder.new_ones(()))
        drawn = torch.multinomial(weight, len(dead), generator=generator).to(x.device)
        sae.W_dec[dead] = F.normalize((x if sae.centred else residual)[drawn], dim=1)
        if not sae.rule.tied:
            sae.encoder_weight[dead] = F.normalize(x[drawn], dim=1) * size
            sae.b_enc[dead] = 0
        sae.silent[dead] = 0
        return dead


def _loss_of(
    aux: AuxK | AuxZipf, sae: SparseAutoencoder, x: Tensor, residual: Tensor, mask: Bool[Tensor, " width"]
) -> Tensor | None:
    k = max(x.shape[1] // 2, 1) if aux.k is None else aux.k
    if is_ahead():
        return _loss_of_any(aux, sae, x, residual, mask, min(k, sae.width))
    some = mask.nonzero().flatten()
    if not len(some):
        return None
    k = min(k, len(some))
    found = encode_topk(x, sae.encoder[some], sae.b_enc[some], k, relu=aux.relu)
    rebuilt = decode(found, sae.W_dec[some])
    return _weighed(aux, sae, residual, rebuilt)


def _weighed(aux: AuxK | AuxZipf, sae: SparseAutoencoder, residual: Tensor, rebuilt: Tensor) -> Tensor:
    """The loss beside a main error of mean square: what is normalised is a share, as is the main error over the target's variance."""
    lost = (residual - rebuilt).square().mean()
    if not aux.normalised:
        return aux.weight * lost
    target = _variance(residual if sae.wanted is None else sae.wanted)
    return aux.weight * target * lost / _variance(residual).clamp(min=1e-30)


def _variance(y: Tensor) -> Tensor:
    """Mean over entries of the variance over rows."""
    return (y - y.mean(0)).square().mean()


def _loss_of_any(
    aux: AuxK | AuxZipf, sae: SparseAutoencoder, x: Tensor, residual: Tensor, mask: Bool[Tensor, " width"], k: int
) -> Tensor:
    """As `_loss_of`, however many latents are dead, without asking how many: all others lie far below them for the choice."""
    pre = F.linear(x, sae.encoder, sae.b_enc)
    with torch.no_grad():
        below = torch.finfo(x.dtype).min / 2
        if k > MOST_ON_GPU:  # no kernel keeps so many, and all pre-activations are there
            on = best_of_rows(pre.masked_fill(~mask, below), k) & mask
        else:
            at = encode_topk(x, sae.encoder, sae.b_enc.masked_fill(~mask, below), k, relu=False).indices
            on = torch.zeros(len(x), sae.width, dtype=torch.bool, device=x.device).scatter_(1, at, True) & mask
    rebuilt = torch.where(on, pre.relu() if aux.relu else pre, pre.new_zeros(())) @ sae.W_dec
    return _weighed(aux, sae, residual, rebuilt) * mask.any()
