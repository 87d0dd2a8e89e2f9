"""Which heads a latent of an attention layer's outputs belongs to, and which head and which source token turned it on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from sparseworks.core.errors import RecipeError, ShapeError


@dataclass(frozen=True)
class Attribution:
    """A sum of parts: pre-activation = `terms`, summed over all that they are split by, + `bias`.

    Attributes:
        terms: parts of the pre-activations.
        bias: b_enc - <b_dec, w_enc>, what is there without any input.
    """

    terms: Float[Tensor, "*parts"]
    bias: Float[Tensor, "..."]


class HeadAttribution:
    """Of an autoencoder on heads' outputs side by side (before the output projection): ||W_dec[i, h]|| / sum_h ||W_dec[i, h]||, and
    <w_enc_i, z> = sum_h <w_enc_i^h, z^h> = sum_h sum_src p_src <w_enc_i^h, v_src^h>, attention being held fixed.

    Args:
        sae: with pre-activations that are linear in the input (all but matching pursuit and bilinear ones).
        heads: query heads of the layer.

    Raises:
        ShapeError: the inputs are not of so many heads.
        RecipeError: pre-activations are not linear.

    Source: Kissane et al., 2024, arXiv 2406.17759.
    """

    def __init__(self, sae: Any, heads: int) -> None:
        if not hasattr(sae, "encoder") or sae.rule.tied:
            raise RecipeError(
                "Latents of this autoencoder have no linear pre-activation to split: train one with an encoder, as `relu_sae` or `topk_sae`."
            )
        d = sae.encoder.shape[1]
        if heads < 1 or d % heads or sae.W_dec.shape[1] != d:
            raise ShapeError(
                f"Inputs of {d} and outputs of {sae.W_dec.shape[1]} features are not those of {heads} heads: record the output projection's input."
            )
        self.sae, self.heads, self.size = sae, heads, d // heads

    @torch.no_grad()
    def weights(self) -> Float[Tensor, "width heads"]:
        """Share of each head in the decoder norm of each latent; rows sum to 1."""
        norms = self.sae.W_dec.unflatten(1, (self.heads, self.size)).norm(dim=2)
        return norms / norms.sum(1, keepdim=True).clamp(min=1e-30)

    @torch.no_grad()
    def by_head(self, z: Float[Tensor, "*batch d"], latents: Sequence[int]) -> Attribution:
        """Pre-activations of some latents split by head: terms (*batch, heads, latents), bias (latents,).

        Raises:
            ShapeError: inputs of another length, or no such latent.
        """
        if not z.dim() or z.shape[-1] != self.heads * self.size:
            raise ShapeError(f"Heads' outputs end in {self.heads * self.size}, got {tuple(z.shape)}.")
        encoder = self._encoder(latents)
        terms = torch.einsum("...hd,nhd->...hn", z.unflatten(-1, (self.heads, self.size)).to(encoder.dtype), encoder)
        return Attribution(terms, self._bias(latents))

    @torch.no_grad()
    def by_source(
        self,
        attention: Float[Tensor, "*batch heads to source"],
        values: Float[Tensor, "*batch source kv_heads head_dim"],
        latent: int,
    ) -> Attribution:
        """The pre-activation of one latent split by head and source token: terms (*batch, heads, to, source), bias ().

        Args:
            attention: probabilities, as the layer used them.
            values: of the source tokens, of all heads or of groups that share them.
            latent: which.

        Raises:
            ShapeError: attention and values that do not fit each other or the autoencoder, or no such latent.
        """
        fits = (
            attention.dim() >= 3
            and values.dim() == attention.dim()
            and attention.shape[-3] == self.heads
            and values.shape[-1] == self.size
            and attention.shape[-1] == values.shape[-3]
            and values.shape[-2] > 0
            and self.heads % values.shape[-2] == 0
        )
        if not fits:
            raise ShapeError(
                f"Of {self.heads} heads of {self.size}, attention {tuple(attention.shape)} and values {tuple(values.shape)} do not fit."
            )
        encoder = self._encoder([latent])[0]
        shared = values.to(encoder.dtype).repeat_interleave(self.heads // values.shape[-2], dim=-2)
        seen = torch.einsum("...shd,hd->...hs", shared, encoder)
        return Attribution(attention.to(encoder.dtype) * seen.unsqueeze(-2), self._bias([latent])[0])

    def _encoder(self, latents: Sequence[int]) -> Float[Tensor, "latents heads head_dim"]:
        if not len(latents) or not all(0 <= i < self.sae.width for i in latents):
            raise ShapeError(f"Latents lie in [0, {self.sae.width}), got {list(latents)}.")
        return self.sae.encoder[list(latents)].detach().unflatten(1, (self.heads, self.size))

    def _bias(self, latents: Sequence[int]) -> Float[Tensor, " latents"]:
        at = list(latents)
        bias = self.sae.b_enc[at].detach()
        return bias - self.sae.encoder[at].detach() @ self.sae.b_dec.detach() if self.sae.centred else bias
