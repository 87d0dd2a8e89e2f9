"""Mixed bit-widths: how many bits each matrix gets, searched on the model's outputs at an exact size."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import permutations
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from sparseworks.allocate.evolve import Evolved, Mutate, Stages, evolve, exchange
from sparseworks.core.errors import BudgetError, ModelError, PatternError
from sparseworks.core.site import Site
from sparseworks.exec.int4 import from_int4, to_int4
from sparseworks.stream import sites as find_sites
from sparseworks.stream.modes import evaluating
from sparseworks.weights.trials import Trials


@dataclass(frozen=True)
class MixedBits:
    """Bits of every site, and the search that found them."""

    bits: dict[str, int]
    found: Evolved


def rounded_to(weight: Float[Tensor, "rows cols"], bits: int, group: int) -> Float[Tensor, "rows cols"]:
    """Every `group` inputs of a row to 2^bits levels between their smallest and largest, 0 among them."""
    groups = weight.reshape(-1, group)
    return from_int4(*to_int4(groups, 2**bits - 1)).reshape(weight.shape).to(weight)


@torch.no_grad()
def search_bits(
    model: nn.Module,
    data: Iterable[Any],
    *,
    bits: int = 3,
    least: int = 2,
    most: int = 8,
    group: int = 32,
    generations: int = 50,
    offspring: int = 64,
    stages: Stages = ((8, 2_048), (2, 16_384), (1, 65_536)),
    seed: int = 0,
) -> MixedBits:
    """Round every site, `bits` a weight on average, so that the outputs stay nearest to the dense model's; in place.

    Mutations take a bit from one site and give it to another of the same size, so the size stays exact.

    Source: Sieberling et al., 2024, arXiv 2410.14649 (there on levels made by GPTQ; here on levels rounded to the nearest).

    Args:
        group: inputs that share a scale.

    Raises:
        BudgetError: bits out of order or outside 1 to 8.
        PatternError: `group` does not divide the inputs of a site.
        ModelError: the model has no sites.
    """
    if not 1 <= least <= bits <= most <= 8:
        raise BudgetError(f"Bits need 1 <= least <= bits <= most <= 8, got {least}, {bits}, {most}.")
    listed = find_sites(model)
    if not listed:
        raise ModelError("There is nothing to round: the model has no sites.")
    uneven = [s for s in listed if s.shape[1] % group]
    if uneven:
        raise PatternError(f"Site {uneven[0].name!r} has {uneven[0].shape[1]} inputs, not a multiple of {group}.")
    with evaluating(model), Trials(model, listed, lambda _, w, b: rounded_to(w, b, group), list(data)) as trials:
        found = evolve(
            (bits,) * len(listed), _trade(listed, least, most), trials.fitness, generations=generations, offspring=offspring,
            stages=stages, seed=seed,
        )  # fmt: skip
    chosen = {s.name: b for s, b in zip(listed, found.best, strict=True)}
    for s in listed:
        s.write(model, rounded_to(s.read(model), chosen[s.name], group))
    return MixedBits(chosen, found)


def _trade(sites: Sequence[Site], least: int, most: int) -> Mutate:
    """A bit goes from one site to another of the same size."""
    pairs = [(i, j) for i, j in permutations(range(len(sites)), 2) if sites[i].size == sites[j].size]
    return exchange(pairs, [least] * len(sites), [most] * len(sites))
