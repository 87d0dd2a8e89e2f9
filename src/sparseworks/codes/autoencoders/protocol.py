"""What autoencoders say of themselves, and of one batch while they train."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

from jaxtyping import Float
from torch import Tensor

if TYPE_CHECKING:
    from sparseworks.codes.autoencoders.latent import Coded


@dataclass
class Config:
    """What evaluations ask of an autoencoder (the SAEBench protocol).

    Attributes:
        d_in, d_sae, d_out: features in, latents, features out.
        architecture: name of the method.
        hook_name, hook_layer, model_name: where the activations come from, if the stream knows.
        dtype, device: of the parameters.
    """

    d_in: int
    d_sae: int
    d_out: int
    architecture: str
    hook_name: str = ""
    hook_layer: int = -1
    model_name: str = ""
    dtype: str = "float32"
    device: str = "cpu"

    def to_dict(self) -> dict[str, int | str]:
        """Plain data."""
        return asdict(self)


@dataclass(frozen=True)
class Losses:
    """Of one batch.

    Attributes:
        total: what is differentiated.
        error: mean squared error of an entry.
        coded: what the rule made.
        residual: target minus reconstruction, no gradient.
        worth: see `latent.worth`.
    """

    total: Tensor
    error: Tensor
    coded: Coded
    residual: Float[Tensor, "rows d_out"]
    worth: Float[Tensor, "2"] | None = None
