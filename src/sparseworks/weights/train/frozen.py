"""Entries of parameters that keep their value, whatever the optimiser does: what earlier tasks rely on, units that are mature."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from sparseworks.core.errors import ModelError, ShapeError
from sparseworks.weights.train.slot import Place


class Frozen:
    """w <- where(mark, value, w) after every step: no momentum, no weight decay and no change of supports gets at them.

    Attributes:
        marks: parameter name -> True where an entry is frozen, laid out like the parameter.
        values: parameter name -> the values, of which only the marked ones count.
    """

    def __init__(self, model: nn.Module):
        self.model = model
        self.marks: dict[str, Bool[Tensor, "..."]] = {}
        self.values: dict[str, Float[Tensor, "..."]] = {}

    @torch.no_grad()
    def add(self, name: str, mark: Bool[Tensor, "..."], value: Float[Tensor, "..."] | None = None) -> None:
        """Freeze the marked entries of a parameter, those not frozen yet at `value` (default: as the parameter is now).

        Raises:
            ModelError: no such parameter, or a sharded one.
            ShapeError: `mark` is not shaped like it.
        """
        try:
            parameter = self.model.get_parameter(name)
        except AttributeError:
            raise ModelError(f"There is no site and no parameter {name!r} to freeze.") from None
        if isinstance(parameter, DTensor):
            raise ModelError(f"Parameter {name!r} is sharded: entries of sharded parameters cannot be frozen.")
        if mark.shape != parameter.shape:
            raise ShapeError(f"Parameter {name!r} is {tuple(parameter.shape)}, the mark {tuple(mark.shape)}.")
        now, mark = (parameter if value is None else value).detach(), mark.to(parameter.device)
        known = self.marks.get(name, torch.zeros_like(mark))
        self.values[name] = torch.where(known, self.values.get(name, now), now).clone()
        self.marks[name] = known | mark

    def add_site(self, place: Place, mark: Bool[Tensor, "rows cols"]) -> None:
        """Freeze marked entries of a site, at the weight that is trained.

        Raises:
            ModelError: its parameter is sharded.
            ShapeError: `mark` is not shaped like the site.
        """
        whole = torch.zeros(place.parameter.shape, dtype=torch.bool)
        place.site.put(whole, mark)
        self.add(place.slot.name, whole, place.slot.dense)

    def still(self) -> None:
        """No gradient at frozen entries: what is frozen draws no growth either."""
        for name, mark in self.marks.items():
            gradient = self.model.get_parameter(name).grad
            if gradient is not None:
                gradient.masked_fill_(mark, 0.0)

    @torch.no_grad()
    def restore(self, trained: Mapping[str, Tensor] | None = None) -> None:
        """Write the values back, into `trained` tensors where given, else into the parameters."""
        for name, mark in self.marks.items():
            tensor = (trained or {}).get(name, self.model.get_parameter(name).data)
            tensor.copy_(torch.where(mark, self.values[name], tensor))

    def state(self) -> dict[str, dict[str, Tensor]]:
        """Marks and values by parameter, to be saved."""
        return {n: {"mark": m.clone(), "value": self.values[n].clone()} for n, m in self.marks.items()}

    def load(self, state: Mapping[str, Mapping[str, Tensor]]) -> None:
        """Inverse of `state`."""
        device = {name: self.model.get_parameter(name).device for name in state}
        self.marks = {n: s["mark"].clone().to(device[n]) for n, s in state.items()}
        self.values = {n: s["value"].clone().to(device[n]) for n, s in state.items()}
