"""Training with shared positions: the share grows along a schedule, maps are drawn anew and the best is remembered, then all is frozen."""

from __future__ import annotations

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor, nn

from sparseworks.activations.spatial.positions import PositionConv2d, SharedPositions, positions, sizes_of
from sparseworks.activations.trained.activation import TrainedMethod
from sparseworks.core.errors import BudgetError, ModelError
from sparseworks.core.schedule import Quadratic


class SharedMasks:
    """Call `before()` ahead of every training step, `after(loss)` behind it; the convolutions of the model become `PositionConv2d`.

    Of the first `freeze` steps every `every`-th is sparse, with a new random map, at the sparsity that the schedule has reached; the others are
    dense. The map of the lowest loss, relative to a running mean, is remembered, and held from step `freeze` on.

    Attributes:
        best: the map that is held, or will be.
        sparsity: share of positions left out in the last sparse step.

    Source: Grimaldi et al., 2023, arXiv 2309.06626. How losses of different steps compare is not said; a running mean is our reading.
    """

    def __init__(
        self,
        model: nn.Module,
        method: str | TrainedMethod,
        example: Float[Tensor, "batch in high wide"],
        *,
        steps: int,
        freeze: int | None = None,
        every: int = 2,
        skip: Callable[[str, nn.Conv2d], bool] = lambda name, conv: False,
        draw: Callable[[torch.Generator, tuple[int, int]], Tensor] | None = None,
    ):
        """Args: `steps` of training; `freeze` is three quarters of them by default; `skip` says which convolutions stay dense;
        `draw` makes a score map of the size of the input, random by default.

        Raises:
            RecipeError: a method of another kind.
            BudgetError: steps, freeze or every out of range.
            ModelError: no convolutions.
        """
        method = TrainedMethod.of(method)
        if not isinstance(method.activation, SharedPositions):
            raise ModelError(f"{method.name!r} does not choose shared positions.")
        freeze = steps * 3 // 4 if freeze is None else freeze
        if not 0 < freeze <= steps or every < 1:
            raise BudgetError(f"0 < freeze <= steps and every >= 1, got freeze={freeze}, steps={steps}, every={every}.")
        _wrap(model, "", skip)
        self.layers = {n: m for n, m in model.named_modules() if isinstance(m, PositionConv2d)}
        if not self.layers:
            raise ModelError(f"{type(model).__name__} has no convolutions whose positions could be left out.")
        self.model, self.activation, self.schedule = model, method.activation, method.schedule or Quadratic()
        self.size = example.shape[-2], example.shape[-1]
        self.sizes = sizes_of(model, example)
        self.freeze, self.every, self.done = freeze, every, 0
        self.sparsity = 0.0
        self._draw = draw or (lambda g, size: torch.rand(size, generator=g))
        self._g = torch.Generator().manual_seed(method.activation.seed)
        self._map = self.best = self._draw(self._g, self.size)
        self._lowest, self._mean = float("inf"), float("nan")

    @property
    def frozen(self) -> bool:
        """Whether the map is fixed."""
        return self.done >= self.freeze

    def before(self) -> None:
        """Masks of the step to come."""
        if self.frozen:
            self.put(self.best, self.activation.sparsity)
        elif self.done % self.every == 0:
            self._map = self._draw(self._g, self.size)
            self.put(self._map, self.activation.sparsity * self.schedule(self.done / self.freeze))
        else:
            self.put(None)

    def after(self, loss: float) -> None:
        """Remember the map if its step was the best so far."""
        if not self.frozen and self.done % self.every == 0:
            self._mean = loss if self._mean != self._mean else 0.9 * self._mean + 0.1 * loss
            if loss / max(self._mean, 1e-12) < self._lowest:
                self._lowest, self.best = loss / max(self._mean, 1e-12), self._map
        self.done += 1
        if self.frozen:
            self.put(self.best, self.activation.sparsity)

    def put(self, scores: Tensor | None, sparsity: float = 0.0) -> None:
        """The masks of all layers from one map; None = dense."""
        for name, layer in self.layers.items():
            layer.mask = (
                None if scores is None else positions(scores, self.sizes[name], sparsity).to(layer.conv.weight.device)
            )
        if scores is not None:
            self.sparsity = sparsity


def _wrap(model: nn.Module, path: str, skip: Callable[[str, nn.Conv2d], bool]) -> None:
    for name, child in list(model.named_children()):
        whole = f"{path}.{name}" if path else name
        if isinstance(child, PositionConv2d):
            continue
        if type(child) is nn.Conv2d:
            if not skip(whole, child):
                setattr(model, name, PositionConv2d(child))
        else:
            _wrap(child, whole, skip)
