"""Sparse training inside other people's loops: Hugging Face's Trainer and Lightning."""

from __future__ import annotations

from typing import Any

from torch import nn
from torch.optim import Optimizer

from sparseworks.core.errors import ModelError
from sparseworks.core.method import Method
from sparseworks.core.support import Support
from sparseworks.weights.train.sparsifier import Sparsifier


class Beside:
    """A sparsifier that begins when the loop's optimiser is there, counts its steps, and lets go at the end.

    Attributes:
        sparsifier: while training runs.
        supports: what was kept at the end.
    """

    def __init__(self, method: Method | str, **options: Any):
        super().__init__()
        self.method, self.options = method, options
        self.sparsifier: Sparsifier | None = None
        self.supports: dict[str, Support] = {}
        self._loaded: dict[str, Any] | None = None

    def start(self, model: nn.Module, optimizer: Optimizer, steps: int | None, state: dict[str, Any] | None) -> None:
        """Take hold of the optimiser."""
        options: dict[str, Any] = {"steps": steps} | self.options
        self.sparsifier = Sparsifier(model, self.method, optimizer, state=state, **options)

    def step(self) -> None:
        """After the optimiser's."""
        if self.sparsifier is not None:
            self.sparsifier.step()

    def finish(self) -> None:
        """The final sparsity."""
        if self.sparsifier is not None:
            self.supports = self.sparsifier.finish()
            self.sparsifier = None


def trainer_callback(method: Method | str, **options: Any) -> Any:
    """A callback for `transformers.Trainer(callbacks=[...])`; `callback.supports` holds the supports afterwards.

    The state of the sparsifier is written into the Trainer's checkpoints (`sparsifier.safetensors`) and comes back with
    `resume_from_checkpoint`.

    Args:
        method: a method or its name.
        options: of `Sparsifier`; `steps` is the Trainer's number of optimiser steps unless given.

    Raises:
        ModelError: transformers is not installed.
    """
    try:
        from sparseworks.weights.train._trainer import TrainerCallbackOf
    except ImportError as error:
        raise ModelError(
            f"The callback for Trainer needs transformers: pip install 'sparseworks[hf]' ({error})."
        ) from error
    return TrainerCallbackOf(method, **options)


def lightning_callback(method: Method | str, **options: Any) -> Any:
    """A callback for `lightning.Trainer(callbacks=[...])`; `callback.supports` holds the supports afterwards.

    One optimiser; its steps are counted after every `optimizer.step()`, also with accumulated gradients. The sparsifier's state
    is part of Lightning's checkpoints.

    Args:
        method: a method or its name.
        options: of `Sparsifier`; `steps` is Lightning's estimate of the optimiser steps unless given.

    Raises:
        ModelError: lightning is not installed, or the module has several optimisers.
    """
    try:
        from sparseworks.weights.train._lightning import LightningCallbackOf
    except ImportError as error:
        raise ModelError(f"The callback for Lightning needs lightning: pip install lightning ({error}).") from error
    return LightningCallbackOf(method, **options)
