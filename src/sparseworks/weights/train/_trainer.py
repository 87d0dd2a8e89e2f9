"""The callback for transformers' Trainer; imported by `trainer_callback` only."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from transformers import TrainerCallback

from sparseworks.weights.train.callbacks import Beside
from sparseworks.weights.train.state import load_state, save_state

FILE = "sparsifier.safetensors"


class TrainerCallbackOf(Beside, TrainerCallback):
    """See `trainer_callback`."""

    def on_train_begin(
        self, args: Any, state: Any, control: Any, *, model: Any = None, optimizer: Any = None, **_: Any
    ) -> None:
        """Model and optimiser are built, and loaded where training is resumed."""
        saved = _folder(args, state) / FILE
        found = load_state(saved) if state.global_step and saved.exists() else None
        self.start(model, getattr(optimizer, "optimizer", optimizer), state.max_steps, found)

    def on_optimizer_step(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """The optimiser has stepped."""
        self.step()

    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Beside the Trainer's own files."""
        if self.sparsifier is not None:
            save_state(_folder(args, state) / FILE, self.sparsifier, write=state.is_world_process_zero)

    def on_train_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Let go."""
        self.finish()


def _folder(args: Any, state: Any) -> Path:
    return Path(args.output_dir) / f"checkpoint-{state.global_step}"
