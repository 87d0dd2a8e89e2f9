"""Training made sparse by two lines: a sparsifier beside the optimiser."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils.hooks import RemovableHandle

from sparseworks.core.allocator import Evidence
from sparseworks.core.errors import CheckpointError, ModelError
from sparseworks.core.method import METHODS, Method
from sparseworks.core.regime import ACROSS, Counts, Regime, Trained, Training
from sparseworks.core.score import Score
from sparseworks.core.select import select_mask
from sparseworks.core.site import Coupling, Site
from sparseworks.core.stats import Stat, Stats, WeightGradient
from sparseworks.core.support import Support
from sparseworks.stream.couplings import couplings as find_couplings
from sparseworks.stream.gradients import Loss
from sparseworks.stream.slicing import slice_units
from sparseworks.weights.decide import Job, across, gather_evidence
from sparseworks.weights.factors.shadow import on_factors, open_sites
from sparseworks.weights.prune import prune, reseeded
from sparseworks.weights.streaming import evaluating
from sparseworks.weights.train.checks import check, chosen, unwrapped
from sparseworks.weights.train.frozen import Frozen
from sparseworks.weights.train.hold import Hold
from sparseworks.weights.train.slot import Place, Slot, forget, group_of, local, local_like, project
from sparseworks.weights.train.units import Units
from sparseworks.weights.train.watch import Watch


@dataclass(frozen=True)
class Event:
    """One change of the supports: after which step, entries kept, and how many left and came."""

    step: int
    kept: int
    dropped: int
    grown: int


class Sparsifier:
    """Makes training sparse: `step()` once after every `optimizer.step()`.

    sparsifier = sw.Sparsifier(model, "rigl", optimizer, steps=10_000)
    for batch in data:
        loss(model, batch).backward(); optimizer.step(); sparsifier.step(); optimizer.zero_grad()
    supports = sparsifier.finish()

    Supports are re-imposed by hooks of the optimiser, whatever it is, and change in `step()`. A step that the optimiser
    leaves out (mixed precision with infinite gradients) does not count.

    Attributes:
        done: optimiser steps that were followed by `step()`.
        stage: stages that were begun by `next_stage()`.
        history: every change of the supports.
        frozen: entries that keep their value.
    """

    def __init__(
        self,
        model: nn.Module,
        method: Method | str,
        optimizer: Optimizer,
        *,
        steps: int | None = None,
        sites: Sequence[Site] | None = None,
        skip: Sequence[str] = (),
        couplings: Sequence[Coupling] | None = None,
        data: Iterable[Any] | None = None,
        loss: Loss | None = None,
        seed: int = 0,
        state: Mapping[str, Any] | None = None,
    ):
        """Choose the first supports and take hold of the optimiser.

        Args:
            model: any module; data-parallel and compiled wrappers are looked through, parameters may be sharded by FSDP2.
            method: a method or its name. Without a regime of training it prunes now, with `data` where it needs them, and
                the supports are held.
            steps: optimiser steps of the whole run, or of the first stage; needed by methods whose supports change with its progress.
            sites: default: all that `sparseworks.sites(model)` lists; for a method with a form its opened sparse factors.
            skip: shell-style patterns of site names that stay dense.
            couplings: units that live or die together, for methods that remove those; default: what `stream.couplings(model)`
                finds; for networks of convolutions give `stream.dependency_groups(model, example)`.
            data, loss: for methods that prune now, see `sparseworks.prune`; others score their first supports on it.
            seed: of every random part.
            state: a `state_dict()` to go on with, of a run with the same arguments; model and optimiser are loaded already.

        Raises:
            ModelError: there is nothing to make sparse, or the optimiser does not hold a site's parameter.
            BudgetError: the method needs `steps`, or its allocation needs statistics that training does not give.
            MissingStatError: a score needs statistics that training does not give.
        """
        method = METHODS.get(method) if isinstance(method, str) else method
        model = unwrapped(model)
        if method.form is not None:
            method, sites = on_factors(method, model), open_sites(model) if sites is None else sites
        self.method = reseeded(method, seed)
        self.model, self.optimizer, self.steps, self.seed = model, optimizer, steps, seed
        self.regime: Regime = self.method.train or Hold()
        self.done = self.stage = self._since = 0
        self.history: list[Event] = []
        self.frozen = Frozen(model)
        listed = chosen(model, sites, skip)
        check(self.method, self.regime, optimizer, model, listed, steps, fed=data is not None)
        self._slots = {s.parameter: Slot(s.parameter, s.tensor(model)) for s in listed}
        self.sites = [
            Place(s, self._slots[s.parameter], torch.ones(s.shape, dtype=torch.bool, device=s.tensor(model).device))
            for s in listed
        ]
        self._units = (
            Units(model, find_couplings(model) if couplings is None else couplings) if self.regime.grouped else None
        )
        self._pending, self._stale = False, True
        self._members = {n: [p for p in self.sites if p.slot is slot] for n, slot in self._slots.items()}
        self._undo: list[Callable[[], None]] = []
        needs = self.method.score.needs | self.regime.needs if self.method.train else frozenset()
        self._watch = Watch(model, listed, needs)
        self._final: Counts = {} if self._prunes_now else self._counted(listed)
        self._handles: list[RemovableHandle] = []
        self._measured: Mapping[str, Stats] = {}
        if self.regime.dense:
            for slot in self._slots.values():
                slot.master = local(slot.parameter.detach()).clone()
        self.regime.attach(self)
        if state is not None:
            if any(place.learned for place in self.sites):
                raise CheckpointError(
                    f"Method {self.method.name!r} trains parameters of its own, whose optimiser state was not loaded: build the "
                    f"sparsifier without `state`, load the optimiser, then `sparsifier.load_state_dict(state)`."
                )
            self.load_state_dict(state)
        elif self._prunes_now:
            found = prune(model, self.method, data, sites=listed, loss=loss, progress=False)
            self.keep({p.name: found.supports[p.name].mask().to(p.mask.device) for p in self.sites})
        else:
            self._on_data(self.regime.begin, data, loss)
        self._refresh()
        self._watch.start(lambda: self.regime.due(self))
        self._handles = [
            optimizer.register_step_pre_hook(self._before),
            optimizer.register_step_post_hook(lambda *_: self._after()),
        ]

    # -- what the user calls --------------------------------------------------------------------------------------

    def step(self) -> Event | None:
        """Count the optimiser step just taken, and change the supports where that is due.

        Returns:
            What changed, or None.
        """
        if not self._pending:
            return None
        self._pending = False
        due, before = self.regime.due(self), len(self.history)
        self.done += 1
        if due:
            self._watch.agree()
            self.regime.change(self)
            self._refresh()
        for place in self.sites:
            place.remembered = None
        if due:
            self._watch.reset()
        return self.history[-1] if len(self.history) > before else None

    def next_stage(
        self, steps: int | None = None, data: Iterable[Any] | None = None, loss: Loss | None = None
    ) -> Event | None:
        """Something outside began: a task, a round of federated training, a megabatch of a stream, a target update.

        Progress counts from 0 again; the regime may choose other supports.

        Args:
            steps: optimiser steps of the stage; default: as many as the one before.
            data, loss: batches on which scores are measured, the same on all ranks, see `sparseworks.prune`; default: training
                gives what it gives.

        Returns:
            What changed, or None.

        Raises:
            MissingStatError: a score needs statistics, and there are no `data`.
        """
        before, self._since, self.steps = len(self.history), self.done, steps or self.steps
        self.stage += 1
        self._on_data(self.regime.enter, data, loss)
        self._refresh()
        return self.history[-1] if len(self.history) > before else None

    def freeze(self, marks: Mapping[str, Bool[Tensor, "..."]]) -> None:
        """Let the marked entries keep the value they have now, bit for bit, to the end; outside the support they are hidden, not lost.

        Args:
            marks: of sites by their names, `(rows, cols)`, and of other parameters by theirs, in their own layout.

        Raises:
            ModelError: no site or parameter of that name, or a sharded parameter.
            ShapeError: a mark does not fit.
        """
        sites = {place.name: place for place in self.sites}
        for name, mark in marks.items():
            if name in sites:
                self.frozen.add_site(sites[name], mark)
            else:
                self.frozen.add(name, mark)

    def finish(self) -> dict[str, Support]:
        """Bring the model to its final sparsity, let go of the optimiser, and return the supports (`io.save` takes them)."""
        self.regime.end(self)
        for place in self.sites:
            place.put(torch.where(place.mask, place.weight(), 0.0))
        for slot in self._slots.values():
            local(slot.parameter.data).copy_(slot.dense)
            slot.master = None
        for place in self.sites:
            for parameter in place.learned.values():
                forget(self.optimizer, parameter)
        for undo in [*(handle.remove for handle in self._handles), *reversed(self._undo)]:
            undo()
        if self._units is not None:
            self._units.hold()
        self._undo.clear()
        self._watch.close()
        return self.supports

    def slice(self) -> dict[str, Bool[Tensor, " units"]]:
        """After `finish()`: cut the coupled units that are gone out of the model, in place; which units each coupling keeps.

        Raises:
            ModelError: the method does not remove coupled units, or a member cannot be cut.
        """
        slice_units(self.model, self.units.groups.couplings, self.units.kept)
        return self.units.kept

    @property
    def supports(self) -> dict[str, Support]:
        """Site name -> what is kept now."""
        return {place.name: Support.from_mask(place.mask) for place in self.sites}

    @property
    def density(self) -> float:
        """Share of all entries of the sites that is kept now."""
        return sum(int(p.mask.sum()) for p in self.sites) / max(sum(p.site.size for p in self.sites), 1)

    def state_dict(self) -> dict[str, Any]:
        """Everything needed to go on bit for bit, beside the state of the model and of the optimiser; tensors and plain data.

        With sharded parameters all ranks call it, and each gets the whole.
        """
        return {
            "method": self.method.to_config(),
            "done": self.done,
            "stage": (self.stage, self._since, self.steps),
            "history": [(e.step, e.kept, e.dropped, e.grown) for e in self.history],
            "supports": {p.name: Support.from_mask(p.mask).bits() for p in self.sites},
            "states": {p.name: {k: v.clone() for k, v in p.state.items()} for p in self.sites},
            "learned": {p.name: {k: v.detach().clone() for k, v in p.learned.items()} for p in self.sites},
            "masters": {n: s.full().clone() for n, s in self._slots.items() if s.master is not None},
            "frozen": self.frozen.state(),
            "units": {} if self._units is None else self._units.state_dict(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where `state_dict()` was taken; load model and optimiser first.

        Raises:
            CheckpointError: the state is of another method or of a model with other sites.
        """
        known = {p.name for p in self.sites}
        if state.get("method") != self.method.to_config() or set(state.get("supports", ())) != known:
            raise CheckpointError(
                f"The state is of method {state.get('method')} on {len(state.get('supports', ()))} sites, this run of "
                f"{self.method.to_config()} on {len(self.sites)}; build the sparsifier with the same arguments."
            )
        self.done, self._stale = int(state["done"]), True
        self.stage, self._since, self.steps = state.get("stage", (0, 0, self.steps))
        self.frozen.load(state.get("frozen", {}))
        self.history = [Event(*entry) for entry in state["history"]]
        for place in self.sites:
            place.mask = Support.from_bits(state["supports"][place.name], place.shape).mask().to(place.mask.device)
            place.state = {k: v.clone().to(place.mask.device) for k, v in state["states"][place.name].items()}
            for key, value in state["learned"][place.name].items():
                place.learned[key].data.copy_(value)
        if self._units is not None:
            self._units.load_state_dict(state["units"])
        for name, master in state["masters"].items():
            self._slots[name].store(master.to(self._slots[name].parameter.device))
        self._refresh()

    @property
    def _prunes_now(self) -> bool:
        return self.method.train is None and bool(self.method.needs or self.method.evidence_needs)

    # -- what a regime sees ---------------------------------------------------------------------------------------

    @property
    def progress(self) -> float:
        """Share of the stage that is done, in [0, 1]; a run without stages is one."""
        return min(self.stage_done / self.steps, 1.0) if self.steps else 0.0

    @property
    def stage_done(self) -> int:
        """Optimiser steps finished in the stage."""
        return self.done - self._since

    @property
    def measured(self) -> bool:
        """Whether scores are those of data given for the purpose."""
        return bool(self._measured)

    @property
    def units(self) -> Units:
        """The coupled units, of a method that removes those.

        Raises:
            ModelError: the method does not.
        """
        if self._units is None:
            raise ModelError(f"Method {self.method.name!r} makes entries sparse, not coupled units.")
        return self._units

    @torch.no_grad()
    def keep_units(self, alive: Bool[Tensor, " groups"]) -> None:
        """Make these the units that live: all that belongs to the others becomes zero and stays so."""
        self.units.keep(alive)
        self.keep({p.name: p.mask & self.units.mask(p.site, p.parameter) for p in self.sites})

    def learn(self, site: Trained, name: str, start: Tensor) -> None:
        """Let the optimiser train `site.learned[name]` in the group of the site's parameter."""
        site.learned[name] = nn.Parameter(start.detach().clone())
        group_of(self.optimizer, site.parameter)["params"].append(site.learned[name])

    def at_end(self, undo: Callable[[], None]) -> None:
        """Call `undo` in `finish`."""
        self._undo.append(undo)

    def scores(
        self, score: Score | None = None, known: Mapping[str, Sequence[Stat]] | None = None
    ) -> dict[str, Float[Tensor, "rows cols"]]:
        """The scores of every site, by the method's own score or by another; random ones are drawn anew at every step."""
        chosen = reseeded(score or self.method.score, self.done)
        found = {}
        for place in self.sites:
            seen = self._measured.get(place.name) or self._watch.stats[place.name]
            stats = Stats([*(known or {}).get(place.name, ()), *seen], site=place.name)
            if WeightGradient in chosen.needs and WeightGradient not in stats:
                gradient = WeightGradient(*place.shape)
                gradient.update(place.gradient())
                stats = Stats([*stats, gradient], site=place.name)
            found[place.name] = chosen(place.weight(), stats).to(place.mask.device)
        return found

    def counts(self, share: float = 1.0) -> Counts:
        """What is kept when `share` of the final sparsity is reached."""
        pattern = self.method.pattern
        if pattern.fixed_density is not None:
            return {p.name: pattern.counts(p.shape, None) for p in self.sites}
        if pattern.across:
            size = sum(p.site.size for p in self.sites)
            return {ACROSS: size - ((size - self._final[ACROSS]).double() * share).round().long()}
        return {p.name: pattern.counts(p.shape, _left(p.site.size, self._final[p.name], share)) for p in self.sites}

    def choose(self, scores: Mapping[str, Tensor], counts: Counts) -> dict[str, Bool[Tensor, "rows cols"]]:
        """The best of every group, by the method's pattern."""
        if self.method.pattern.across:
            return across(self.method.pattern, scores, int(counts[ACROSS]))
        return {name: select_mask(s, self.method.pattern, counts[name]) for name, s in scores.items()}

    @torch.no_grad()
    def keep(self, masks: Mapping[str, Bool[Tensor, "rows cols"]]) -> None:
        """Make these the supports; what leaves becomes zero, and the optimiser's state of all that changes is cleared."""
        moved = {p.name: masks[p.name] ^ p.mask for p in self.sites}
        dropped = sum(int((moved[p.name] & p.mask).sum()) for p in self.sites)
        grown = sum(int((moved[p.name] & masks[p.name]).sum()) for p in self.sites)
        self._stale = True
        for place in self.sites:
            place.mask = masks[place.name]
        if not self.regime.dense:
            for slot, at in self._marks(moved):
                slot.clear(self.optimizer, at)
        if dropped or grown:
            self.history.append(Event(self.done, sum(int(p.mask.sum()) for p in self.sites), dropped, grown))

    # -- around the optimiser -------------------------------------------------------------------------------------

    def _before(
        self, _optimizer: Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        """Gradients are there now, or a closure is about to compute them (LBFGS, Lightning)."""
        if self._pending:
            raise ModelError("The optimiser takes a second step before `sparsifier.step()`: call it after every step.")
        given = list(args)
        closure = given[1] if len(given) > 1 else kwargs.get("closure")
        if closure is None:
            self._lend()
            return None
        lent = False

        def computing() -> Any:
            nonlocal lent
            if lent:
                self._take_back()
            loss = closure()
            self._lend()
            lent = True
            return loss

        return (given[0], computing, *given[2:]), {k: v for k, v in kwargs.items() if k != "closure"}

    @torch.no_grad()
    def _lend(self) -> None:
        """Show the optimiser the weights it trains, and gradients of them."""
        for slot in self._slots.values():
            if slot.master is not None:
                local(slot.parameter.data).copy_(slot.master)
        self.frozen.still()
        if self.regime.due(self):
            for place in self.sites:
                if place.slot.parameter.grad is not None:
                    place.remembered = None
                    place.remembered = place.gradient().clone()
        self.regime.before(self)
        if not self.regime.dense:
            for slot in self._slots.values():
                if slot.parameter.grad is not None and slot.dropped is not None:
                    local(slot.parameter.grad).masked_fill_(slot.dropped, 0.0)

    @torch.no_grad()
    def _take_back(self) -> None:
        for slot in self._slots.values():
            if slot.master is not None:
                slot.master.copy_(local(slot.parameter.data))
        self._refresh()

    @torch.no_grad()
    def _after(self) -> None:
        for slot in self._slots.values():
            if slot.master is not None:
                slot.master.copy_(local(slot.parameter.data))
        self.regime.after(self)
        self._refresh()
        self._pending = True

    @torch.no_grad()
    def _refresh(self) -> None:
        """Let the parameters hold what the model computes with."""
        if self._stale:
            for slot, at in self._marks({p.name: ~p.mask for p in self.sites}):
                slot.dropped = at
            self._stale = False
        self.frozen.restore({name: slot.dense for name, slot in self._slots.items()})
        for name, slot in self._slots.items():
            if slot.master is not None:
                project(slot, [(p, self.regime.project(self, p)) for p in self._members[name]])
            elif slot.dropped is not None:
                local(slot.parameter.data).masked_fill_(slot.dropped, 0.0)
        if self._units is not None:
            self._units.hold()

    def _on_data(self, act: Callable[[Training], None], data: Iterable[Any] | None, loss: Loss | None) -> None:
        """Let the regime act with the statistics of `data` in place of those of the last step."""
        if data is not None:
            listed, needs = [place.site for place in self.sites], self.method.score.needs | self.regime.needs
            job = Job(self.model, [(self.method, listed)], [], list(data), loss)
            measured = needs - self.regime.gives
            with evaluating(self.model):
                self._measured = gather_evidence(job, {site.name: measured for site in listed})
        try:
            act(self)
        finally:
            self._measured = {}

    def _marks(self, at: Mapping[str, Bool[Tensor, "rows cols"]]) -> list[tuple[Slot, Bool[Tensor, "..."]]]:
        """Marks of sites, laid out like the parameters (this rank's part)."""
        found = []
        for name, slot in self._slots.items():
            mark = torch.zeros(slot.parameter.shape, dtype=torch.bool, device=slot.dense.device)
            for place in self._members[name]:
                place.site.put(mark, at[place.name])
            found.append((slot, local_like(mark, slot.parameter)))
        return found

    def _counted(self, listed: Sequence[Site]) -> Counts:
        method, sizes = self.method, {s.name: s.size for s in listed}
        if method.pattern.fixed_density is not None:
            return {}
        if method.pattern.across:
            return {ACROSS: torch.tensor([method.budget.total(sizes)])}
        evidence = Evidence(
            weight=lambda name: next(p for p in self.sites if p.name == name).weight(), score=method.score
        )
        counts = method.allocate(listed, method.budget, evidence=evidence)
        return {name: torch.tensor([count]) for name, count in counts.items()}


def _left(size: int, final: Tensor, share: float) -> int:
    return size - round((size - int(final)) * share)
