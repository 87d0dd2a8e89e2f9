"""`sparseworks.load`: one entry for every way a model can be named."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn

from sparseworks.io.models import load_pretrained


def load(name: str | Path | nn.Module, *, dtype: torch.dtype | None = None) -> nn.Module:
    """The model called `name`, in evaluation mode.

    Args:
        name: a local folder, a hub id (`owner/model`), an embedded model (`minilm`, `sparseworks/tiny-lm`), or a module,
            which is returned as it is.
        dtype: type of the weights; default: as stored (float32 for `sparseworks/tiny-lm`).

    Raises:
        ModelError: no such model, or not one that can be read.
    """
    if isinstance(name, nn.Module):
        return name if dtype is None else name.to(dtype)
    return load_pretrained(name, dtype=dtype)
