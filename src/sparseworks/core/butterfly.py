"""Flat block butterfly: a fixed support over blocks, for weights and for attention."""

from __future__ import annotations

import torch

from sparseworks.core.errors import PatternError
from sparseworks.core.support import Support


def flat_butterfly(rows: int, cols: int, factors: int, *, size: int | None = None, ends: int = 0) -> Support:
    """The blocks that any of the first `factors` butterfly factors reaches: cell (i, j) with i = j, or i xor j = 2^0 ... 2^(factors-1).

    The cells of `size` x `size` are stretched over the grid of `rows` x `cols` blocks, so that the density is
    (1 + factors) / size. `sw.attend(q, k, v, flat_butterfly(n, n, 2, ends=1))` attends with it.

    Source: Chen, Dao et al., 2021, arXiv 2112.00029 (Pixelated butterfly).

    Args:
        rows, cols: blocks of the matrix.
        factors: 0 is the diagonal alone, log2(size) all distances that are powers of two.
        size: a power of two, at most rows and cols; default the largest.
        ends: first rows and columns of blocks that are kept whole, the low-rank part of an attention mask.

    Raises:
        PatternError: sizes that are no powers of two or do not fit, or too many factors.
    """
    most = largest_power(min(rows, cols))
    size = most if size is None else size
    if size < 1 or size & (size - 1) or size > most:
        raise PatternError(
            f"A butterfly has a power of two of cells a side, at most {most} for {rows} x {cols}, not {size}."
        )
    if not 0 <= factors <= size.bit_length() - 1:
        raise PatternError(f"A butterfly of {size} cells has 0 to {size.bit_length() - 1} factors, not {factors}.")
    if not 0 <= ends <= min(rows, cols):
        raise PatternError(f"Whole rows and columns are 0 to {min(rows, cols)}, not {ends}.")
    i, j = torch.arange(rows) * size // rows, torch.arange(cols) * size // cols
    apart = i[:, None] ^ j[None, :]
    mask = (apart == 0) | ((apart & (apart - 1) == 0) & (apart < 1 << factors))
    mask[:ends] = True
    mask[:, :ends] = True
    return Support.from_mask(mask)


def largest_power(n: int) -> int:
    """The largest power of two that is at most `n`.

    Raises:
        PatternError: n < 1.
    """
    if n < 1:
        raise PatternError(f"A butterfly needs at least one block a side, got {n}.")
    return 1 << (n.bit_length() - 1)
