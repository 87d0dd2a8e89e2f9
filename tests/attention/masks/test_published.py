"""The exact statements of published static patterns, each against its own baseline."""

from __future__ import annotations

import pytest
import torch

from sparseworks.attention.masks import (
    Causal,
    PowerOfTwo,
    Tiled,
    Window,
    power_attention,
    receptive_field,
    s2,
    sparse_vdit_modes,
    triangle,
)
from sparseworks.core.errors import ShapeError
from sparseworks.exec.attention import attend

TOKENS, BLOCK = 2048, 64


def union_over_heads(heads, shift=None):
    """Blocks that any head keeps, and those of the causal map, beyond the window."""
    mask = s2(local=2, stride=8, block=BLOCK, shift=shift)
    seen = mask.blocks(TOKENS, TOKENS, heads=heads, exact=True).mask().any(0)
    far = torch.ones_like(seen).tril(-2)
    return seen & far, far


@pytest.mark.parametrize("heads", [8, 12, 16])
def test_heads_of_s2_see_everything_together(heads):
    seen, far = union_over_heads(heads)
    assert torch.equal(seen, far)


@pytest.mark.parametrize(
    ("heads", "shift", "residues"), [(4, None, 4), (2, None, 2), (8, 0, 1), (16, 0, 1), (3, None, 3)]
)
def test_fewer_heads_or_no_shift_see_as_many_residues(heads, shift, residues):
    seen, _ = union_over_heads(heads, shift)
    assert len({int(j) % 8 for j in seen.nonzero()[:, 1]}) == residues


def test_s2_is_its_formula():
    heads, stride, local = 4, 8, 3
    kept = s2(local, stride, BLOCK).blocks(TOKENS, TOKENS, heads=heads).mask()
    step, n = max(1, stride // heads), TOKENS // BLOCK
    for h in range(heads):
        for i in range(n):
            wanted = [j <= i and (i - j < local or (j + h * step + 1) % stride == 0) for j in range(n)]
            assert kept[h, i].tolist() == wanted


def test_an_s2_head_never_reads_again_what_left_its_window_off_its_stride():
    kept = s2(2, 8, BLOCK).pairs(1024, 1024, 8)
    for t in (300, 700):
        gone = ~kept[:, t, : t - 2 * BLOCK]
        assert not bool((kept[:, t:, : t - 2 * BLOCK].any(1) & gone).any())


@pytest.mark.parametrize(
    ("layers", "power", "window"),
    [(1, 9, 9), (2, 37, 17), (3, 93, 25), (4, 163, 33), (5, 219, 41), (6, 247, 49), (8, 256, 65)],
)
def test_receptive_field_of_powers_of_two_against_a_window_of_as_many_edges(layers, power, window):
    mask, baseline = power_attention(block=BLOCK), Tiled(Window(9), BLOCK) & Causal()
    last = [m.blocks(256 * BLOCK, 256 * BLOCK, (BLOCK, BLOCK)).mask()[0, -1] for m in (_powers(), baseline)]
    assert [int(r.sum()) for r in last] == [9, 9]
    assert receptive_field(_powers(), layers, tokens=256 * BLOCK, block=BLOCK) == power
    assert receptive_field(baseline, layers, tokens=256 * BLOCK, block=BLOCK) == window
    assert receptive_field(mask, layers, tokens=256 * BLOCK, block=BLOCK) >= power


def _powers():
    return PowerOfTwo(BLOCK) & Causal()


def test_any_distance_below_2_to_the_layers_is_reached():
    for layers in range(1, 8):
        mask = _powers()
        assert receptive_field(mask, layers, tokens=2**layers * BLOCK, block=BLOCK) == 2**layers


def test_receptive_field_goes_through_one_mask_a_layer_from_the_last():
    wide, narrow = Window(9), Window(2)
    assert receptive_field([narrow, wide], tokens=64) == 10 == receptive_field([wide, narrow], tokens=64)
    assert receptive_field([Causal() & Window(1), Causal()], tokens=64) == 64
    for layers in (0, None):
        with pytest.raises(ShapeError, match="at least one layer"):
            receptive_field(wide, layers, tokens=64)
    with pytest.raises(ShapeError, match="without `layers`"):
        receptive_field([wide], 3, tokens=64)


def test_triangle_mix_keeps_its_sections_and_drops_the_middle():
    n = 1400
    kept = triangle().pairs(n, n)[0]
    i, j = torch.arange(n)[:, None], torch.arange(n)[None]
    wanted = (j <= i) & ((j < 8) | (i - j < 512) | (i >= n - 128))
    assert torch.equal(kept, wanted) and int((~kept & (j <= i)).sum()) > 0
    assert torch.equal(triangle().columns(n - 1, n), torch.arange(n))  # a decoding step is dense
    blocks = triangle().blocks(131072, 131072)
    assert blocks.count / (2048 * 2049 / 2) < 0.0125


def test_five_modes_of_a_video_head_are_what_they_are_called():
    frame, n = 16, 128
    modes = sparse_vdit_modes(frame, width=3, columns=(0, 7, 100))
    pairs = {name: mask.pairs(n, n)[0] for name, mask in modes.items()}
    d = torch.arange(n)[:, None] - torch.arange(n)[None]
    assert list(pairs) == ["full", "skip", "diagonal", "multi_diagonal", "stripe"]
    assert bool(pairs["full"].all()) and not bool(pairs["skip"].any())
    assert torch.equal(pairs["diagonal"], d.abs() < 3)
    near = torch.stack([(d - m * frame).abs() < 3 for m in range(-8, 9)]).any(0)
    assert torch.equal(pairs["multi_diagonal"], near)
    assert pairs["stripe"].any(0).nonzero().flatten().tolist() == [0, 7, 100] and bool(pairs["stripe"][:, 7].all())


@pytest.mark.parametrize("mask", [s2(2, 4, 16), power_attention(block=16)], ids=["s2", "power"])
def test_attention_over_the_blocks_is_attention_over_the_pairs(mask):
    q, k, v = torch.randn(3, 1, 4, 100, 32)
    out = attend(q, k, v, mask.blocks(100, 100, (16, 16), heads=4), block=16, causal=True)
    assert isinstance(out, torch.Tensor)
    dense = torch.nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=mask.pairs(100, 100, 4))
    torch.testing.assert_close(out, dense, atol=1e-5, rtol=1e-5)
    causal = torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)
    assert float((out - causal).abs().max()) > 1e-2
