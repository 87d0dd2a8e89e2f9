"""Depth: whole attention or feed-forward parts of blocks go, chosen by evolutionary search on the model's outputs."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import permutations
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from sparseworks.allocate.evolve import Choice, Evolved, Mutate, Stages, evolve, exchange
from sparseworks.core.errors import BudgetError, ModelError
from sparseworks.core.site import Coupling
from sparseworks.core.support import Support
from sparseworks.stream import couplings
from sparseworks.stream import sites as find_sites
from sparseworks.stream.modes import evaluating
from sparseworks.stream.sites import bias_of
from sparseworks.weights.trials import Trials


@dataclass(frozen=True)
class Dropped:
    """Which parts were dropped.

    Attributes:
        parts: names of the couplings, heads of an attention or neurons of a feed-forward layer.
        supports: empty for every site of a dropped part, full for those that stay.
        found: the search: levels 1 for dropped, in the order of the couplings.
    """

    parts: tuple[str, ...]
    supports: dict[str, Support]
    found: Evolved


@torch.no_grad()
def drop_layers(
    model: nn.Module,
    data: Iterable[Any],
    *,
    attention: int = 0,
    feedforward: int = 0,
    generations: int | None = None,
    offspring: int = 32,
    stages: Stages = ((2, 2_048), (1, 32_768)),
    seed: int = 0,
) -> Dropped:
    """Drop that many attention and feed-forward parts so that the outputs stay nearest to the dense model's, in place.

    The search starts from the parts whose loss alone costs least, and exchanges one kept and one dropped part of the same
    kind at a time. A dropped part adds nothing to the residual stream: its output matrix and bias become zero.

    Source: Sieberling et al., 2024, arXiv 2410.14649 (32 offspring, 2 and 1 survivors, about k (n - k) / 1.5 generations
    for k of n parts). Departure: the start; the released search begins at random.

    Raises:
        BudgetError: more parts than there are, or none.
        ModelError: no parts were found.
        CalibrationError: no data.
    """
    kinds = {"head": attention, "neuron": feedforward}
    listed = [c for c in couplings(model) if c.kind in kinds]
    groups = {k: [i for i, c in enumerate(listed) if c.kind == k] for k in kinds}
    if not listed:
        raise ModelError("No attention or feed-forward parts found: see `sparseworks.stream.couplings`.")
    if any(not 0 <= n <= len(groups[k]) for k, n in kinds.items()) or not sum(kinds.values()):
        raise BudgetError(
            f"Cannot drop {attention} of {len(groups['head'])} attention and {feedforward} of {len(groups['neuron'])} "
            "feed-forward parts."
        )
    named = {s.name: s for s in find_sites(model)}
    readers = [named[c.members[-1].site] for c in listed]

    def make(name: str, weight: Float[Tensor, "rows cols"], level: int) -> Float[Tensor, "rows cols"]:
        del name
        return weight * (1 - level)

    with evaluating(model), Trials(model, readers, make, list(data)) as trials:
        start = _cheapest_alone(len(listed), groups, kinds, trials.fitness, stages[-1][1])
        rounds = generations
        if rounds is None:
            rounds = round(sum(n * (len(groups[k]) - n) for k, n in kinds.items()) / 1.5)
        mutate = _swap(groups, len(listed))
        found = evolve(start, mutate, trials.fitness, generations=rounds, offspring=offspring, stages=stages, seed=seed)
    parts = [c for c, level in zip(listed, found.best, strict=True) if level]
    for c in parts:
        reader = named[c.members[-1].site]
        reader.write(model, torch.zeros(reader.shape, dtype=reader.read(model).dtype))
        bias = bias_of(model, reader)
        if bias is not None:
            bias.zero_()
    return Dropped(tuple(c.name for c in parts), _supports(listed, parts, named), found)


def _cheapest_alone(
    count: int, groups: Mapping[str, Sequence[int]], kinds: Mapping[str, int], fitness: Any, tokens: int
) -> Choice:
    chosen: set[int] = set()
    for kind, at in groups.items():
        if kinds[kind]:
            alone = {i: fitness(tuple(int(i == j) for j in range(count)), tokens, 0) for i in at}
            chosen |= set(sorted(at, key=alone.__getitem__)[: kinds[kind]])
    return tuple(int(i in chosen) for i in range(count))


def _swap(groups: Mapping[str, Sequence[int]], count: int) -> Mutate:
    """A dropped part comes back, a kept one of its kind goes."""
    return exchange((pair for at in groups.values() for pair in permutations(at, 2)), [0] * count, [1] * count)


def _supports(listed: Sequence[Coupling], parts: Sequence[Coupling], named: Mapping[str, Any]) -> dict[str, Support]:
    gone = {m.site for c in parts for m in c.members}
    names = {m.site for c in listed for m in c.members}
    return {n: (Support.empty if n in gone else Support.full)(named[n].shape) for n in names}
