"""FlexAttention and back: the same blocks, the same pairs, the same attention."""

from __future__ import annotations

import pytest
import torch
from torch.nn.attention.flex_attention import BlockMask, create_block_mask, create_mask, flex_attention

from sparseworks.attention.masks import (
    Causal,
    Document,
    FromMod,
    Neighbourhood,
    PerHead,
    Sink,
    Stride,
    Window,
    from_block_mask,
    s2,
    to_block_mask,
    triangle,
)
from sparseworks.core.config import to_config
from sparseworks.core.errors import PatternError, RecipeError
from sparseworks.testing import check_mask

N = 300
MASKS = [
    Causal(),
    triangle(4, 40, 20),
    s2(2, 3, 16),
    Document((100, 57, 90)) & Causal(),
    PerHead((Window(30), ~Sink(5), Causal() & Stride(7), Causal())),
    Neighbourhood((5, 6, 10), (3, 3, 5)),
]


def tile_lists(block_mask):
    read = from_block_mask(block_mask)
    return read.kept, read.whole


@pytest.mark.parametrize("mask", MASKS, ids=lambda m: type(m).__name__)
def test_there_and_back_is_exact(mask):
    flex = to_block_mask(mask, N, N, (32, 64), heads=4)
    read = from_block_mask(flex)
    assert read.tile == (32, 64) and flex.seq_lengths == (N, N)
    whole = mask.whole_blocks(N, N, (32, 64), 4).mask()
    whole[:, N // 32 :], whole[:, :, N // 64 :] = False, False
    assert read.kept == mask.blocks(N, N, (32, 64), 4) and torch.equal(read.whole.mask(), whole)
    assert torch.equal(read.mask.pairs(N, N, 4).expand(4, N, N), mask.pairs(N, N, 4).expand(4, N, N))


@pytest.mark.parametrize(
    "mask", [Causal(), Window(50) & Causal(), Document((100, 57, 90))], ids=["causal", "window", "docs"]
)
def test_the_lists_are_those_that_pytorch_makes_by_asking_every_pair(mask):
    ours = to_block_mask(mask, N, N, (32, 32), heads=2)
    theirs = create_block_mask(mask.mask_mod(N, 2), 1, None, N, N, device="cpu", BLOCK_SIZE=32)
    for a, b in zip(tile_lists(ours), tile_lists(theirs), strict=True):
        assert a == b
    assert torch.equal(
        create_mask(mask.mask_mod(N, 2), 1, 2, N, N, device="cpu")[0], mask.pairs(N, N, 2).expand(2, N, N)
    )


@pytest.mark.filterwarnings("ignore")  # eager flex_attention asks to be compiled
@pytest.mark.parametrize("mask", MASKS, ids=lambda m: type(m).__name__)
def test_flex_attention_reads_the_mask(mask):
    q, k, v = torch.randn(3, 1, 4, N, 16)
    out = flex_attention(q, k, v, block_mask=to_block_mask(mask, N, N, heads=4))
    dense = torch.nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=mask.pairs(N, N, 4))
    torch.testing.assert_close(out, dense, atol=1e-5, rtol=1e-5)


def test_an_offset_places_the_queries():
    flex = to_block_mask(triangle(4, 40, 20), 16, N, (16, 32), offset=N - 100)
    pairs = triangle(4, 40, 20).pairs(16, N, offset=N - 100)
    assert torch.equal(from_block_mask(flex).mask.pairs(16, N), pairs)


def test_lists_padded_with_zeros_are_read_as_far_as_they_count():
    counts = torch.tensor([[[1, 2]]], dtype=torch.int32)
    flex = BlockMask.from_kv_blocks(counts, torch.tensor([[[[0, 0], [0, 1]]]], dtype=torch.int32), BLOCK_SIZE=8)
    read = from_block_mask(flex)
    assert read.kept.mask().tolist() == [[[True, False], [True, True]]] and read.whole.count == 0


def test_any_function_is_a_mask():
    def mod(b, h, q, k):
        return (q - k).abs() % (h + 2) == 0

    mask = FromMod(mod, heads_differ=True)
    check_mask(mask)
    check_mask(mask & Causal())
    assert not FromMod(lambda b, h, q, k: q >= k).by_head
    with pytest.raises(RecipeError, match="register"):
        to_config(mask)
    with pytest.raises(PatternError, match="function"):
        FromMod(3)


def test_a_drawing_has_a_panel_for_each_head():
    figure = s2(2, 8).draw(tokens=1024, heads=10)
    assert len(figure.axes) == 10 and figure.axes[1].get_title().startswith("head 1")
    panel = Causal().draw(tokens=256).axes[0].images[0].get_array()
    assert panel.tolist() == [[1 + (i > j) if i >= j else 0 for j in range(4)] for i in range(4)]
