"""The callback for Lightning; imported by `lightning_callback` only."""

from __future__ import annotations

from math import isfinite
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

from sparseworks.core.errors import ModelError
from sparseworks.weights.train.callbacks import Beside


class LightningCallbackOf(Beside, Callback):
    """See `lightning_callback`."""

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Optimisers are built, and loaded where training is resumed."""
        if len(trainer.optimizers) != 1:
            raise ModelError(f"Sparse training follows one optimiser, the module has {len(trainer.optimizers)}.")
        steps = trainer.estimated_stepping_batches
        self.start(pl_module, trainer.optimizers[0], int(steps) if isfinite(steps) else None, self._loaded)
        self._loaded = None

    def on_train_batch_end(self, *_: Any) -> None:
        """A batch is done; with accumulated gradients the optimiser need not have stepped."""
        self.step()

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Let go."""
        self.finish()

    def state_dict(self) -> dict[str, Any]:
        """Into Lightning's checkpoint."""
        return {} if self.sparsifier is None else self.sparsifier.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Out of it, before the optimisers are there."""
        self._loaded = state_dict or None
