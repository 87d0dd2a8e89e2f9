"""Attention over bitmaps in one pass is that over the vectors they stand for, by every instruction set."""

import pytest
import torch

from sparseworks.attention.cache.bitmap import Bitmap, BitmapCoded
from sparseworks.attention.cache.form import KVForm


def encoded(form, tokens, d, dtype, draw):
    k, v = (torch.randn(tokens, d, generator=draw).to(dtype) for _ in range(2))
    return form.encode(k, v, torch.ones(tokens, dtype=torch.bool))[0][0]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("queries", "d"), [(1, 32), (3, 64), (6, 96)])
def test_pieces_of_segments_in_one_pass(queries, d, dtype, isa):
    """Segments of several pieces, of one, of none; pieces that end within a page or within half of one."""
    draw, form = torch.Generator().manual_seed(0), Bitmap(0.6)
    sizes = [[130, 33], [64], [], [1, 70, 200]]
    pieces = [[encoded(form, n, d, dtype, draw) for n in some] for some in sizes]
    q = torch.randn(4, queries, d, generator=draw)
    found, expected = form.attend(pieces, q, 0.2), KVForm.attend(form, pieces, q, 0.2)
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, atol=2e-5, rtol=2e-5)
    assert not found[0][2].any() and bool(found[1][2].isneginf().all())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_two_pieces_become_one_without_loss(dtype):
    draw, form = torch.Generator().manual_seed(0), Bitmap(0.6)
    first, second = (encoded(form, n, 64, dtype, draw) for n in (40, 33))
    one = form.joined(first, second)
    assert isinstance(one, BitmapCoded) and one.tokens == 73 and one.parts["k_values"].dtype is dtype
    for i in range(2):
        assert torch.equal(one.decoded()[i], torch.cat([first.decoded()[i], second.decoded()[i]]))
    assert one.nbytes < first.nbytes + second.nbytes
