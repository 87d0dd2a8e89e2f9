"""Around the optimiser: gradients of what is kept go in, and what comes out is put back onto the supports."""

from __future__ import annotations

from typing import Any

import torch
from torch.optim import Optimizer

from sparseworks.core.errors import ModelError
from sparseworks.weights.train.run import Run
from sparseworks.weights.train.slot import local, project


class Hooked(Run):
    """A run that is there before and after every step of its optimiser, whatever optimiser that is."""

    _pending: bool

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
