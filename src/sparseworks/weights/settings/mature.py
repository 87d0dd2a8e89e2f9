"""Units that mature: plastic, candidate, stable. Stable ones depend on stable ones only, and never change."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise

import torch
from jaxtyping import Bool
from torch import Tensor, nn

from sparseworks.core.errors import BudgetError, ModelError
from sparseworks.core.regime import REGIMES, Regime, Trained, Training
from sparseworks.core.schedule import Cadence
from sparseworks.core.score import Score
from sparseworks.core.stats import Stat
from sparseworks.scores import Random, UnitActivity
from sparseworks.scores.training import Activity

PLASTIC, CANDIDATE, STABLE = 0, 1, 2


@REGIMES.register("mature")
@dataclass(frozen=True)
class Mature(Regime):
    """A stage is an episode of `phases` phases of `every` steps, on a chain of layers with rectifiers behind them.

    Before phase t = 2, 3, ... the fewest units of a layer whose activity sums to the share max(tau_t, least) of the layer's,
    tau_t = (1 + cos(pi t / span)) / 2, are chosen; those not stable yet become candidates, the others plastic. Links from plastic units
    to candidates and stable ones are dropped, and as many grow at random, from zero, towards plastic units (fewer where there is no
    room). Plastic units of the last layer put out zero. When the next stage begins, candidates become stable: all that comes
    into them, biases too, is frozen, and plastic units begin anew. So stable units compute what they computed, bit for bit.

    Convolutions count by channel. No normalisation layers: their statistics move. `Sparsifier.next_stage()` also ends the last episode.

    Source: Gurbuz, Moorman and Dovrolis, 2023, arXiv 2305.18563 (SHARP: 10 phases of 3 epochs, span 30, least 0.6 to 0.9). Departures: all
    units are candidates in the first phase (tau is 0.99 there); activity is that of the last step before the phase, what is replayed
    included; plastic units return to their first weights.

    Attributes:
        delay: stages for which stable units still learn (the authors' code: as many as are replayed; then stable units move).
        first: score of the first support.
    """

    every: int = 100
    phases: int = 10
    span: float = 30.0
    least: float = 0.6
    delay: int = 0
    first: Score = field(default_factory=Random)
    emergent = True

    def __post_init__(self):
        if self.every < 1 or self.phases < 1 or self.delay < 0 or not 0 < self.least <= 1:
            raise BudgetError(
                f"Maturing takes every >= 1, phases >= 1, delay >= 0 and `least` in (0, 1], got {self.every}, {self.phases}, "
                f"{self.delay}, {self.least}."
            )

    @property
    def needs(self) -> frozenset[type[Stat]]:  # type: ignore[override]
        """Activity of the units."""
        return frozenset({Activity})

    def attach(self, run: Training) -> None:
        """Silence plastic units of the last layer."""
        last = run.sites[-1]

        def silence(module: nn.Module, args: tuple, output: Tensor) -> Tensor:
            del module, args
            if "age" not in last.state:
                return output
            shape = (-1, *[1] * len(last.site.kernel))
            return output * (last.state["age"] > PLASTIC).reshape(shape).to(output)

        run.at_end(run.model.get_submodule(last.site.module).register_forward_hook(silence).remove)

    @property
    def starts_sparse(self) -> bool:
        """Always."""
        return True

    def begin(self, run: Training) -> None:
        """Random links; every unit may become anything."""
        _check(run.sites)
        run.keep(run.choose(run.scores(self.first), run.counts()))
        for s in run.sites:
            s.state["age"] = torch.full((s.shape[0],), CANDIDATE, device=s.mask.device)
            s.state["start"] = s.weight().clone()
            s.state["phase"] = torch.tensor(1)
            bias = _bias(run, s)
            if bias is not None:
                s.state["start_bias"] = bias.detach().clone()

    def due(self, run: Training) -> bool:
        """Between two phases."""
        return Cadence(self.every)(run.stage_done + 1) and int(run.sites[0].state["phase"]) < self.phases

    def change(self, run: Training) -> None:
        """Candidates and plastic units, and their links."""
        phase = int(run.sites[0].state["phase"]) + 1
        share = max(0.5 * (1 + math.cos(math.pi * phase / self.span)), self.least)
        activity = run.scores(UnitActivity())
        for s in run.sites:
            s.state["phase"] = torch.tensor(phase)
            chosen, age = busiest(activity[s.name][:, 0], share), s.state["age"]
            s.state["age"] = torch.where(age >= STABLE, age, torch.where(chosen, CANDIDATE, PLASTIC))
        noise, masks, sources = run.scores(Random()), {}, None
        for s in run.sites:
            plastic = s.state["age"] == PLASTIC
            stay = s.mask if sources is None else s.mask & (plastic[:, None] | ~inputs_of(s, sources)[None])
            masks[s.name] = _regrown(stay, int((s.mask & ~stay).sum()), plastic, noise[s.name])
            sources = plastic
        run.keep(masks)

    def enter(self, run: Training) -> None:
        """Candidates mature, plastic units begin anew."""
        for s in run.sites:
            age, bias = s.state["age"], _bias(run, s)
            plastic, age = age == PLASTIC, torch.where(age >= CANDIDATE, age + 1, age)
            s.put(torch.where(plastic[:, None], s.state["start"] * s.mask, s.weight()))
            still = age >= STABLE + self.delay
            marks = {s.name: still[:, None].expand(s.shape)}
            if bias is not None:
                with torch.no_grad():
                    bias.copy_(torch.where(plastic, s.state["start_bias"], bias))
                marks[f"{s.site.module}.bias"] = still
            run.freeze(marks)
            s.state["age"] = torch.where(plastic, CANDIDATE, age)
            s.state["phase"] = torch.tensor(1)


def busiest(activity: Tensor, share: float) -> Bool[Tensor, " units"]:
    """The fewest units whose activity sums to at least `share` of the whole."""
    order = activity.argsort(descending=True, stable=True)
    below = activity[order].cumsum(0) - activity[order]  # what those before have gathered
    chosen = torch.zeros(activity.shape, dtype=torch.bool, device=activity.device)
    chosen[order] = below < share * activity.sum()
    return chosen


def stable_units(run: Training, stages: int = 0) -> Bool[Tensor, " units"]:
    """Units of the last layer that have been stable for `stages` stages at least."""
    return run.sites[-1].state["age"] >= STABLE + stages


def inputs_of(site: Trained, units: Bool[Tensor, " units"]) -> Bool[Tensor, " cols"]:
    """Marks of the units of the layer before, as marks of this site's inputs."""
    times = site.shape[1] // len(units)
    return units.repeat(times) if site.site.kernel else units.repeat_interleave(times)


def _regrown(stay: Tensor, wanted: int, plastic: Tensor, noise: Tensor) -> Bool[Tensor, "rows cols"]:
    """`stay` and up to `wanted` more links into plastic units."""
    free = plastic[:, None] & ~stay
    best = noise.masked_fill(~free, -torch.inf).flatten().argsort(descending=True, stable=True)
    grown = torch.zeros_like(stay).flatten()
    grown[best[: min(wanted, int(free.sum()))]] = True
    return stay | grown.reshape(stay.shape)


def _bias(run: Training, site: Trained) -> nn.Parameter | None:
    return getattr(run.model.get_submodule(site.site.module), "bias", None)


def _check(sites: Sequence[Trained]) -> None:
    for before, site in pairwise(sites):
        if site.shape[1] % before.shape[0] or before.site.expert is not None or before.site.rows is not None:
            raise ModelError(
                f"Units mature in a chain of layers: {site.name!r} has {site.shape[1]} inputs, the layer before it, "
                f"{before.name!r}, {before.shape[0]} units. Leave other layers out with `skip`."
            )
