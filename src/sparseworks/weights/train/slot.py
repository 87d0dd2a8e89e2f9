"""Parameters and sites of a model in training: who holds the dense weight, who is masked, and which part lies on this rank."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.optim import Optimizer

from sparseworks.core.errors import ModelError
from sparseworks.core.site import Site


def whole(tensor: Tensor) -> Tensor:
    """The tensor with all its shards."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def local(tensor: Tensor) -> Tensor:
    """What of the tensor lies on this rank."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def local_like(tensor: Tensor, like: Tensor) -> Tensor:
    """The part of a whole `tensor` that a rank holds of `like`."""
    if not isinstance(like, DTensor):
        return tensor
    return distribute_tensor(tensor.contiguous(), like.device_mesh, like.placements).to_local()


@dataclass
class Slot:
    """A parameter with at least one site.

    Attributes:
        master: the dense weight where the parameter holds a projection of it (this rank's part), or None.
        dropped: True where an entry is not kept (this rank's part).
    """

    name: str
    parameter: nn.Parameter
    master: Tensor | None = None
    dropped: Bool[Tensor, "..."] | None = None

    @property
    def dense(self) -> Tensor:
        """The weight that is trained: the master, or the parameter itself."""
        return local(self.parameter.data) if self.master is None else self.master

    @torch.no_grad()
    def store(self, tensor: Tensor) -> None:
        """Make a whole tensor the weight that is trained."""
        self.dense.copy_(local_like(tensor, self.parameter))

    def full(self) -> Tensor:
        """The weight that is trained, with all its shards."""
        if self.master is None or not isinstance(self.parameter, DTensor):
            return whole(self.parameter.data) if self.master is None else self.master
        p = self.parameter
        return DTensor.from_local(
            self.master, p.device_mesh, p.placements, shape=p.shape, stride=p.stride()
        ).full_tensor()

    @torch.no_grad()
    def clear(self, optimizer: Optimizer, at: Bool[Tensor, "..."]) -> None:
        """Zero the optimiser's state of the entries `at` (this rank's part): moments that belong to other weights."""
        for value in optimizer.state.get(self.parameter, {}).values():
            if isinstance(value, Tensor) and value.shape == self.parameter.shape:
                local(value).masked_fill_(at.to(local(value).device), 0)


@dataclass
class Place:
    """One site of a model in training, see `sparseworks.core.regime.Trained`."""

    site: Site
    slot: Slot
    mask: Bool[Tensor, "rows cols"]
    state: dict[str, Tensor] = field(default_factory=dict)
    learned: dict[str, nn.Parameter] = field(default_factory=dict)
    remembered: Tensor | None = None

    @property
    def parameter(self) -> nn.Parameter:
        """What the optimiser holds."""
        return self.slot.parameter

    @property
    def name(self) -> str:
        """Of the site."""
        return self.site.name

    @property
    def shape(self) -> tuple[int, int]:
        """(rows, cols) of the site."""
        return self.site.shape

    def weight(self) -> Float[Tensor, "rows cols"]:
        """The weight that is trained."""
        return self.site.view(self.slot.full().detach())

    @torch.no_grad()
    def put(self, weight: Float[Tensor, "rows cols"]) -> None:
        """Store another weight."""
        if self.slot.master is None and not isinstance(self.slot.parameter, DTensor):
            self.site.put(self.slot.parameter, weight)
            return
        tensor = self.slot.full().detach().clone()
        self.site.put(tensor, weight)
        self.slot.store(tensor)

    def gradient(self) -> Float[Tensor, "rows cols"]:
        """The loss gradient of this step at every entry, kept or not.

        Raises:
            ModelError: there is none.
        """
        if self.remembered is not None:
            return self.remembered
        gradient = self.slot.parameter.grad
        if gradient is None:
            raise ModelError(
                f"Site {self.name!r} has no gradient: its parameter took no part in the loss, or gradients were set to "
                f"None before `optimizer.step()`."
            )
        return self.site.view(whole(gradient).detach())

    @torch.no_grad()
    def set_gradient(self, gradient: Float[Tensor, "rows cols"]) -> None:
        """What the optimiser sees instead."""
        target = self.slot.parameter.grad
        if target is None:
            return
        tensor = whole(target)
        self.site.put(tensor, gradient)
        if tensor is not target:
            local(target).copy_(local_like(tensor, target))


def group_of(optimizer: Optimizer, parameter: nn.Parameter) -> dict[str, Any]:
    """The parameter group that holds `parameter`."""
    return next(g for g in optimizer.param_groups if any(p is parameter for p in g["params"]))


def forget(optimizer: Optimizer, parameter: nn.Parameter) -> None:
    """Take a parameter out of the optimiser."""
    group = group_of(optimizer, parameter)
    group["params"] = [p for p in group["params"] if p is not parameter]
    optimizer.state.pop(parameter, None)


@torch.no_grad()
def project(slot: Slot, members: Sequence[tuple[Place, Float[Tensor, "rows cols"]]]) -> None:
    """Let the parameter hold the projections of its sites; entries outside any site stay dense."""
    tensor = slot.full().detach().clone()
    for place, value in members:
        place.site.put(tensor, value)
    local(slot.parameter.data).copy_(local_like(tensor, slot.parameter))
