"""Quantisation-aware training on a support that is held: the model computes with weights and inputs of few bits."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from sparseworks.core.errors import BudgetError
from sparseworks.core.regime import REGIMES, Regime, Trained, Training


@REGIMES.register("quantised")
@dataclass(frozen=True)
class Quantised(Regime):
    """The method's support is held; weights (symmetric, a scale a row) and inputs (a scale a tensor) are rounded to `bits`.

    Gradients pass the rounding unchanged. At the end the weights are the rounded ones.

    Source: Yu, Chen, Gan and Fan, 2023, arXiv 2305.10727 (the second stage of GPUSQ-ViT).

    Attributes:
        inputs: round what enters the layers too.
    """

    bits: int = 8
    inputs: bool = True
    dense = True
    moves = False

    def begin(self, run: Training) -> None:
        """The support."""
        run.keep(run.choose(run.scores(), run.counts()))

    def attach(self, run: Training) -> None:
        """Hooks on the inputs."""
        if self.bits < 2:
            raise BudgetError(f"Symmetric integers have at least 2 bits, got {self.bits}.")
        if self.inputs:
            for name in {s.site.module for s in run.sites}:
                layer = run.model.get_submodule(name)
                run.at_end(layer.register_forward_pre_hook(self._round_inputs).remove)

    def before(self, run: Training) -> None:
        """Only kept weights learn."""
        for site in run.sites:
            site.set_gradient(site.gradient() * site.mask)

    def project(self, run: Training, site: Trained) -> Float[Tensor, "rows cols"]:
        """The rounded kept weights."""
        return rounded(site.weight() * site.mask, self.bits, dim=1)

    def end(self, run: Training) -> None:
        """Rounded weights are the weights."""
        for site in run.sites:
            site.put(self.project(run, site))

    def _round_inputs(self, layer: nn.Module, args: Any) -> Any:
        first, *rest = args
        if not isinstance(first, Tensor) or not first.is_floating_point():
            return None
        return (first + (rounded(first.detach(), self.bits) - first.detach()), *rest)


def rounded(x: Float[Tensor, "..."], bits: int, dim: int | None = None) -> Float[Tensor, "..."]:
    """x to the nearest of 2^bits - 1 multiples of a step, max |x| (of all of x, or along `dim`) the outermost."""
    top = 2 ** (bits - 1) - 1
    largest = x.abs().amax() if dim is None else x.abs().amax(dim=dim, keepdim=True)
    step = torch.where(largest > 0, largest / top, 1.0)
    return (x / step).round().clamp(-top, top) * step
