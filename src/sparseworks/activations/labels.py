"""What predictors of contextual sparsity learn: how important every head and neuron was, sample by sample, in the dense model."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from sparseworks.core.config import NOUNS
from sparseworks.core.errors import CalibrationError, ModelError
from sparseworks.core.registry import Registry
from sparseworks.core.site import Coupling
from sparseworks.stream import Block, block_of, blocks, couplings
from sparseworks.stream.gradients import Loss, default_loss
from sparseworks.stream.modes import evaluating
from sparseworks.stream.sites import sites as find_sites
from sparseworks.stream.tree import call, first_tensor

IMPORTANCE_LABELS: Registry[type[ImportanceLabel]] = Registry("importance label", "sparseworks.activations")


class ImportanceLabel:
    """`label(activations, gradients) -> importance of each unit in each sample`, from what the reader of the units received."""

    registered_name: ClassVar[str]
    uses_gradient: ClassVar[bool] = False

    def __call__(
        self, a: Float[Tensor, "batch tokens units width"], g: Float[Tensor, "batch tokens units width"] | None
    ) -> Float[Tensor, "batch units"]:
        """The importance."""
        raise NotImplementedError


@IMPORTANCE_LABELS.register("plainact")
@dataclass(frozen=True)
class PlainAct(ImportanceLabel):
    """sum over tokens of |<A, dL/dA>|: how much the loss changes, to first order, when the unit is scaled away.

    Source: Akhauri et al., 2024, arXiv 2406.16635 (for neurons there |W * dL/dW| of the first layer, summed by row).
    """

    uses_gradient: ClassVar[bool] = True

    def __call__(
        self, a: Float[Tensor, "batch tokens units width"], g: Float[Tensor, "batch tokens units width"] | None
    ) -> Float[Tensor, "batch units"]:
        """sum_t |sum_i a_ti g_ti|."""
        assert g is not None
        return (a * g).sum(dim=-1).abs().sum(dim=1)


@IMPORTANCE_LABELS.register("activation_norm")
@dataclass(frozen=True)
class ActivationNorm(ImportanceLabel):
    """sum over tokens of ||A||_2: the labels of DejaVu (Liu et al., 2023, arXiv 2310.17157)."""

    def __call__(
        self, a: Float[Tensor, "batch tokens units width"], g: Float[Tensor, "batch tokens units width"] | None
    ) -> Float[Tensor, "batch units"]:
        """sum_t ||a_t||."""
        return a.norm(dim=-1).sum(dim=1)


NOUNS["importance_label"] = (ImportanceLabel, IMPORTANCE_LABELS)


@dataclass(frozen=True)
class Structures:
    """Heads and neurons that may be left out, and where an early hidden state is read.

    Attributes:
        units: couplings outside the first block, in order.
        readers: module that receives the activations of each coupling's units.
        early: module whose output, the attention of the first block, predictors see.
    """

    units: tuple[Coupling, ...]
    readers: tuple[str, ...]
    early: str

    @classmethod
    def of(cls, model: nn.Module, kinds: Sequence[str] = ("head", "neuron")) -> Structures:
        """Those of a transformer; the first block stays dense.

        Raises:
            ModelError: no repeated blocks, or no heads or neurons after the first.
        """
        listed, named = blocks(model), {s.name: s for s in find_sites(model)}
        found = [c for c in couplings(model) if c.kind in kinds]
        later = [c for c in found if block_of(c.members[-1].site, listed) > 0]
        if not later:
            raise ModelError("No heads or neurons were found after the first repeated block of the model.")
        return cls(tuple(later), tuple(named[c.members[-1].site].module for c in later), _early(model, listed[0]))

    @property
    def sizes(self) -> list[int]:
        """Units of each coupling."""
        return [c.units for c in self.units]

    def owners(self, place: int, length: int) -> Tensor:
        """Which unit of a coupling each input of its reader belongs to."""
        return self.units[place].members[-1].owners(self.units[place].units, length)


def _early(model: nn.Module, block: Block) -> str:
    """The attention module of the block, or the block itself."""
    heads = [c for c in couplings(model) if c.kind == "head" and block.holds(c.members[-1].site)]
    return heads[0].members[-1].site.rpartition(".")[0] if heads else block.name


@dataclass(frozen=True)
class Labelled:
    """What was seen: early states and importances, one row a sample."""

    early: Float[Tensor, "samples width"]
    importance: Float[Tensor, "samples units"]


def collect(
    model: nn.Module,
    structures: Structures,
    batches: Sequence[Any],
    label: ImportanceLabel,
    *,
    loss: Loss | None = None,
    at: float = 1.0,
) -> Labelled:
    """Early states and labels of the dense model; every row of a batch is a sample.

    Args:
        loss: `loss(model, batch)`, a sum or mean over rows, for labels with gradients; default: the model's own.
        at: which token's early state is read, as a share of the sequence: the last one.

    Raises:
        CalibrationError: no batches, or no loss.
    """
    if not batches:
        raise CalibrationError("Predictors learn from the dense model: give calibration data.")
    early: list[Tensor] = []
    held: dict[str, Tensor] = {}

    def listen(name: str) -> Callable[..., None]:
        def take(module: nn.Module, args: tuple) -> None:
            held[name] = args[0]
            if label.uses_gradient:
                args[0].retain_grad()

        return take

    readers = dict.fromkeys(structures.readers)
    handles: list[Any] = [model.get_submodule(n).register_forward_pre_hook(listen(n)) for n in readers]
    handles.append(
        model.get_submodule(structures.early).register_forward_hook(lambda _m, _a, y: early.append(summary(y, at)))
    )
    rows = []
    try:
        with evaluating(model):
            for batch in batches:
                with torch.set_grad_enabled(label.uses_gradient), sdpa_kernel(SDPBackend.MATH):
                    if label.uses_gradient:
                        parameters = list(model.parameters())
                        saved = [p.grad for p in parameters]
                        (loss or default_loss)(model, batch).backward()
                        for p, grad in zip(parameters, saved, strict=True):
                            p.grad = grad
                    else:
                        call(model, batch)
                rows.append(_labels(structures, held, label))
    finally:
        for handle in handles:
            handle.remove()
    return Labelled(torch.cat(early).float().cpu(), torch.cat(rows).float().cpu())


def summary(output: Any, at: float) -> Float[Tensor, "batch width"]:
    """The early state of a sequence: that of the token at a share of it."""
    hidden = first_tensor(output)
    if hidden is None or hidden.dim() != 3:
        raise ModelError("An early hidden state of batch x tokens x width is needed.")
    return hidden[:, max(0, round(at * hidden.shape[1]) - 1)].detach()


def _labels(structures: Structures, held: Mapping[str, Tensor], label: ImportanceLabel) -> Float[Tensor, "batch units"]:
    found = []
    for place, (coupling, reader) in enumerate(zip(structures.units, structures.readers, strict=True)):
        x = held[reader]
        order = structures.owners(place, x.shape[-1]).argsort(stable=True)
        split = lambda t, o=order, u=coupling.units: t.detach()[..., o].unflatten(-1, (u, -1))  # noqa: E731
        found.append(label(split(x), split(x.grad) if x.grad is not None else None))
    return torch.cat(found, dim=1)
