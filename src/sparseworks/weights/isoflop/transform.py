"""Iso-FLOP transformations: layers become larger and sparse, and multiply as often as before."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatch

import torch
from torch import nn

from sparseworks.allocate import Proportional
from sparseworks.core.budget import Count, even_split
from sparseworks.core.errors import BudgetError, ModelError
from sparseworks.core.method import Method
from sparseworks.core.registry import Registry
from sparseworks.core.site import Site
from sparseworks.exec.layers import why_not
from sparseworks.stream import couplings
from sparseworks.stream import sites as find_sites
from sparseworks.weights.isoflop.fresh import sizes
from sparseworks.weights.isoflop.layers import DopedLayer, FactorisedLayer, ParallelLayer, larger
from sparseworks.weights.isoflop.widen import widen_units


@dataclass(frozen=True)
class Enlarged:
    """One layer of the dense model and what became of it.

    Attributes:
        name: of the layer.
        dense: its multiplications at one position: outputs x inputs (x positions of a window).
        kept: site of the new model -> entries it keeps.
        extra: entries beside them that are dense.
    """

    name: str
    dense: int
    kept: Mapping[str, int]
    extra: int = 0

    @property
    def multiplications(self) -> int:
        """Of all parts at one position; equal to `dense`."""
        return sum(self.kept.values()) + self.extra


Transform = Callable[[nn.Module, Sequence[Site], float], list[Enlarged]]
"""`transform(model, sites, sparsity)` changes the model in place and says what every layer became."""

TRANSFORMS: Registry[Transform] = Registry("iso-FLOP transformation")


@dataclass(frozen=True)
class IsoFlop:
    """A model with larger sparse layers that multiplies as often as the dense one.

    Attributes:
        model: ready to be trained; give its parameters to the optimiser.
        layers: what changed.
    """

    model: nn.Module
    layers: tuple[Enlarged, ...]

    @property
    def sites(self) -> list[Site]:
        """What is to be sparse."""
        named = {s.name: s for s in find_sites(self.model, include=["*"])}
        return [named[name] for layer in self.layers for name in layer.kept]

    def method(self, method: Method | str = "sparse_ift") -> Method:
        """The method with the budget and the shares that make the multiplications equal; any that takes a budget will do."""
        method = Method.of(method)
        kept = [(name, count) for layer in self.layers for name, count in layer.kept.items()]
        return method.with_(budget=Count(sum(count for _, count in kept)), allocate=Proportional(tuple(kept)))


def isoflop(
    model: nn.Module, transform: str = "wide", *, sparsity: float = 0.75, skip: Sequence[str] = (), seed: int = 0
) -> IsoFlop:
    """Exchange dense layers for larger sparse ones of the same cost (Thangarasa et al., 2023, arXiv 2303.11525). For training from scratch.

    found = sw.isoflop(model, "wide", sparsity=0.75)
    optimizer = torch.optim.SGD(found.model.parameters(), lr=0.1)
    run = sw.Sparsifier(found.model, found.method(), optimizer, steps=steps, sites=found.sites)

    - "wide": 1 / sqrt(1 - s) times as many inner units (channels between convolutions, neurons between layers; the width
      of a residual stream stays);
    - "parallel": 1 / (1 - s) sparse branches with norms of their own, summed;
    - "factorised": in -> d' -> out, d' = in out / ((1 - s) (in + out)), a non-linearity in between;
    - "doped": sparse, beside a dense product of rank s in out / (in + out).

    Every layer keeps exactly so many entries that its multiplications are those of the dense layer; the authors' density is
    1 - s throughout, which comes to the same up to rounding, except where only one side of a layer is wider: there ours
    keeps the cost. They leave the first and the last layer and shortcuts as they are: name them in `skip`.

    Args:
        model: any module, left as it is; the new layers start from random weights.
        sparsity: s, at least 0 and below 1.
        skip: shell-style patterns of site names; their layers stay.
        seed: of the new weights.

    Raises:
        BudgetError: a sparsity out of range, or too high for a layer.
        ModelError: nothing to enlarge, or a layer that cannot be exchanged.
        UnknownNameError: no such transformation.
    """
    change = TRANSFORMS.get(transform)
    if not 0.0 < sparsity < 1.0:
        raise BudgetError(f"A sparsity above 0 and below 1 is needed to make layers larger, got {sparsity}.")
    twin = copy.deepcopy(model)
    chosen = [s for s in find_sites(twin) if not any(fnmatch(s.name, text) for text in skip)]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        layers = change(twin, chosen, sparsity) if chosen else []
    if not layers:
        raise ModelError(
            f"The model has no layers that {transform!r} could enlarge, or `skip` leaves all of them out"
            + (": inner units are found between the layers of an nn.Sequential, and by the names of feed-forward layers."
               if transform == "wide" else ".")
        )  # fmt: skip
    return IsoFlop(twin, tuple(layers))


@TRANSFORMS.register("wide")
def wide(model: nn.Module, sites: Sequence[Site], sparsity: float) -> list[Enlarged]:
    """More inner units; every layer at one of their ends keeps as many entries as it had."""
    listed = [c for c in couplings(model, sites) if c.kind != "head"]
    before = {s.name: s for s in sites}
    grown = widen_units(model, listed, before, (1 - sparsity) ** -0.5)
    return [Enlarged(s.module, s.size, {s.name: s.size}) for s in sites if s.name in grown]


def exchanged(kind: type[nn.Module]) -> Transform:
    """The transformation that puts a `kind` in the place of every layer."""

    def change(model: nn.Module, sites: Sequence[Site], sparsity: float) -> list[Enlarged]:
        found = []
        for name in dict.fromkeys(s.module for s in sites):
            reason = why_not(model, name) if name else "it is the model itself"
            if reason:
                raise ModelError(f"Layer {name!r} cannot be exchanged: {reason}. Name it in `skip`.")
            found.append(_exchange(model, name, kind, sparsity))
        return found

    return change


def _exchange(model: nn.Module, name: str, kind: type[nn.Module], sparsity: float) -> Enlarged:
    layer = model.get_submodule(name)
    out, width = sizes(layer)
    made, parts = larger(kind, layer, sparsity)
    entries = [made.get_parameter(f"{part}.weight").numel() for part in parts.sparse]
    kept = even_split(min(out * width - parts.extra, sum(entries)), entries)
    parent, _, child = name.rpartition(".")
    setattr(model.get_submodule(parent), child, made)
    return Enlarged(name, out * width, {f"{name}.{p}": k for p, k in zip(parts.sparse, kept, strict=True)}, parts.extra)


for _name, _kind in (("parallel", ParallelLayer), ("factorised", FactorisedLayer), ("doped", DopedLayer)):
    TRANSFORMS.register(_name)(exchanged(_kind))
