"""Loss terms between feature maps of a narrower student and of its teacher, at modules that are named alike in both."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from sparseworks.core.errors import ModelError, ShapeError
from sparseworks.weights.distill import Outputs, Term

Maps = Float[Tensor, "batch channels *space"]


@dataclass(frozen=True)
class MapTerm(Term):
    """Sum over `modules` of a distance between their outputs in student and teacher.

    Attributes:
        modules: dotted names of modules with outputs (batch, channels, ...), the same in both models.
    """

    modules: tuple[str, ...] = ()
    weight: float = 1.0

    def __call__(self, student: Outputs, teacher: Outputs) -> Float[Tensor, ""]:
        """The sum.

        Raises:
            ModelError: no modules are named, or their outputs were not collected.
            ShapeError: maps cannot be compared.
        """
        if not self.modules or not all(m in o.maps for m in self.modules for o in (student, teacher)):
            raise ModelError(
                f"{type(self).__name__} compares the outputs of modules: name those that student and teacher both have, got "
                f"{self.modules}."
            )
        return torch.stack([self._checked(name, student.maps[name], teacher.maps[name]) for name in self.modules]).sum()

    def distance(self, student: Maps, teacher: Maps) -> Float[Tensor, ""]:
        """Of one module."""
        raise NotImplementedError

    def alike(self, student: Maps, teacher: Maps) -> bool:
        """Whether the two can be compared."""
        return student.shape == teacher.shape

    def _checked(self, name: str, student: Maps, teacher: Maps) -> Float[Tensor, ""]:
        if student.dim() < 3 or not self.alike(student, teacher):
            raise ShapeError(
                f"{type(self).__name__} cannot compare {tuple(student.shape)} of the student at {name!r} with "
                f"{tuple(teacher.shape)} of the teacher: leave the channels of that module whole."
            )
        return self.distance(student.flatten(2).float(), teacher.flatten(2).float())


@dataclass(frozen=True)
class ChannelWise(MapTerm):
    """T^2 / C sum_c KL(softmax(t_c / T) || softmax(s_c / T)) over the positions of every channel c, averaged over the batch.

    Where in the image a channel is active counts, how strongly does not. Source: Shu, Liu, Gao, Yan and Shen, 2021,
    arXiv 2011.13256 (CWD).
    """

    temperature: float = 4.0

    def distance(self, student: Maps, teacher: Maps) -> Float[Tensor, ""]:
        """KL over positions."""
        log_s, log_t = (F.log_softmax(x / self.temperature, dim=-1) for x in (student, teacher))
        kl = F.kl_div(log_s, log_t, log_target=True, reduction="none").sum(dim=-1)
        return kl.mean() * self.temperature**2


@dataclass(frozen=True)
class SpatialAttention(MapTerm):
    """||q_s - q_t||^2 averaged over the batch, q = Q / ||Q||_2 over the positions, Q = sum_c F_c^2: channels may differ in number.

    Source: Zagoruyko and Komodakis, 2017, arXiv 1612.03928; for pruned detectors Chu et al., 2022, arXiv 2306.01526.
    """

    def distance(self, student: Maps, teacher: Maps) -> Float[Tensor, ""]:
        """Squared distance of the normalised maps."""
        s, t = (F.normalize(x.square().sum(dim=1), dim=-1) for x in (student, teacher))
        return (s - t).square().sum(dim=-1).mean()

    def alike(self, student: Maps, teacher: Maps) -> bool:
        """Batch and positions agree."""
        return student.shape[0] == teacher.shape[0] and student.shape[2:] == teacher.shape[2:]


@dataclass(frozen=True)
class MapError(MapTerm):
    """mean((s - t)^2): every value counts alike, the baseline of the other two."""

    def distance(self, student: Maps, teacher: Maps) -> Float[Tensor, ""]:
        """Mean squared error."""
        return (student - teacher).square().mean()
