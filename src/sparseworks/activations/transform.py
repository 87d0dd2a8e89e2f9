"""What surrounds a mask: an equivalent model in which masks cost less, and a path for what is dropped."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING, ClassVar

from torch import nn

from sparseworks.core.config import NOUNS
from sparseworks.core.registry import Registry
from sparseworks.core.site import Site

if TYPE_CHECKING:
    from sparseworks.activations.score import ActivationScore
    from sparseworks.activations.variants import Variants

TRANSFORMS: Registry[type[ModelTransform]] = Registry("model transform", "sparseworks.activations")
ACTIVATION_REPAIRS: Registry[type[ActivationRepair]] = Registry("activation repair", "sparseworks.activations")


class ModelTransform:
    """`transform(model)` changes the model in place and not what it computes."""

    registered_name: ClassVar[str]

    def __call__(self, model: nn.Module) -> Collection[str]:
        """Names of the sites whose weights have orthogonal columns now.

        Raises:
            ModelError: the model is not of a kind that can be transformed.
        """
        raise NotImplementedError

    def score(self, asked: ActivationScore, orthogonal: bool) -> ActivationScore:
        """The score of a site, given the method's."""
        raise NotImplementedError


class ActivationRepair:
    """`repair(variants, sites, densities)` sets every site's rule and path so that it reads its share of weights."""

    registered_name: ClassVar[str]

    def __call__(self, variants: Variants, sites: Sequence[Site], densities: Mapping[str, float]) -> None:
        """Set all sites; `densities` is the share of its weights that each may read."""
        raise NotImplementedError


NOUNS["model_transform"] = (ModelTransform, TRANSFORMS)
NOUNS["activation_repair"] = (ActivationRepair, ACTIVATION_REPAIRS)
