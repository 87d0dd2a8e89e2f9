"""Bitmask codec: of a parameter with supports only the kept entries are stored, in order; the supports say where they belong."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from jaxtyping import Bool, Shaped
from torch import Tensor

from sparseworks.core.errors import CheckpointError, ShapeError
from sparseworks.core.site import Site
from sparseworks.core.support import Support


def stored_mask(shape: Sequence[int], sites: Sequence[Site], supports: Mapping[str, Support]) -> Bool[Tensor, "*shape"]:
    """Which entries of a parameter are stored: all but those that a support leaves out. mask = AND over sites of (kept or elsewhere).

    Args:
        shape: of the parameter.
        sites: views of that parameter; several for fused matrices and expert stacks.
        supports: by site name; a site without one is stored whole.

    Raises:
        ShapeError: a support does not fit its site.
    """
    mask = torch.ones(tuple(shape), dtype=torch.bool)
    for site in sites:
        support = supports.get(site.name)
        if support is None:
            continue
        if tuple(support.shape) != site.shape:
            raise ShapeError(f"Site {site.name!r} is {site.shape}, its support {tuple(support.shape)}.")
        site.put(mask, support.mask())
    return mask


def encode(tensor: Shaped[Tensor, "*shape"], mask: Bool[Tensor, "*shape"]) -> Shaped[Tensor, " kept"]:
    """The kept entries of `tensor`, row-major."""
    return _indexable(tensor.detach())[mask.to(tensor.device)].view(tensor.dtype)


def decode(
    values: Shaped[Tensor, " kept"], mask: Bool[Tensor, "*shape"], name: str = "values"
) -> Shaped[Tensor, "*shape"]:
    """Inverse of `encode`: `values` at the kept entries, exact zeros elsewhere, same dtype.

    Raises:
        CheckpointError: the number of values is not the number of kept entries.
    """
    kept = int(torch.count_nonzero(mask))
    if values.dim() != 1 or values.numel() != kept:
        raise CheckpointError(
            f"{name} holds {tuple(values.shape)} values where the supports keep {kept}: the folder is damaged."
        )
    dense = torch.zeros(mask.shape, dtype=values.dtype)
    _indexable(dense).masked_scatter_(mask, _indexable(values))
    return dense


def _indexable(tensor: Tensor) -> Tensor:
    return tensor.view(torch.uint8) if tensor.dtype.itemsize == 1 else tensor  # torch cannot index every 8-bit float
