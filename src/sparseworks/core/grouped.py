"""Grouped n:m (n:m:g): in every chunk of C(m, n) g rows and block of m columns each choice of n columns is made by exactly g rows."""

from __future__ import annotations

from functools import cache
from math import comb

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

MOST_CHOICES = 1024
_PAIRS_AT_ONCE = 1 << 24


@cache
def choices(n: int, m: int) -> Int[Tensor, "choices n"]:
    """The C(m, n) sets of n of m columns, ascending each, in the revolving-door order: neighbours differ in one column."""
    return torch.tensor(_revolving(n, m), dtype=torch.uint8).reshape(comb(m, n), n)


def _revolving(n: int, m: int) -> list[tuple[int, ...]]:
    """Those without column m - 1, then those with it in reverse order."""
    if n == 0:
        return [()]
    if n == m:
        return [tuple(range(m))]
    return _revolving(n, m - 1) + [(*without, m - 1) for without in reversed(_revolving(n - 1, m - 1))]


def numbers(mask: Bool[Tensor, "*batch rows cols"], n: int, m: int) -> Int[Tensor, "*batch rows blocks"]:
    """Which choice of `choices(n, m)` each row makes in each block of m columns; -1 where it does not keep n of them."""
    codes = (mask.unflatten(-1, (mask.shape[-1] // m, m)).long() << torch.arange(m, device=mask.device)).sum(dim=-1)
    known = (torch.ones((), dtype=torch.long) << choices(n, m).long()).sum(dim=-1)
    table = torch.full((1 << m,), -1, device=mask.device)
    table[known.to(mask.device)] = torch.arange(known.numel(), device=mask.device)
    return table[codes]


def uses(
    number: Int[Tensor, "*batch rows blocks"], count: int, chunk: int
) -> Int[Tensor, "*batch chunks choices blocks"]:
    """How many rows of each chunk of `chunk` rows make each of `count` choices (those that make none are left out)."""
    chunks = number.unflatten(-2, (number.shape[-2] // chunk, chunk))
    found = number.new_zeros((*chunks.shape[:-2], count + 1, chunks.shape[-1]))
    found.scatter_add_(-2, torch.where(chunks < 0, count, chunks), torch.ones_like(chunks))
    return found[..., :count, :]


def select_grouped(
    scores: Float[Tensor, "*batch rows cols"], n: int, m: int, g: int
) -> Bool[Tensor, "*batch rows cols"]:
    """Greedy by kept score: (row, choice) pairs in falling order of sum_{j in choice} score_j, each taken if its row is free and
    its choice has been made by fewer than g rows of the chunk; ties to the lower row, then the earlier choice.
    Scores are compared as float32.

    The assignment of n:m:g layouts by Ivanov et al. (2023, arXiv 2304.07613). `rows` must be a multiple of C(m, n) g.
    """
    *batch, rows, cols = scores.shape
    if not scores.numel():
        return torch.zeros(scores.shape, dtype=torch.bool, device=scores.device)
    table = choices(n, m).long().to(scores.device)
    chunk = g * table.shape[0]
    limit = torch.finfo(torch.float32).max / (2 * m)  # sums of infinities have no order
    blocks = scores.float().clamp(-limit, limit).reshape(-1, chunk, cols // m, m).transpose(1, 2).reshape(-1, chunk, m)
    made = [_assign(part, table, g) for part in blocks.split(max(1, _PAIRS_AT_ONCE // (chunk * table.shape[0])))]
    kept = torch.zeros(blocks.shape, dtype=torch.bool, device=scores.device).scatter_(
        2, table[torch.cat(made)], value=True
    )
    return kept.reshape(-1, cols // m, chunk, m).transpose(1, 2).reshape(*batch, rows, cols)


def _assign(
    scores: Float[Tensor, "chunks rows m"], table: Int[Tensor, "choices n"], g: int
) -> Int[Tensor, "chunks rows"]:
    """The choice of every row: one step a pair, all chunks at once."""
    (chunks, rows, _), (count, width) = scores.shape, table.shape
    kept = scores.index_select(2, table[:, 0])
    for j in range(1, width):
        kept += scores.index_select(2, table[:, j])
    pairs = _falling(kept.flatten(1)).t().contiguous().to(scores.device)
    chunk = torch.arange(chunks, device=scores.device)
    made = torch.full((rows * chunks,), -1, dtype=torch.short, device=scores.device)
    left = torch.full((count * chunks,), g, device=scores.device)
    for pair in pairs:
        choice = pair % count
        by_row, by_choice = pair // count * chunks + chunk, choice * chunks + chunk
        before, room = made[by_row], left[by_choice]
        taken = (before < 0) & (room > 0)
        made[by_row] = torch.where(taken, choice.short(), before)
        left[by_choice] = room - taken.long()
    return made.reshape(rows, chunks).t().long()


def _falling(kept: Float[Tensor, "chunks pairs"]) -> Int[Tensor, "chunks pairs"]:
    """A stable argsort, largest first, by one sort of 64-bit numbers: the order of the float32 above the place of the pair."""
    bits = (kept + 0.0).cpu().view(torch.int32)  # + 0.0 makes -0.0 equal to 0.0
    rising = torch.where(bits < 0, bits ^ torch.iinfo(torch.int32).max, bits)
    keys = ((~rising).long() << 32) + torch.arange(kept.shape[1])
    return torch.from_numpy(np.sort(keys.numpy(), axis=1)) & 0xFFFFFFFF
