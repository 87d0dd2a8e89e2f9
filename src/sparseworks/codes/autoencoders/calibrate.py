"""Thresholds for rules whose rows compete: what they keep in batches, told as the least value kept."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from jaxtyping import Float
from torch import Tensor

from sparseworks.codes.autoencoders.latent import Moment
from sparseworks.codes.autoencoders.module import SparseAutoencoder
from sparseworks.codes.autoencoders.stream import Batch
from sparseworks.core.errors import CalibrationError


@torch.no_grad()
def thresholds(sae: SparseAutoencoder, batches: Iterable[Batch]) -> Float[Tensor, " width"]:
    """Mean over batches of the least value that a latent (or any latent, where there is one threshold) kept; inf where none was.

    Raises:
        CalibrationError: there are no batches.
    """
    was, total, count = sae.training, torch.zeros_like(sae.threshold, dtype=torch.float64), 0
    seen = torch.zeros_like(total)
    sae.train()
    try:
        for batch in batches:
            count += 1
            found = sae.rule(sae, sae.centre(batch.x * sae.scale.to(batch.x.dtype)), Moment(1.0)).threshold
            assert found is not None
            known = ~torch.isnan(found)
            total += torch.where(known, found, 0.0)
            seen += known
    finally:
        sae.train(was)
    if not count:
        raise CalibrationError("Thresholds need at least one batch of activations.")
    # A hair below, since the least value kept may round otherwise in a batch of another size.
    slack = 1 - 8 * torch.finfo(sae.W_dec.dtype).eps
    mean = (total / seen.clamp(min=1) * slack).to(sae.threshold.dtype)
    return torch.where(seen > 0, mean, torch.inf)
