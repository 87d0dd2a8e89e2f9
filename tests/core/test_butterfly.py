"""Flat butterfly supports: which blocks, how many, stretched, and as a mask of attention."""

from __future__ import annotations

import pytest
import torch

import sparseworks as sw
from sparseworks.core.butterfly import flat_butterfly
from sparseworks.core.errors import PatternError


def factor(size: int, number: int) -> torch.Tensor:
    """Support of one butterfly factor by its definition: 2 x 2 blocks of diagonals of length 2^number on the diagonal."""
    half = 2**number
    one = torch.eye(half, dtype=torch.bool)
    return torch.block_diag(*[torch.cat([torch.cat([one, one], 1)] * 2, 0)] * (size // (2 * half)))


@pytest.mark.parametrize(("size", "factors"), [(2, 1), (8, 0), (8, 1), (8, 3), (16, 2)])
def test_it_is_the_union_of_the_first_factors(size, factors):
    by_hand = torch.eye(size, dtype=torch.bool)
    for number in range(factors):
        by_hand |= factor(size, number)
    support = flat_butterfly(size, size, factors)
    assert torch.equal(support.mask(), by_hand) and support.density == (1 + factors) / size


def test_rectangles_are_stretched_and_ends_are_kept_whole():
    square, wide = flat_butterfly(4, 4, 1).mask(), flat_butterfly(4, 12, 1).mask()
    assert torch.equal(wide, square.repeat_interleave(3, 1))
    assert torch.equal(flat_butterfly(12, 4, 1).mask(), wide.T)
    assert flat_butterfly(16, 16, 1, size=4).density == 2 / 4
    whole = flat_butterfly(8, 8, 1, ends=2).mask()
    assert whole[:2].all() and whole[:, :2].all() and torch.equal(whole[2:, 2:], flat_butterfly(8, 8, 1).mask()[2:, 2:])
    uneven = flat_butterfly(6, 7, 2).mask()
    assert uneven.any(dim=0).all() and uneven.any(dim=1).all()


def test_attention_takes_it():
    q, k, v = torch.randn(3, 2, 2, 64, 16).unbind()
    support = flat_butterfly(8, 8, 2, ends=1)
    seen = support.mask().repeat_interleave(8, 0).repeat_interleave(8, 1)
    wanted = torch.nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=seen)
    assert torch.allclose(sw.attend(q, k, v, support, block=8), wanted, atol=1e-5)


@pytest.mark.parametrize(
    ("args", "says"),
    [
        ((8, 8, 4), "0 to 3"),
        ((8, 8, -1), "0 to 3"),
        ((0, 4, 0), "at least one"),
        ((8, 4, 1, 8), "at most 4"),
        ((8, 8, 1, 6), "power"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(args, says):
    with pytest.raises(PatternError, match=says):
        flat_butterfly(*args[:3], size=args[3] if len(args) > 3 else None)
    with pytest.raises(PatternError, match="Whole rows"):
        flat_butterfly(4, 4, 1, ends=5)
