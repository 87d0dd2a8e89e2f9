"""LatentRule: how pre-activations become codes, which latents of which tokens stay on."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from sparseworks.core.ahead import is_ahead
from sparseworks.core.codes import Codes, places_of
from sparseworks.core.config import NOUNS
from sparseworks.core.patterns import unstructured
from sparseworks.core.registry import Registry
from sparseworks.core.select import select_mask

if TYPE_CHECKING:
    from sparseworks.codes.autoencoders.module import SparseAutoencoder

OFFSETS = (-0.2, 0.0, 0.2)
"""By how much the common level of thresholds is moved to see how many entries would be on."""

LATENTS: Registry[type[LatentRule]] = Registry("latent rule", "sparseworks.codes.autoencoders.rules")


@dataclass(frozen=True)
class Moment:
    """Where training stands.

    Attributes:
        progress: share of the steps that are done; 1 outside training.
        gradients: of the model's loss with respect to the inputs, for rules that look at them.
    """

    progress: float = 1.0
    gradients: Float[Tensor, "rows d_in"] | None = None


@dataclass(frozen=True)
class Coded:
    """What a rule makes of a batch.

    Attributes:
        codes: the codes, differentiable in the autoencoder's parameters.
        penalty: mean over rows of what the rule wants small, times the autoencoder's `pressure` in the loss.
        extra: a further loss of the rule's own, as it is.
        threshold: the least value that was kept, for all latents or one each (NaN where none was), for rules whose rows compete.
        above: how many pre-activations lie above their thresholds moved by OFFSETS, for rules whose common level follows the L0.
        on: entries of the codes that are on, where a rule gives others as well so that gradients reach its thresholds.
        edge: (which entries lie at their thresholds, thresholds of all entries), for rules whose pressure is what such an entry is worth.
    """

    codes: Codes
    penalty: Tensor | None = None
    extra: Tensor | None = None
    threshold: Tensor | None = None
    above: Tensor | None = None
    on: Tensor | None = None
    edge: tuple[Tensor, Tensor] | None = None

    def l0(self) -> Tensor:
        """Mean number of entries a row that are on and not 0."""
        on = self.codes.values.detach() != 0 if self.on is None else self.on
        return on.sum() / max(len(self.codes), 1)


class LatentRule:
    """Base of all rules; frozen dataclasses, registered in LATENTS.

    Attributes:
        tied: the encoder is the decoder's transpose.
        biased: latents have biases; those of tied rules only where said.
        centred: the decoder's bias is taken from inputs.
        normed: decoder rows have unit norm.
        across: rows of a batch compete, so that inference needs thresholds.
        betas, eps: of Adam, as the method was published.
    """

    tied: ClassVar[bool] = False
    biased: ClassVar[bool] = True
    centred: ClassVar[bool] = True
    normed: ClassVar[bool] = True
    across: ClassVar[bool] = False
    betas: ClassVar[tuple[float, float]] = (0.9, 0.999)
    eps: ClassVar[float] = 1e-8

    def __call__(self, sae: SparseAutoencoder, x: Float[Tensor, "rows d_in"], moment: Moment) -> Coded:
        """Codes of inputs from which the bias was already taken away."""
        raise NotImplementedError

    @property
    def steady(self) -> bool:
        """Whether every training step is alike, so that a GPU may record one and replay it.

        True only where the call reads no `Moment.progress`, draws nothing, looks at no entry and asks nothing else of the host that
        changes; False, the default, is always right.
        """
        return False

    def parameters(self, width: int, d_in: int) -> dict[str, Tensor]:
        """Parameters of the rule's own, one number a latent, at their initial values."""
        del width, d_in
        return {}

    def prepare(self, sae: SparseAutoencoder, x: Float[Tensor, "rows d_in"]) -> None:
        """Look at inputs (scaled, the bias taken away) before the first step: where thresholds and pressure are to begin."""

    def pressure(self) -> float:
        """The sparsity weight that training begins with."""
        return 0.0

    def target_l0(self) -> float | None:
        """Mean L0 that the sparsity weight is steered to."""
        return None

    def thresholds(self, sae: SparseAutoencoder) -> Float[Tensor, " width"] | None:
        """The threshold of each latent, where they are learned."""
        del sae
        return None

    def fold(self, sae: SparseAutoencoder, scale: float) -> None:
        """Parameters of the rule's own after the inputs were multiplied by 1 / scale."""

    def exported(self, sae: SparseAutoencoder, threshold: Float[Tensor, " width"] | None) -> LatentRule:
        """The rule of the inference form; may change the parameters of `sae`, which is a copy. `threshold`: calibrated, if rows compete."""
        del sae, threshold
        return self

    def build(self, method: Any, d_in: int, width: int, d_out: int, seed: int) -> Any:
        """The module that is trained."""
        from sparseworks.codes.autoencoders.module import SparseAutoencoder

        return SparseAutoencoder(method, d_in, width, d_out, seed=seed)


NOUNS["latents"] = (LatentRule, LATENTS)


@dataclass(frozen=True)
class Penalised(LatentRule):
    """Base of rules that a penalty makes sparse.

    Attributes:
        weight: of the penalty, where no L0 is asked for.
        l0: mean latents a token that the weight is steered to; None: the weight stays.
    """

    weight: float = 1e-1
    l0: float | None = None

    def pressure(self) -> float:
        """The weight."""
        return self.weight

    def target_l0(self) -> float | None:
        """The L0 to steer to."""
        return self.l0


# -- what rules share -------------------------------------------------------------------------------------------------


def preactivations(sae: SparseAutoencoder, x: Float[Tensor, "rows d_in"]) -> Float[Tensor, "rows width"]:
    """x W_enc + b_enc, to choose by: no gradient, and nothing of it is kept."""
    with torch.no_grad():
        return F.linear(x, sae.encoder, sae.b_enc)


def best_of_rows(scores: Float[Tensor, "rows width"], k: int) -> Bool[Tensor, "rows width"]:
    """The k largest of each row; ties go to the lower latent, but to any where this runs ahead of a device."""
    if not is_ahead():
        return select_mask(scores, unstructured("row"), k)
    at = scores.topk(k, dim=1, sorted=False).indices
    return torch.zeros_like(scores, dtype=torch.bool).scatter_(1, at, True)


def least_kept(scores: Float[Tensor, "rows width"], l0: float) -> Float[Tensor, ""]:
    """The least of the l0 a row largest entries of a whole matrix: the threshold that keeps them."""
    count = min(max(round(l0 * len(scores)), 1), scores.numel())
    return scores[select_mask(scores, unstructured("tensor"), count)].min()


def lacking(above: Float[Tensor, "3"], wanted: float) -> Float[Tensor, ""]:
    """By how much a level is too low for so many entries to be on, by straight lines in log counts; at most 1 either way."""
    low, now, high = above.double().clamp(min=0.5).log().unbind()
    gap = now - math.log(max(wanted, 0.5))
    slope = torch.where(gap > 0, now - high, low - now) / OFFSETS[2]
    return (gap / slope.clamp(min=0.5)).clamp(-1, 1)


@torch.no_grad()
def worth(
    coded: Coded, residual: Float[Tensor, "rows d_out"], dictionary: Float[Tensor, "width d_out"]
) -> Float[Tensor, "2"] | None:
    """Sum over entries at their thresholds of 2 theta <r, d>, by which each lowers ||r||^2, and how many; None: the rule does not ask."""
    if coded.edge is None:
        return None
    (near, theta), codes = coded.edge, coded.codes
    if codes.is_whole:
        along = residual @ dictionary.T
    else:
        along = torch.ops.sparseworks.decode_values(residual, codes.indices, dictionary)
    return torch.stack([(2 * theta * along * near).double().sum(), torch.count_nonzero(near).double()])


def chosen(
    x: Float[Tensor, "rows d_in"],
    weight: Float[Tensor, "width d_in"],
    bias: Float[Tensor, " width"] | None,
    mask: Bool[Tensor, "rows width"],
) -> Codes:
    """Codes with the values (x W^T + b) at a mask; their gradients are sparse, as those of `encode_topk`.

    Where this runs ahead of a device the codes are whole, since how many a row has is not known there.
    """
    if is_ahead():
        return Codes.whole(torch.where(mask, F.linear(x, weight, bias), x.new_zeros(())))
    indices, lengths = places_of(mask)
    return chosen_at(x, weight, bias, indices, lengths)


def chosen_at(
    x: Float[Tensor, "rows d_in"],
    weight: Float[Tensor, "width d_in"],
    bias: Float[Tensor, " width"] | None,
    indices: Int[Tensor, "rows k"],
    lengths: Int[Tensor, " rows"],
) -> Codes:
    """Codes with the values (x W^T + b) at the first `lengths` places of each row."""
    kept = torch.arange(indices.shape[1], device=x.device) < lengths.unsqueeze(1)
    values = values_at(x, weight, bias, indices, kept)
    return Codes.unchecked(values, indices, len(weight), None if bool(kept.all()) else lengths)


def values_at(
    x: Float[Tensor, "rows d_in"],
    weight: Float[Tensor, "width d_in"],
    bias: Float[Tensor, " width"] | None,
    indices: Int[Tensor, "rows k"],
    kept: Bool[Tensor, "rows k"],
) -> Float[Tensor, "rows k"]:
    """<x_i, W_j> + b_j at the given places, 0 where not kept: k d work a row, forward and backward."""
    return _At.apply(x, weight, bias, indices, kept)  # type: ignore[no-any-return]


class _At(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, indices: Tensor, kept: Tensor) -> Tensor:
        values = torch.ops.sparseworks.decode_values(x, indices, weight)
        values = values if bias is None else values + bias[indices]
        ctx.save_for_backward(x, weight, indices, kept)
        return torch.where(kept, values, values.new_zeros(()))

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, indices, kept = ctx.saved_tensors
        grad, need = torch.where(kept, grad, grad.new_zeros(())).contiguous(), ctx.needs_input_grad
        dx = torch.ops.sparseworks.decode(grad, indices, weight.contiguous(), None) if need[0] else None
        dw = torch.ops.sparseworks.decode_dictionary(x, grad, indices, len(weight)) if need[1] else None
        db = grad.new_zeros(len(weight)).index_add(0, indices.flatten(), grad.flatten()) if need[2] else None
        return dx, dw, db, None, None
