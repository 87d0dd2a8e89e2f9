"""Rehearsal: a reservoir of examples seen, losses on them, and which examples of the present task need not be seen again."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from sparseworks.core.errors import CalibrationError, ShapeError


class Reservoir:
    """A uniform sample of `size` of all examples seen, whatever their number: the n-th enters with probability size / n.

    Source: Vitter, 1985 (algorithm R), as used for experience replay.

    Attributes:
        seen: examples so far.
    """

    def __init__(self, size: int, *, seed: int = 0):
        """Empty.

        Raises:
            CalibrationError: no room for one example.
        """
        if size < 1:
            raise CalibrationError(f"A reservoir holds at least one example, got {size}.")
        self.size, self.seen = size, 0
        self.columns: list[Tensor] = []
        self._random = torch.Generator().manual_seed(seed)

    def __len__(self) -> int:
        return min(self.seen, self.size)

    def add(self, *columns: Tensor) -> None:
        """Show it examples: inputs, labels and whatever belongs to them, one row each.

        Raises:
            ShapeError: columns of unequal length, or other ones than before.
        """
        shapes = [c.shape[1:] for c in columns]
        if len({len(c) for c in columns}) != 1 or (self.columns and shapes != [c.shape[1:] for c in self.columns]):
            raise ShapeError(f"A reservoir takes the same columns every time, one row an example; got {shapes}.")
        if not self.columns:
            self.columns = [c.new_zeros(self.size, *c.shape[1:]) for c in columns]
        for row in range(len(columns[0])):
            at = self.seen
            if at >= self.size:
                at = int(torch.randint(self.seen + 1, (1,), generator=self._random))
            self.seen += 1
            if at < self.size:
                for held, column in zip(self.columns, columns, strict=True):
                    held[at] = column[row].detach()

    def sample(self, count: int) -> tuple[Tensor, ...]:
        """Rows drawn without replacement, all if there are fewer.

        Raises:
            CalibrationError: it is empty.
        """
        if not len(self):
            raise CalibrationError("The reservoir is empty: `add` examples first.")
        at = torch.randperm(len(self), generator=self._random)[:count]
        return tuple(c[at.to(c.device)] for c in self.columns)

    @property
    def nbytes(self) -> int:
        """Bytes of what it holds when full."""
        return sum(c.numel() * c.element_size() for c in self.columns)


def rehearsal_loss(
    model: nn.Module, buffer: Reservoir, count: int, *, logits: float = 0.1, labels: float = 0.5
) -> Float[Tensor, ""]:
    """logits * mean ||f(x') - z'||^2 / classes + labels * CE(f(x''), y''), on two draws from a reservoir of (x, y, z).

    Experience replay with logits = 0 (z may then be missing), DER with labels = 0, else DER++. On an empty reservoir it is 0.

    Source: Buzzega, Boschini, Porrello, Abati and Calderara, 2020, arXiv 2004.07211; weights as SparCL, arXiv 2209.09476.
    """
    total = torch.zeros(())
    if not len(buffer):
        return total
    if logits:
        x, _, z = buffer.sample(count)
        total = total + logits * F.mse_loss(model(x), z)
    if labels:
        x, y, *_ = buffer.sample(count)
        total = total + labels * F.cross_entropy(model(x), y)
    return total


class EasyExamples:
    """Dynamic data removal: examples that were never unlearned have little left to teach.

    easy = EasyExamples(len(data))
    every batch: easy.saw(indices, logits.argmax(1) == labels)
    every few epochs: easy.remove(750)          # then train on `easy.left`

    A forgetting event is a step from right to wrong between two presentations of an example.

    Source: Toneva et al., 2019, arXiv 1812.05159 (forgetting events); Wang et al., 2022, arXiv 2209.09476 (removal while training).

    Attributes:
        left: indices of the examples that are still used.
        forgotten: forgetting events of every example since the last removal.
    """

    def __init__(self, count: int):
        self.left: Int[Tensor, " left"] = torch.arange(count)
        self._forget(count)

    def saw(self, indices: Int[Tensor, " batch"], right: Bool[Tensor, " batch"]) -> None:
        """A batch was predicted, rightly or not."""
        indices, right = indices.cpu(), right.cpu()
        self.forgotten[indices] += self._right[indices] & ~right
        self._right[indices] = right
        self._learned[indices] |= right

    def remove(self, count: int) -> Int[Tensor, " left"]:
        """Drop the `count` examples with the fewest events (never learned ones are the hardest); counting starts anew.

        Returns:
            `left`.
        """
        hardness = torch.where(self._learned, self.forgotten, torch.iinfo(torch.int64).max)[self.left]
        self.left = self.left[hardness.argsort(stable=True)[count:]].sort().values
        self._forget(len(self.forgotten))
        return self.left

    def _forget(self, count: int) -> None:
        self.forgotten: Int[Tensor, " examples"] = torch.zeros(count, dtype=torch.int64)
        self._right = torch.zeros(count, dtype=torch.bool)
        self._learned = torch.zeros(count, dtype=torch.bool)
