"""Target: what an autoencoder reconstructs, its input or another activation of the same tokens."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from jaxtyping import Float
from torch import Tensor

from sparseworks.core.config import NOUNS
from sparseworks.core.errors import CalibrationError
from sparseworks.core.registry import Registry

if TYPE_CHECKING:
    from sparseworks.codes.autoencoders.stream import Batch

TARGETS: Registry[type[Target]] = Registry("target", "sparseworks.codes.autoencoders.target")


class Target:
    """Base of all targets.

    Attributes:
        same: the target is the input, so that the decoder's bias is taken from it before encoding.
    """

    same: ClassVar[bool] = True

    def __call__(self, batch: Batch) -> Float[Tensor, "rows d_out"]:
        """The activations to reconstruct."""
        raise NotImplementedError

    @property
    def steady(self) -> bool:
        """As that of `LatentRule`."""
        return False


NOUNS["target"] = (Target, TARGETS)


@TARGETS.register("itself")
@dataclass(frozen=True)
class Itself(Target):
    """x: an autoencoder. Heads' outputs side by side, before the output projection, are such inputs (the site `...o_proj:in`).

    Source: Kissane et al., 2024, arXiv 2406.17759 (attention outputs).
    """

    @property
    def steady(self) -> bool:
        """Always."""
        return True

    def __call__(self, batch: Batch) -> Float[Tensor, "rows d_out"]:
        """The inputs."""
        return batch.x


@TARGETS.register("transcode")
@dataclass(frozen=True)
class Transcode(Target):
    """Another activation, recorded beside the input (an MLP's output from its input): a transcoder.

    Source: Dunefsky et al., 2024, arXiv 2406.11944.
    """

    same: ClassVar[bool] = False

    @property
    def steady(self) -> bool:
        """Always."""
        return True

    def __call__(self, batch: Batch) -> Float[Tensor, "rows d_out"]:
        """The recorded target."""
        if batch.target is None:
            raise CalibrationError("A transcoder needs a stream with targets: record one with `target=site`.")
        return batch.target
