"""Searches over subnetworks that need no training: the baseline that architecture search has to beat."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn

from sparseworks.core.errors import BudgetError
from sparseworks.core.support import Support
from sparseworks.stream import couplings, select_units
from sparseworks.stream import sites as find_sites
from sparseworks.weights.cycles.watch import copied
from sparseworks.weights.enforce import dropped_masks, impose


@dataclass(frozen=True)
class Drawn:
    """The best of the subnetworks drawn: its supports, its loss, and the losses of all."""

    supports: dict[str, Support]
    loss: float
    losses: tuple[float, ...]


def random_search(
    model: nn.Module,
    loss: Callable[[nn.Module], float],
    *,
    keep: float = 0.5,
    tries: int = 100,
    fresh: Callable[[nn.Module], None] | None = None,
    seed: int = 0,
) -> Drawn:
    """Of `tries` random sets of units (a share `keep` of every coupling), the one whose untrained loss is lowest.

    The model holds the winner's weights afterwards; train it with its supports held. `tries` = 1 is the control, which the winner
    of 100 did not beat on digits (`benchmarks/weights/unit_search.py`).

    Source: Farahani, 2024, arXiv 2403.08265.

    Args:
        loss: of the model as it is.
        fresh: draws the weights anew before every try (torch's generator is seeded); default: they stay.

    Raises:
        BudgetError: no units to choose from, or no tries.
    """
    listed = couplings(model)
    if not listed or tries < 1:
        raise BudgetError(
            f"A search needs coupled units and at least one try; got {len(listed)} couplings, {tries} tries."
        )
    members = {m.site for c in listed for m in c.members}
    sites = [s for s in find_sites(model) if s.name in members]
    start, losses, best = copied(model), [], None
    for number in range(tries):
        generator = torch.Generator().manual_seed(seed * 100_003 + number)
        model.load_state_dict(start)
        if fresh is not None:
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(seed * 100_003 + number)
                fresh(model)
        whole = copied(model)
        supports: dict[str, Support] = {}
        for c in listed:
            shape = {m.site: next(s.shape for s in sites if s.name == m.site) for m in c.members}
            first = c.members[0]
            units = torch.rand(c.units, generator=generator)
            drawn = {name: torch.zeros(s) for name, s in shape.items()}
            drawn[first.site] += _spread(units, first.axis, first.width * first.repeats, shape[first.site])
            for name, support in select_units([c], drawn, keep).items():
                supports[name] = supports[name] & support if name in supports else support
        impose(model, dropped_masks(model, sites, supports))
        losses.append(float(loss(model)))
        if best is None or losses[-1] < best[0]:
            best = (losses[-1], supports, whole)
    assert best is not None
    model.load_state_dict(best[2])
    impose(model, dropped_masks(model, sites, best[1]))
    return Drawn(best[1], best[0], tuple(losses))


def _spread(units: torch.Tensor, axis: str, width: int, shape: tuple[int, int]) -> torch.Tensor:
    along = units.repeat_interleave(width)
    return (along.unsqueeze(1) if axis == "rows" else along.unsqueeze(0)).expand(shape)
