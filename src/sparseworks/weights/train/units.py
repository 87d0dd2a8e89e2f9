"""Coupled units of a model in training: which live, how the others stay at zero, and when they are chosen."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol, cast

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.optim import Optimizer

from sparseworks.core.errors import BudgetError
from sparseworks.core.regime import REGIMES, Regime, Training
from sparseworks.core.site import Coupling, Site
from sparseworks.scores.groups import GROUP_SCORES, GroupSums
from sparseworks.stream.groups import Groups
from sparseworks.stream.slicing import dead_entries


class Units:
    """The groups of a run.

    Attributes:
        groups: what makes them.
        alive: which are kept.
        state: what the regime remembers; saved and restored with the run.
    """

    def __init__(self, model: nn.Module, couplings: Sequence[Coupling]):
        self._model, self.groups = model, Groups(model, couplings)
        self.alive = torch.ones(self.groups.total, dtype=torch.bool, device=self.groups.device)
        self.state: dict[str, Tensor] = {}
        self._dead: dict[int, tuple[nn.Parameter, Tensor]] = {}
        self._before: dict[int, Tensor] = {}

    @property
    def kept(self) -> dict[str, Bool[Tensor, " units"]]:
        """Name of the coupling -> which of its units live."""
        return self.groups.by_coupling(self.alive)

    def keep(self, alive: Bool[Tensor, " groups"]) -> None:
        """Make these the living ones, and set the others to zero."""
        self.alive = alive.clone()
        self._dead = {id(p): (p, dead) for p, dead in dead_entries(self._model, self.groups.couplings, self.kept)}
        self.hold()

    @torch.no_grad()
    def hold(self) -> None:
        """Set to zero what is not alive."""
        for parameter, dead in self._dead.values():
            parameter.data.masked_fill_(dead, 0.0)

    def mask(self, site: Site, parameter: nn.Parameter) -> Bool[Tensor, "rows cols"]:
        """True where an entry of the site belongs to living units only."""
        dead = self._dead.get(id(parameter), (parameter, torch.zeros_like(parameter, dtype=torch.bool)))[1]
        return ~site.view(dead)

    @torch.no_grad()
    def remember(self) -> None:
        """Before the optimiser: where the weights are, so that `sums` knows the direction of the step."""
        self._before = {id(p.parameter): p.parameter.detach().clone() for p in self.groups.parts}

    def sums(self, optimizer: Optimizer | None = None) -> GroupSums:
        """Sums over every group; with an optimiser, after its step, of the weights before it and of d = (before - after) / rate."""
        g = self.groups
        x = {id(p.parameter): p.parameter.detach() for p in g.parts} if optimizer is None else self._before
        entries, squares = g.sum(lambda p: torch.ones_like(p)), g.sum(lambda p: x[id(p)].square())
        gammas = (g.sum(lambda p: x[id(p)].abs(), scales=True), g.sum(lambda p: torch.ones_like(p), scales=True))
        if optimizer is None:
            return GroupSums(entries, squares, gammas=gammas)
        rates = {id(p): float(group["lr"]) or 1.0 for group in optimizer.param_groups for p in group["params"]}
        d = {k: (x[k] - p.data) / rates.get(k, 1.0) for k, p in {id(p.parameter): p.parameter for p in g.parts}.items()}
        return GroupSums(
            entries,
            squares,
            g.sum(lambda p: d[id(p)].square()),
            g.sum(lambda p: x[id(p)] * d[id(p)]),
            gammas,
        )

    @torch.no_grad()
    def save_weights(self) -> None:
        """Keep a copy of parameters and buffers, to come back to."""
        self.state |= {f"start.{name}": value.detach().clone() for name, value in self._model.state_dict().items()}

    @torch.no_grad()
    def load_weights(self) -> None:
        """Come back to the copy."""
        for name, value in self._model.state_dict().items():
            value.copy_(self.state[f"start.{name}"])

    def forget_weights(self) -> None:
        """Let go of the copy."""
        self.state = {name: value for name, value in self.state.items() if not name.startswith("start.")}

    def state_dict(self) -> dict[str, Tensor]:
        """Everything needed to go on."""
        return {"alive": self.alive.clone(), **{f"state.{k}": v.clone() for k, v in self.state.items()}}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Go on where `state_dict()` was taken."""
        device = self.alive.device
        self.state = {k.removeprefix("state."): v.clone().to(device) for k, v in state.items() if k != "alive"}
        if not bool(state["alive"].all()):
            self.keep(state["alive"].to(device))


class GroupedTraining(Training, Protocol):
    """What a regime on coupled units sees of its run, beside what others see."""

    @property
    def units(self) -> Units:
        """The groups."""
        ...

    @property
    def steps(self) -> int | None:
        """Optimiser steps of the whole run."""
        ...

    @property
    def loss(self) -> Callable[[], float] | None:
        """While data given to score on are at hand: the mean loss of the model as it is on them."""
        ...

    def keep_units(self, alive: Bool[Tensor, " groups"]) -> None:
        """Make these the units that live."""
        ...


@REGIMES.register("cut_groups")
@dataclass(frozen=True)
class CutGroups(Regime):
    """Dense training until `cut`, then all at once the groups of the lowest scores go, and the rest trains on.

    The budget is a share (or number) of all groups of all couplings, which compete with each other; each coupling keeps some.
    Regimes that prepare the cut are subclasses.

    Attributes:
        score: name of a group score, see `sparseworks.scores.groups`.
        cut: share of the run after which the groups go; 1 = at its end.
        multiple: kept units of a coupling come in multiples of this.
        floor: share of the units of every coupling that stays whatever their scores; at least one unit always does.
    """

    score: str = "norm"
    cut: float = 0.5
    multiple: int = 1
    floor: float = 0.0
    timed = True
    grouped = True

    def __post_init__(self):
        GROUP_SCORES.get(self.score)
        if self.multiple < 1 or not 0 <= self.cut <= 1:
            raise BudgetError(f"`cut` is a share in [0, 1] and `multiple` at least 1, got {self.cut}, {self.multiple}.")
        if not 0 <= self.floor <= 1:
            raise BudgetError(f"`floor` is a share in [0, 1], got {self.floor}.")

    def attach(self, run: Training) -> None:
        """Refuse floors that the budget cannot keep, before anything is trained."""
        if self.floor:
            wanted, most = self.removed(run), on_units(run).units.groups.removable(self.floor, multiple=self.multiple)
            if wanted > most:
                raise BudgetError(
                    f"{wanted} of {on_units(run).units.groups.total} units have to go, and with a floor of {self.floor:.0%} a "
                    f"coupling only {most} can: lower the floor or keep more."
                )

    def begin(self, run: Training) -> None:
        """Cut now, if so asked."""
        if self.cut == 0:
            self.change(run)

    def removed(self, run: Training) -> int:
        """How many groups the budget takes."""
        groups = on_units(run).units.groups
        return groups.total - run.method.budget.total({c.name: c.units for c in groups.couplings})

    def weakest(
        self, run: Training, scores: Float[Tensor, " groups"], count: int, gone: Bool[Tensor, " groups"] | None = None
    ) -> Bool[Tensor, " groups"]:
        """The `count` groups of the lowest scores, by the regime's multiple and floor, among them all that are `gone`."""
        groups = on_units(run).units.groups
        return groups.weakest(scores, count, multiple=self.multiple, floor=self.floor, gone=gone)

    def scored(self, run: Training) -> Float[Tensor, " groups"]:
        """The score of every group as it is now."""
        return GROUP_SCORES.get(self.score)(on_units(run).units.sums())

    def due(self, run: Training) -> bool:
        """Once, at `cut`."""
        return last_step(run) == round(self.cut * total_steps(run)) and bool(on_units(run).units.alive.all())

    def change(self, run: Training) -> None:
        """Cut what is left to cut."""
        units = on_units(run).units
        gone = self.weakest(run, self.scored(run), self.removed(run), ~units.alive)
        if not torch.equal(gone, ~units.alive):
            on_units(run).keep_units(~gone)

    def end(self, run: Training) -> None:
        """Cut, if the run was too short for it."""
        self.change(run)


def on_units(run: Training) -> GroupedTraining:
    """The run as regimes with `grouped` see it."""
    return cast("GroupedTraining", run)


def total_steps(run: Training) -> int:
    """Steps of the run."""
    return on_units(run).steps or 1


def last_step(run: Training) -> int:
    """Number of the step that is being taken, from 1."""
    return run.done + 1
