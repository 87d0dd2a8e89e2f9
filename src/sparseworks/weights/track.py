"""Statistics of training: movement of weights, gathered by an optimiser hook and never by a patched step."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import nn
from torch.optim import Optimizer
from torch.utils.hooks import RemovableHandle

from sparseworks.core.site import Site
from sparseworks.core.stats import Stats, WeightMovement


def track_movement(
    optimizer: Optimizer, model: nn.Module, sites: Sequence[Site]
) -> tuple[Mapping[str, Stats], RemovableHandle]:
    """`(stats, handle)`: before every `optimizer.step()` the movement -w * g of each site is added, until `handle.remove()`.

    Give the statistics to `prune(model, method("movement"), stats=stats)` (Sanh et al., 2020, arXiv 2005.07683).

    Raises:
        NonFiniteError: a gradient holds NaN or infinity (at the step).
    """
    gathered = {s.name: Stats([WeightMovement(*s.shape)], site=s.name) for s in sites}

    @torch.no_grad()
    def take(*_: object) -> None:
        for site in sites:
            parameter = site.tensor(model)
            if parameter.grad is not None:
                gathered[site.name].feed("training", -site.view(parameter) * site.view(parameter.grad))

    return gathered, optimizer.register_step_pre_hook(take)
