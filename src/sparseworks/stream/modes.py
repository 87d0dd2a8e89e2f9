"""Evaluation mode for a while."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TypeVar

import torch
from torch import nn

Model = TypeVar("Model", bound=nn.Module)


@contextmanager
def evaluating(model: Model, gradients: bool = False) -> Iterator[Model]:
    """Evaluation mode, without gradients unless they are asked for; every submodule's own mode comes back afterwards.

    `no_grad`, not `inference_mode`: a cache that a module fills here must stay usable in later training.
    """
    modes = [(m, m.training) for m in model.modules()]
    model.eval()
    try:
        with torch.set_grad_enabled(gradients and torch.is_grad_enabled()):
            yield model
    finally:
        for module, mode in modes:
            module.training = mode
