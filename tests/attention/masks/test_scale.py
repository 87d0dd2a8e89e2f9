"""131072 tokens: no tensor larger than one bool for each block and head."""

from __future__ import annotations

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from sparseworks.attention.masks import Causal, MultiDiagonal, Neighbourhood, Stride, power_attention, s2, triangle

TOKENS, BLOCKS = 131072, 2048


class Largest(TorchDispatchMode):
    """Bytes of the largest tensor that any operation returned."""

    def __init__(self):
        super().__init__()
        self.nbytes = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for t in out if isinstance(out, tuple | list) else (out,):
            if isinstance(t, torch.Tensor):
                self.nbytes = max(self.nbytes, t.untyped_storage().nbytes())
        return out


@pytest.mark.parametrize(
    ("mask", "heads"),
    [
        (triangle(), 1),
        (s2(16, 8), 4),
        (power_attention(), 1),
        (MultiDiagonal(4096, 128), 1),
        (Neighbourhood((32, 64, 64), (5, 9, 9)), 1),
    ],
    ids=["triangle", "s2", "power", "multi-diagonal", "neighbourhood"],
)
def test_blocks_of_a_long_sequence_take_one_bool_each(mask, heads):
    with Largest() as seen:
        support = mask.blocks(TOKENS, TOKENS, heads=heads)
    assert support.shape == (heads, BLOCKS, BLOCKS)
    assert seen.nbytes <= BLOCKS * BLOCKS * heads


def test_undecided_blocks_are_settled_in_pieces():
    with Largest() as seen:
        support = triangle().blocks(TOKENS, TOKENS, exact=True)
        whole = Causal().whole_blocks(TOKENS, TOKENS)
    window = 512 // 64
    rows = torch.arange(BLOCKS)
    wanted = torch.minimum(rows + 1, torch.full_like(rows, window + 2))
    wanted[-2:] = rows[-2:] + 1
    assert torch.equal(support.mask()[0].sum(-1), wanted) and whole.count == BLOCKS * (BLOCKS - 1) // 2
    assert seen.nbytes <= 8 * (1 << 20)


def test_one_query_lists_its_keys_without_a_row_of_all_keys():
    mask = (Stride(4096) | MultiDiagonal(8192, 2)) & Causal()
    with Largest() as seen:
        listed = mask.columns(TOKENS - 1, TOKENS)
    assert len(listed) == 32 + 48 - 16  # columns, diagonals within one of a multiple, and where both meet
    assert seen.nbytes < 4096
