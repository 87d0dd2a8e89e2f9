"""Streams of activations to train on: batch i of a seed is the same whenever it is asked for."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

import torch
from jaxtyping import Float
from torch import Tensor

from sparseworks.core.errors import CalibrationError, DtypeError, NonFiniteError, ShapeError


@dataclass(frozen=True)
class Batch:
    """Activations of some tokens.

    Attributes:
        x: the inputs.
        target: another activation of the same tokens, for transcoders.
        gradients: of the model's loss with respect to x.
    """

    x: Float[Tensor, "rows d_in"]
    target: Float[Tensor, "rows d_out"] | None = None
    gradients: Float[Tensor, "rows d_in"] | None = None

    def __len__(self) -> int:
        return len(self.x)

    def rows(self, at: Tensor | slice) -> Batch:
        """Some of the tokens."""
        pick = lambda t: None if t is None else t[at]  # noqa: E731
        return Batch(self.x[at], pick(self.target), pick(self.gradients))

    def to(self, device: torch.device | str) -> Batch:
        """The same on a device."""
        move = lambda t: None if t is None else t.to(device)  # noqa: E731
        return Batch(self.x.to(device), move(self.target), move(self.gradients))


class Stream(Protocol):
    """What trainers need of activations."""

    @property
    def tokens(self) -> int:
        """Rows of one pass."""
        ...

    def batch(self, index: int, size: int, seed: int) -> Batch:
        """Rows `index * size` and on, of passes that are shuffled by `seed`; asked for twice, the same."""
        ...


class Rows:
    """Activations in memory.

    Args:
        x: one token a row.
        target, gradients: as in `Batch`.

    Raises:
        ShapeError, DtypeError, NonFiniteError: not matrices of one length, not floating point, not finite.
        CalibrationError: no rows.
    """

    def __init__(
        self,
        x: Float[Tensor, "n d_in"],
        target: Float[Tensor, "n d_out"] | None = None,
        gradients: Float[Tensor, "n d_in"] | None = None,
    ) -> None:
        for name, t in (("Activations", x), ("Targets", target), ("Gradients", gradients)):
            if t is None:
                continue
            if t.dim() != 2 or len(t) != len(x):
                raise ShapeError(f"{name} are one row a token, as many as inputs, got {tuple(t.shape)}.")
            if not t.is_floating_point():
                raise DtypeError(f"{name} are floating point, got {t.dtype}.")
            if not bool(torch.isfinite(t).all()):
                raise NonFiniteError(f"{name} hold NaN or infinity: check the model and the site.")
        if not len(x):
            raise CalibrationError("The stream of activations is empty; give at least one token.")
        self.all = Batch(x.detach(), None if target is None else target.detach(), gradients)
        self._order: tuple[int, int, Tensor] | None = None

    @property
    def tokens(self) -> int:
        """Rows of one pass."""
        return len(self.all)

    def batch(self, index: int, size: int, seed: int) -> Batch:
        """Rows of shuffled passes; a batch may reach from one pass into the next."""
        parts, at, left = [], index * size, size
        while left:
            epoch, first = divmod(at, self.tokens)
            take = min(left, self.tokens - first)
            parts.append(self._permuted(epoch, seed)[first : first + take])
            at, left = at + take, left - take
        return self.all.rows(torch.cat(parts))

    def _permuted(self, epoch: int, seed: int) -> Tensor:
        if self._order is None or self._order[:2] != (epoch, seed):
            generator = torch.Generator().manual_seed(seed * 1_000_003 + epoch)
            order = torch.randperm(self.tokens, generator=generator)  # on the CPU, so that every device has the same
            self._order = epoch, seed, order.to(self.all.x.device)
        return self._order[2]


def as_stream(activations: Stream | Tensor) -> Stream:
    """Activations in memory, or a stream as it is."""
    return Rows(activations) if isinstance(activations, Tensor) else activations


def passes(stream: Stream, size: int, batches: int | None = None, seed: int = 0) -> Iterator[Batch]:
    """The first batches of a stream: of one pass (its last may be shorter left out), or as many as said."""
    count = max(stream.tokens // size, 1) if batches is None else batches
    for index in range(count):
        yield stream.batch(index, min(size, stream.tokens), seed)
