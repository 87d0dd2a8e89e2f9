"""One training inside a cycle: supports are held for whatever optimiser it uses, and steps on the way are noted."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from jaxtyping import Bool
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook

from sparseworks.weights.enforce import impose


@contextmanager
def watching(model: nn.Module, dropped: Mapping[str, Bool[Tensor, "..."]], tick: Callable[[], None]) -> Iterator[None]:
    """Re-impose supports around every step of every optimiser that holds a parameter of `model`, and `tick()` after it."""
    held = {id(p) for p in model.parameters()}

    def ours(optimizer: Optimizer) -> bool:
        return any(id(p) in held for group in optimizer.param_groups for p in group["params"])

    def before(optimizer: Optimizer, *_: Any) -> None:
        if ours(optimizer):
            impose(model, dropped, gradients=True)

    def after(optimizer: Optimizer, *_: Any) -> None:
        if ours(optimizer):
            impose(model, dropped)
            tick()

    impose(model, dropped)
    handles = [register_optimizer_step_pre_hook(before), register_optimizer_step_post_hook(after)]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


class Track:
    """Steps of one training: a copy of the model at one of them, and the mean of its weights over the last.

    Attributes:
        snapshot: the state after step `at`.
    """

    POINTS = 20

    def __init__(self, model: nn.Module, steps: int | None, at: int | None, tail: float | None):
        self.model, self.at, self.done = model, at, 0
        self.snapshot = copied(model) if at == 0 else None
        self.mean: dict[str, Tensor] = {}
        self._seen = 0
        self._from = None if tail is None or steps is None else int(tail * steps)
        self._every = max(1, round((1 - (tail or 0)) * (steps or 0) / self.POINTS))

    def __call__(self) -> None:
        """After an optimiser step."""
        self.done += 1
        if self.done == self.at:
            self.snapshot = copied(self.model)
        if self._from is not None and self.done > self._from and (self.done - self._from) % self._every == 0:
            self._add()

    @torch.no_grad()
    def _add(self) -> None:
        self._seen += 1
        for name, p in self.model.named_parameters():
            if name in self.mean:
                self.mean[name].lerp_(p, 1 / self._seen)
            else:
                self.mean[name] = p.detach().clone()


def copied(model: nn.Module) -> dict[str, Tensor]:
    """A copy of parameters and buffers."""
    return {name: t.detach().clone() for name, t in model.state_dict().items()}
