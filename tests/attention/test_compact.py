"""Subsets of tokens compacted, hashed tokens sorted: exact for their mask, in as many tiles as that takes."""

import pytest
import torch

import sparseworks as sw
from sparseworks.attention import Heads
from sparseworks.attention.compact import attend_compact, attend_hashed, compact_tiles
from sparseworks.attention.scores import Collisions
from sparseworks.attention.scores.hashing import sign_codes
from sparseworks.core.budget import Threshold
from sparseworks.core.errors import ShapeError
from sparseworks.evaluate.sequences import qkv


def masked(heads, pairs):
    return heads.scores().masked_fill(~pairs, -torch.inf).softmax(-1).nan_to_num(0.0) @ heads.shared(heads.v)


@pytest.mark.parametrize(("queries", "keys", "causal"), [(300, 300, True), (90, 300, True), (120, 300, False)])
@pytest.mark.parametrize(("p", "r"), [(0.5, 0.3), (0.0, 0.0), (0.9, 0.99)])
def test_random_drops_equal_the_masked_map(heads_of, assert_close, queries, keys, causal, p, r):
    q, k, v = qkv(keys, d=32, heads=4, kv_heads=2, batch=2, seed=0)
    heads = heads_of((q[:, :, keys - queries :], k, v), causal=causal)
    g = torch.Generator().manual_seed(1)
    of, to = torch.rand(2, 4, queries, generator=g) >= p, torch.rand(2, 4, keys, generator=g) >= r
    out, lse = attend_compact(heads, of, to)
    pairs = of.unsqueeze(-1) & to.unsqueeze(-2)
    assert_close(out, masked(heads, pairs))
    assert_close(lse, heads.scores().masked_fill(~pairs, -torch.inf).logsumexp(-1))


def test_positions_within_the_compacted_sequence_do_not_do_for_causality(heads_of):
    heads = heads_of(qkv(128, d=32, heads=1, seed=0))
    g = torch.Generator().manual_seed(0)
    of, to = torch.rand(1, 1, 128, generator=g) < 0.5, torch.rand(1, 1, 128, generator=g) < 0.7
    short = Heads(*(t[:, :, m[0, 0]] for t, m in ((heads.q, of), (heads.k, to), (heads.v, to))), causal=True)
    rank = torch.zeros_like(heads.q)
    rank[:, :, of[0, 0]] = short.scores().softmax(-1) @ short.v
    expected = masked(heads, of.unsqueeze(-1) & to.unsqueeze(-2))
    assert (
        float((attend_compact(heads, of, to)[0] - expected).abs().max())
        < 1e-5
        < 0.1
        < float((rank - expected).abs().max())
    )


def test_the_same_subset_of_queries_and_keys_passes_gradients(assert_close):
    q, k, v = (t.requires_grad_() for t in qkv(96, d=32, heads=2, seed=0))
    kept = torch.rand(1, 2, 96, generator=torch.Generator().manual_seed(0)) < 0.5
    heads = Heads(q, k, v)
    mine = torch.autograd.grad(attend_compact(heads, kept, kept)[0].square().sum(), (q, k, v))
    scores = heads.scores().masked_fill(~kept.unsqueeze(-2), -1e30)  # a row of nothing has no gradient
    out = (scores.softmax(-1) @ v) * kept.unsqueeze(-1)
    for a, b in zip(mine, torch.autograd.grad(out.square().sum(), (q, k, v)), strict=True):
        assert_close(a, b, 1e-4)


@pytest.mark.parametrize(("p", "r"), [(0.5, 0.5), (0.75, 0.25)])
def test_tiles_of_drops_are_the_product_of_what_stays(p, r):
    g = torch.Generator().manual_seed(0)
    n = 8192
    of, to = ((torch.rand(n, generator=g) >= x).nonzero()[:, 0] for x in (p, r))
    share = compact_tiles(of, to) / compact_tiles(torch.arange(n), torch.arange(n))
    assert share == pytest.approx((1 - p) * (1 - r), rel=0.1)


@pytest.mark.parametrize("causal", [False, True])
def test_buckets_equal_the_masked_map_in_about_one_tile_of_as_many_as_there_are_buckets(
    heads_of, call, assert_close, causal
):
    heads = heads_of(qkv(1024, d=32, heads=2, kv_heads=1, rho=0.0, seed=0), causal=causal)
    codes = sign_codes(heads.q, 3), heads.shared(sign_codes(heads.k, 3))
    (out, _), tiles = attend_hashed(heads, *codes, tile=16)
    pairs = codes[0].unsqueeze(-1) == codes[1].unsqueeze(-2)
    assert_close(out, masked(heads, pairs))
    assert 1 / 8 <= tiles / (2 * 64 * 64) < 1.5 / 8
    method = sw.method("scfa_hash", score=Collisions(3, 1), budget=Threshold(0.5), always=None)
    some = (pairs & heads.scores().isfinite()).any(
        -1, keepdim=True
    )  # the method adds the own token where a bucket is empty
    assert_close(call(method, heads).out * some, out)


def test_subsets_that_do_not_fit_are_refused(heads_of):
    heads = heads_of(qkv(32, d=32, heads=2, seed=0))
    whole = torch.ones(1, 2, 32, dtype=torch.bool)
    with pytest.raises(ShapeError, match="Subsets"):
        attend_compact(heads, whole[..., :20], whole)
    with pytest.raises(ShapeError, match="Subsets"):
        attend_hashed(heads, whole.long(), torch.ones(3, 2, 32, dtype=torch.long))
