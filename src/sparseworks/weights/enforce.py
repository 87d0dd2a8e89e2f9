"""The support is state: re-imposed after every optimiser step by a post-step hook, never by patching `step`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from jaxtyping import Bool
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils.hooks import RemovableHandle

from sparseworks.core.errors import ModelError, ShapeError
from sparseworks.core.site import Site
from sparseworks.core.support import Support


def dropped_masks(
    model: nn.Module, sites: Sequence[Site], supports: Mapping[str, Support]
) -> dict[str, Bool[Tensor, "..."]]:
    """For every parameter with a support: True where an entry is *not* kept, laid out like the parameter.

    Raises:
        ModelError: a support names a site that the model lacks.
        ShapeError: a support does not fit its site.
    """
    by_name = {site.name: site for site in sites}
    masks: dict[str, Tensor] = {}
    for name, support in supports.items():
        site = by_name.get(name)
        if site is None:
            raise ModelError(f"There is a support for site {name!r}, but the model has no such site.")
        if tuple(support.shape) != site.shape:
            raise ShapeError(f"Site {name!r} is {site.shape}, its support {tuple(support.shape)}.")
        parameter = site.tensor(model)
        mask = masks.setdefault(site.parameter, torch.zeros(parameter.shape, dtype=torch.bool, device=parameter.device))
        site.put(mask, ~support.mask().to(mask.device))
    return masks


@torch.no_grad()
def impose(model: nn.Module, masks: Mapping[str, Bool[Tensor, "..."]], *, gradients: bool = False) -> None:
    """Set every dropped entry of the parameters (or of their gradients) to exactly zero."""
    for name, mask in masks.items():
        parameter = model.get_parameter(name)
        target = parameter.grad if gradients else parameter
        if target is not None:
            target.masked_fill_(mask, 0.0)


def keep_support(
    optimizer: Optimizer, model: nn.Module, sites: Sequence[Site], supports: Mapping[str, Support]
) -> RemovableHandle:
    """Re-impose `supports` after every `optimizer.step()`; also once now. `handle.remove()` ends it.

    Raises:
        ModelError: a support names a site that the model lacks.
        ShapeError: a support does not fit its site.
    """
    return hold(optimizer, model, dropped_masks(model, sites, supports))


def hold(optimizer: Optimizer, model: nn.Module, masks: Mapping[str, Bool[Tensor, "..."]]) -> RemovableHandle:
    """`keep_support` for masks that are known already."""
    impose(model, masks)
    return optimizer.register_step_post_hook(lambda *_: impose(model, masks))
