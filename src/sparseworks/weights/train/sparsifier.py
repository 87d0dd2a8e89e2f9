"""Training made sparse by two lines: a sparsifier beside the optimiser."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Bool
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils.hooks import RemovableHandle

from sparseworks.core.errors import CheckpointError, ModelError
from sparseworks.core.method import Method
from sparseworks.core.site import Coupling, Site
from sparseworks.core.support import Support
from sparseworks.stream.couplings import couplings as find_couplings
from sparseworks.stream.gradients import Loss
from sparseworks.stream.slicing import slice_units
from sparseworks.weights.factors.shadow import on_factors, open_sites
from sparseworks.weights.prune import prune, reseeded
from sparseworks.weights.train.checks import check, chosen, unwrapped
from sparseworks.weights.train.frozen import Frozen
from sparseworks.weights.train.hold import Hold
from sparseworks.weights.train.hooked import Hooked
from sparseworks.weights.train.run import Event
from sparseworks.weights.train.slot import Place, Slot, forget, local
from sparseworks.weights.train.units import Units
from sparseworks.weights.train.watch import Watch


class Sparsifier(Hooked):
    """Makes training sparse: `step()` once after every `optimizer.step()`.

    sparsifier = sw.Sparsifier(model, "rigl", optimizer, steps=10_000)
    for batch in data:
        loss(model, batch).backward(); optimizer.step(); sparsifier.step(); optimizer.zero_grad()
    supports = sparsifier.finish()

    Supports are re-imposed by hooks of the optimiser, whatever it is, and change in `step()`. A step that the optimiser
    leaves out (mixed precision with infinite gradients) does not count.
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
        method = Method.of(method)
        model = unwrapped(model)
        if method.form is not None:
            method, sites = on_factors(method, model), open_sites(model) if sites is None else sites
        self.method = reseeded(method, seed)
        self.model, self.optimizer, self.steps, self.seed = model, optimizer, steps, seed
        self.regime = self.method.train or Hold()
        self.done = self.stage = self._since = 0
        self.history, self.frozen = [], Frozen(model)
        self._pending, self._stale = False, True
        self._undo, self._measured, self._loss = [], {}, None
        listed = chosen(model, sites, skip)
        check(self.method, self.regime, optimizer, model, listed, steps, fed=data is not None)
        self._place(listed, couplings)
        self.regime.attach(self)
        self._begin(listed, data, loss, state)
        self._refresh()
        self._watch.start(lambda: self.regime.due(self))
        self._handles: list[RemovableHandle] = [
            optimizer.register_step_pre_hook(self._before),
            optimizer.register_step_post_hook(lambda *_: self._after()),
        ]

    def _place(self, listed: Sequence[Site], couplings: Sequence[Coupling] | None) -> None:
        """Sites and what holds them, all of them dense; how many entries each is to keep, and what its scores see."""
        model = self.model
        self._slots = {s.parameter: Slot(s.parameter, s.tensor(model)) for s in listed}
        self.sites = [
            Place(s, self._slots[s.parameter], torch.ones(s.shape, dtype=torch.bool, device=s.tensor(model).device))
            for s in listed
        ]
        self._members = {n: [p for p in self.sites if p.slot is slot] for n, slot in self._slots.items()}
        self._units = (
            Units(model, find_couplings(model) if couplings is None else couplings) if self.regime.grouped else None
        )
        needs = self.method.score.needs | self.regime.needs if self.method.train else frozenset()
        self._watch = Watch(model, listed, needs)
        self._final = {} if self._prunes_now else self._counted(listed)
        if self.regime.dense:
            for slot in self._slots.values():
                slot.master = local(slot.parameter.detach()).clone()

    def _begin(
        self, listed: Sequence[Site], data: Iterable[Any] | None, loss: Loss | None, state: Mapping[str, Any] | None
    ) -> None:
        """The first supports: those of `state`, what pruning now keeps, or the regime's."""
        if state is not None:
            if any(place.learned for place in self.sites):
                raise CheckpointError(
                    f"Method {self.method.name!r} trains parameters of its own, whose optimiser state was not loaded: build the "
                    f"sparsifier without `state`, load the optimiser, then `sparsifier.load_state_dict(state)`."
                )
            self.load_state_dict(state)
        elif self._prunes_now:
            found = prune(self.model, self.method, data, sites=listed, loss=loss, progress=False)
            self.keep({p.name: found.supports[p.name].mask().to(p.mask.device) for p in self.sites})
        else:
            self._on_data(self.regime.begin, data, loss)

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

    def adopt(self, supports: Mapping[str, Support]) -> None:
        """Between two steps: make these the supports, chosen outside (by the clients of a federation); what comes starts at zero.

        Raises:
            ModelError: one is missing, or is of another shape.
        """
        wrong = [p.name for p in self.sites if p.name not in supports or supports[p.name].shape != p.shape]
        if wrong:
            raise ModelError(f"Site {wrong[0]!r} is to adopt a support of its own shape, and there is none.")
        self.keep({p.name: supports[p.name].mask().to(p.mask.device) for p in self.sites})
        self._refresh()

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
        self._pending = False  # loading an optimiser may have stepped it, to make its empty state
        self._watch.reset()
        self.stage, self._since, self.steps = state.get("stage", (0, 0, self.steps))
        self.frozen.load(state.get("frozen", {}))
        self.history = [Event(*entry) for entry in state["history"]]
        for place in self.sites:
            place.remembered = None
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
