"""Quantisation-aware training on a support that is held: the model computes with weights and inputs of few bits."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from sparseworks.core.errors import BudgetError, ModelError
from sparseworks.core.regime import REGIMES, Regime, Trained, Training


@REGIMES.register("quantised")
@dataclass(frozen=True)
class Quantised(Regime):
    """The method's support is held; weights (symmetric, a step a row) and inputs (a step a layer) are rounded to `bits`.

    W' = rounded(M * W), gradients passed unchanged. x' = s round(clip(x / s, -Q, Q)), Q = 2^(bits-1) - 1: s starts where
    the squared error of the first batch is least and is then learned,

        dx'/dx = [|x / s| < Q],   dx'/ds = round(x / s) - x / s inside, +-Q outside, times 1 / sqrt(entries Q).

    At the end the weights are the rounded ones, and inputs are no longer rounded: `input_steps` and `rounded_inputs` do so for inference.

    Source: Yu, Chen, Gan and Fan, 2023, arXiv 2305.10727 (the second stage of GPUSQ-ViT); Esser et al., 2020, arXiv 1902.08153
    (learned steps). How GPUSQ-ViT finds the steps of inputs was not to be had.

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
        """Steps, 0 until a batch has come by, and hooks on the inputs."""
        if self.bits < 2:
            raise BudgetError(f"Symmetric integers have at least 2 bits, got {self.bits}.")
        if self.inputs:
            for name, site in {s.site.module: s for s in reversed(run.sites)}.items():
                run.learn(site, _STEP, torch.zeros(1, device=site.mask.device))
                layer = run.model.get_submodule(name)
                run.at_end(layer.register_forward_pre_hook(_rounding(site.learned[_STEP], self.bits)).remove)

    def before(self, run: Training) -> None:
        """Only kept weights learn."""
        for site in run.sites:
            site.set_gradient(site.gradient() * site.mask)

    def after(self, run: Training) -> None:
        """Steps stay positive: the optimiser may have gone past zero."""
        for site in run.sites:
            if _STEP in site.learned:
                step = site.learned[_STEP].data
                step.copy_(step.abs())

    def project(self, run: Training, site: Trained) -> Float[Tensor, "rows cols"]:
        """The rounded kept weights."""
        return rounded(site.weight() * site.mask, self.bits, dim=1)

    def end(self, run: Training) -> None:
        """Rounded weights are the weights."""
        for site in run.sites:
            site.put(self.project(run, site))


def rounded(x: Float[Tensor, "..."], bits: int, dim: int | None = None) -> Float[Tensor, "..."]:
    """x to the nearest of 2^bits - 1 multiples of a step, max |x| (of all of x, or along `dim`) the outermost."""
    top = 2 ** (bits - 1) - 1
    largest = x.abs().amax() if dim is None else x.abs().amax(dim=dim, keepdim=True)
    step = torch.where(largest > 0, largest / top, 1.0)
    return (x / step).round().clamp(-top, top) * step


def rounded_to(x: Float[Tensor, "..."], step: Float[Tensor, " 1"], bits: int) -> Float[Tensor, "..."]:
    """s round(clip(x / s, -Q, Q)), with gradients as in `Quantised`; same dtype as x, as it is where s is 0."""
    top = 2 ** (bits - 1) - 1
    if not float(step.detach()) > 0.0:
        return x
    damped = 1.0 / (x.numel() * top) ** 0.5
    s = step * damped + (step - step * damped).detach()
    inside = (x / s).clamp(-top, top)
    return ((inside + (inside.round() - inside).detach()) * s).to(x.dtype)


@torch.no_grad()
def best_step(x: Float[Tensor, "..."], bits: int) -> Float[Tensor, " 1"]:
    """argmin over s = a max |x| / Q, a = 1/50 .. 1, of ||x - rounded_to(x, s)||^2: clips where that costs less than a wider step; 0 for x = 0."""
    largest = x.detach().abs().amax().float().reshape(1)
    tried = [largest / (2 ** (bits - 1) - 1) * a / 50 for a in range(1, 51)]
    errors = torch.stack([(rounded_to(x, s, bits) - x).float().square().sum() for s in tried])
    return tried[int(errors.argmin())]


def input_steps(run: Training) -> dict[str, float]:
    """Name of a layer -> the step its inputs were rounded by; of a run of `Quantised`, also after its end.

    Raises:
        ModelError: inputs were not rounded, or nothing has been trained.
    """
    found = {s.site.module: float(s.learned[_STEP].detach()) for s in run.sites if _STEP in s.learned}
    if not any(found.values()):
        raise ModelError("There are no steps of inputs: train with `Quantised(inputs=True)` first.")
    return found


@contextmanager
def rounded_inputs(model: nn.Module, steps: Mapping[str, float], bits: int) -> Iterator[None]:
    """Inside the block, what enters each named layer is rounded by its step: how a model quantised to `bits` computes.

    Raises:
        ModelError: the model lacks one of the layers.
    """
    layers = dict(model.named_modules())
    lacking = [name for name in steps if name not in layers]
    if lacking:
        raise ModelError(f"The model has no layer {lacking[0]!r} whose inputs could be rounded.")
    hooks = [_rounding(torch.tensor([step]), bits) for step in steps.values()]
    handles = [layers[n].register_forward_pre_hook(hook) for n, hook in zip(steps, hooks, strict=True)]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


_STEP = "input_step"


def _rounding(step: Tensor, bits: int) -> Callable[[nn.Module, Any], Any]:
    def before(layer: nn.Module, args: Any) -> Any:
        first, *rest = args
        if not isinstance(first, Tensor) or not first.is_floating_point():
            return None
        if isinstance(step, nn.Parameter) and layer.training and not float(step.detach()) > 0.0:
            step.data.copy_(best_step(first, bits))
        return (rounded_to(first, step.to(first.device), bits), *rest)

    return before
