"""Windows of a map compete by magnitude; those kept are gathered, run as one batch, and scattered back between the others, which pass through."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float, Int
from torch import Tensor

from sparseworks.activations.trained.activation import ACTIVATIONS, Activation
from sparseworks.core.errors import BudgetError, ShapeError
from sparseworks.core.select import top


def partition(x: Float[Tensor, "batch high wide c"], size: int) -> Float[Tensor, "batch windows tokens c"]:
    """Windows of size x size tokens, row by row.

    Raises:
        ShapeError: the map does not divide into windows.
    """
    b, high, wide, c = x.shape
    if high % size or wide % size:
        raise ShapeError(f"A map of {high} x {wide} tokens does not divide into windows of {size} x {size}.")
    tiles = x.reshape(b, high // size, size, wide // size, size, c)
    return tiles.transpose(2, 3).reshape(b, -1, size * size, c)


def unpartition(
    windows: Float[Tensor, "batch windows tokens c"], high: int, wide: int
) -> Float[Tensor, "batch high wide c"]:
    """Inverse of `partition`."""
    b, _, tokens, c = windows.shape
    size = round(tokens**0.5)
    return windows.reshape(b, high // size, wide // size, size, size, c).transpose(2, 3).reshape(b, high, wide, c)


def window_scores(windows: Float[Tensor, "batch windows tokens c"]) -> Float[Tensor, "batch windows"]:
    """|| mean_c |x| ||_2 over the tokens of each window: SparseViT's magnitude (Chen et al., 2023, arXiv 2303.17605)."""
    return windows.abs().mean(dim=-1).norm(dim=-1)


def ranked(scores: Float[Tensor, "batch windows"]) -> Int[Tensor, "batch windows"]:
    """Windows from the largest score on, ties to the lower index. A prefix of it is nested in every longer one."""
    return scores.sort(dim=-1, descending=True, stable=True).indices


def on_windows(
    f: Callable[[Float[Tensor, "kept tokens c"]], Float[Tensor, "kept tokens c"]],
    windows: Float[Tensor, "batch windows tokens c"],
    kept: Int[Tensor, "batch k"],
) -> Float[Tensor, "batch windows tokens c"]:
    """f on the kept windows, all of the batch at once; the others are copied.

    The work of f falls in proportion to the windows kept; every image keeps as many.
    """
    at = kept[:, :, None, None].expand(-1, -1, *windows.shape[2:])
    chosen = windows.gather(1, at)
    return windows.scatter(1, at, f(chosen.flatten(0, 1)).reshape(chosen.shape))


@ACTIVATIONS.register("window_magnitude")
@dataclass(frozen=True)
class WindowMagnitude(Activation):
    """Of each image the windows with the largest || mean_c |x| ||_2 run, 1 - sparsity of them; scored once a stage and nested inside it.

    Called on a map it leaves zeros in the other windows; `WindowTransformer` lets them pass through its blocks instead.

    Source: Chen et al., 2023, arXiv 2303.17605 (SparseViT).
    """

    built_with: ClassVar[str] = "WindowTransformer"

    sparsity: float = 0.5
    size: int = 2

    def __post_init__(self):
        if not 0.0 <= self.sparsity < 1.0 or self.size < 1:
            raise BudgetError(f"Sparsity lies in [0, 1) and a window has tokens, got {self.sparsity} and {self.size}.")

    def kept(self, windows: int) -> int:
        """How many run, at least one."""
        return max(1, windows - round(self.sparsity * windows))

    def __call__(self, x: Float[Tensor, "batch high wide c"]) -> Float[Tensor, "batch high wide c"]:
        """x with zeros outside the kept windows."""
        windows = partition(x, self.size)
        mask = top(window_scores(windows.detach()), self.kept(windows.shape[1]))
        return unpartition(windows * mask[:, :, None, None], x.shape[1], x.shape[2])


def nested(sparsities: Sequence[float]) -> tuple[float, ...]:
    """The running maximum: inside a stage the share left out may only grow."""
    found: list[float] = []
    for s in sparsities:
        if not 0.0 <= s < 1.0:
            raise BudgetError(f"The share of windows left out lies in [0, 1), got {s}.")
        found.append(max(s, found[-1] if found else 0.0))
    return tuple(found)


def random_sparsities(
    blocks: int, g: torch.Generator, levels: Sequence[float] = tuple(i / 10 for i in range(8))
) -> tuple[float, ...]:
    """Sparsities of one training step, drawn for each block and sorted: a model trained so can be asked for any ratios without training again."""
    drawn = torch.randint(len(levels), (blocks,), generator=g)
    return nested(sorted(levels[int(i)] for i in drawn))
