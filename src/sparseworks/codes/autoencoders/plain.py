"""Plain: an autoencoder whose codes are dense tensors, as evaluations and interpretability tools of others expect them."""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from sparseworks.codes.autoencoders.module import SparseAutoencoder
from sparseworks.codes.autoencoders.protocol import Config


class Plain(nn.Module):
    """encode: x -> z, decode: z -> x^, tensors of any leading dimensions; parameters are those of the autoencoder, under its names.

    What SAEBench's evaluations ask of an object: `encode`, `decode`, `forward`, `W_enc` (d_in, width), `W_dec` (width, d_out), `b_enc`, `b_dec`,
    `cfg`, `dtype`, `device`. Rows that compete must not: give the exported form.

    Args:
        sae: in its inference form.

    Source: Karvonen et al., 2025, SAEBench, arXiv 2503.09532.
    """

    def __init__(self, sae: SparseAutoencoder) -> None:
        super().__init__()
        self.sae = sae.eval()

    def __getattr__(self, name: str) -> Any:
        if name in ("W_enc", "W_dec", "b_enc", "b_dec"):
            return getattr(self.sae, name)
        return super().__getattr__(name)

    @property
    def cfg(self) -> Config:
        """Sizes and origin."""
        return self.sae.cfg

    @property
    def dtype(self) -> torch.dtype:
        """Of the parameters."""
        return self.sae.W_dec.dtype

    @property
    def device(self) -> torch.device:
        """Of the parameters."""
        return self.sae.W_dec.device

    def encode(self, x: Float[Tensor, "*batch d_in"]) -> Float[Tensor, "*batch width"]:
        """Codes with their zeros written out.

        Raises:
            ShapeError, DtypeError, NonFiniteError: as the autoencoder's own.
        """
        return self.sae.encode(x.to(self.dtype)).dense().unflatten(0, x.shape[:-1])

    def decode(self, z: Float[Tensor, "*batch width"]) -> Float[Tensor, "*batch d_out"]:
        """z W_dec + b_dec, of any z: tools edit them."""
        return z @ self.W_dec + self.b_dec

    def forward(self, x: Float[Tensor, "*batch d_in"]) -> Float[Tensor, "*batch d_out"]:
        """The reconstruction."""
        return self.decode(self.encode(x))
