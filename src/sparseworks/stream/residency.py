"""Residency: which blocks' weights are in memory. A driver says when it needs a block; where weights lie is not its concern."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Protocol, runtime_checkable

from torch import nn

from sparseworks.core.support import Support
from sparseworks.stream.blocks import Block
from sparseworks.stream.memory import model_bytes


@runtime_checkable
class Residency(Protocol):
    """Where the weights of blocks are while nobody looks at them.

    The contract for whoever prunes a model block by block:

    - Weights of a block are read or written only between `enter(block)` and `leave(block)`; calls nest and are counted.
    - Forward passes of the whole model (`chains`, `capture`, `gather`, evaluation) need no calls: they enter and leave the
      blocks they pass by themselves.
    - After weights of a block were changed, `leave(block, changed=True)`; without it changes may be lost.
    - Everything outside blocks (embeddings, norms, the output head) can always be read and written; entering and leaving
      `None` stands for it.
    """

    @property
    def resident_bytes(self) -> int:
        """The most bytes of parameters and buffers that are in memory at a time (`predict(..., resident=...)`)."""
        ...

    def enter(self, block: Block | None) -> None:
        """Have the block's weights in memory."""
        ...

    def leave(self, block: Block | None, *, changed: bool = False) -> None:
        """The block is not needed for now; `changed` weights are kept for good first.

        Raises:
            CheckpointError: they cannot be written.
        """
        ...

    def keep(self, name: str, supports: Mapping[str, Support]) -> Mapping[str, Support]:
        """Supports found in the part of the model called `name`, from where they may lie for good.

        Raises:
            CheckpointError: they cannot be written.
        """
        ...


class InMemory:
    """The whole model is in memory all the time: entering and leaving do nothing."""

    def __init__(self, model: nn.Module):
        self._model = model

    @property
    def resident_bytes(self) -> int:
        """Bytes of the whole model."""
        return model_bytes(self._model)

    def enter(self, block: Block | None) -> None:
        """Nothing to do."""

    def leave(self, block: Block | None, *, changed: bool = False) -> None:
        """Nothing to do."""

    def keep(self, name: str, supports: Mapping[str, Support]) -> Mapping[str, Support]:
        """The supports as they are."""
        return supports


@contextmanager
def held(residency: Residency, block: Block | None, *, changed: bool = False) -> Iterator[None]:
    """`with held(residency, block):` the block's weights are in memory inside; `changed` is not told after an error."""
    residency.enter(block)
    try:
        yield
    except BaseException:
        residency.leave(block)
        raise
    residency.leave(block, changed=changed)
