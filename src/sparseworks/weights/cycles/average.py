"""Averages of models that share a support, and batch normalisation after them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from sparseworks.core.errors import CalibrationError, ShapeError
from sparseworks.stream.gradients import Loss
from sparseworks.stream.modes import evaluating
from sparseworks.stream.tree import call

State = Mapping[str, Tensor]


@torch.no_grad()
def average(states: Sequence[State]) -> dict[str, Tensor]:
    """Entry by entry the mean of several `state_dict()`s of one model; what is not floating point comes from the first.

    Zeros that all share stay exact zeros, so models of one support give a model of that support.

    Raises:
        CalibrationError: no states.
        ShapeError: states of different models.
    """
    if not states:
        raise CalibrationError("There is nothing to average: give at least one state.")
    shapes = [{name: t.shape for name, t in s.items()} for s in states]
    if any(found != shapes[0] for found in shapes):
        raise ShapeError("Only states of one architecture can be averaged; these differ in names or shapes.")
    first = states[0]
    return {
        name: torch.stack([s[name] for s in states]).mean(dim=0) if t.is_floating_point() else t.clone()
        for name, t in first.items()
    }


def greedy_average(
    model: nn.Module,
    states: Sequence[State],
    evaluate: Callable[[nn.Module], float],
    settle: Callable[[nn.Module], None] = lambda model: None,
) -> tuple[int, ...]:
    """Average states in order of their quality, each kept only if quality does not fall; the model holds the average.

    Source: Wortsman et al., 2022, arXiv 2203.05482; for sparse models Zimmer et al., 2023, arXiv 2306.16788.

    Args:
        evaluate: quality on data held out, higher is better.
        settle: called on the model before it is evaluated (batch normalisation).

    Returns:
        Which states are in the average.
    """

    def quality(chosen: Sequence[int]) -> float:
        model.load_state_dict(average([states[i] for i in chosen]))
        settle(model)
        return evaluate(model)

    alone = [quality([i]) for i in range(len(states))]
    order = sorted(range(len(states)), key=lambda i: -alone[i])
    chosen, best = order[:1], alone[order[0]]
    for i in order[1:]:
        found = quality([*chosen, i])
        if found >= best:
            chosen, best = [*chosen, i], found
    quality(chosen)
    return tuple(chosen)


def normalises(model: nn.Module) -> bool:
    """Whether the model keeps running statistics of batches."""
    return any(isinstance(m, nn.modules.batchnorm._BatchNorm) and m.track_running_stats for m in model.modules())  # pyright: ignore[reportPrivateUsage]


@torch.no_grad()
def recalibrate(model: nn.Module, data: Iterable[Any], loss: Loss | None = None) -> None:
    """Measure the running statistics of batch normalisation anew, as the plain mean over the batches of `data`.

    Args:
        loss: how a batch is fed where it holds more than the model's arguments (labels).

    Raises:
        CalibrationError: the model has such statistics and there are no batches.
    """
    layers = [m for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm) and m.track_running_stats]  # pyright: ignore[reportPrivateUsage]
    if not layers:
        return
    batches = list(data)
    if not batches:
        raise CalibrationError(
            "An average of models with batch normalisation needs its statistics anew: give `data`, a share of the "
            "training batches (a fifth is enough)."
        )
    momenta = [m.momentum for m in layers]
    try:
        with evaluating(model, gradients=True):  # whatever the loss does with them
            for m in layers:
                m.reset_running_stats()
                m.momentum = None  # a cumulative mean
                m.train()
            for batch in batches:
                call(model, batch) if loss is None else loss(model, batch)
    finally:
        for m, momentum in zip(layers, momenta, strict=True):
            m.momentum = momentum
