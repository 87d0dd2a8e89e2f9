"""Attention over kept units: every way equals masked scores, counts of pairs are those of the tokens."""

import pytest
import torch

from sparseworks.attention import Heads, Kept, attend_kept
from sparseworks.attention.dense import attend_dense
from sparseworks.attention.kept import attend_masked
from sparseworks.core.errors import ShapeError
from sparseworks.core.pattern import Tile

CASES = [
    (2, 4, 2, 100, 100, 32, True),
    (1, 4, 2, 37, 100, 32, True),
    (1, 4, 4, 1, 77, 32, True),
    (2, 2, 1, 50, 90, 16, False),
]
UNITS = [Tile(16, 16), Tile(32, 16), Tile(16, 32), Tile(16, 1), Tile(1, 8), Tile(None, None), Tile(None, 1), Tile(7, 5)]


@pytest.fixture(params=CASES, ids=str)
def heads(request) -> Heads:
    batch, many, kv, queries, keys, d, causal = request.param
    draw = torch.Generator().manual_seed(0)
    sizes = ((many, queries), (kv, keys), (kv, keys))
    q, k, v = (torch.randn(batch, h, n, d, generator=draw) for h, n in sizes)
    return Heads(q, k, v, causal=causal)


def test_all_units_kept_is_dense_attention(heads):
    expected = heads.scores().softmax(-1) @ heads.shared(heads.v)
    torch.testing.assert_close(attend_dense(heads), expected, atol=1e-5, rtol=0)
    for unit in UNITS:
        whole = Kept(torch.ones(1, 1, *heads.grid(unit), dtype=torch.bool), unit)
        torch.testing.assert_close(attend_kept(heads, whole)[0], expected, atol=1e-5, rtol=0)
        assert whole.density(heads) == pytest.approx(1)


def test_the_ways_agree_with_masked_scores_and_pairs_are_counted(heads):
    draw = torch.Generator().manual_seed(1)
    for unit in UNITS:
        grid = heads.grid(unit)
        kept = Kept(torch.rand(heads.batch, heads.heads, *grid, generator=draw) < 0.4, unit)
        found, expected = attend_kept(heads, kept), attend_masked(heads, kept)
        for a, b in zip(found, expected, strict=True):
            torch.testing.assert_close(a, b, atol=1e-5, rtol=0)
        pairs = kept.tokens(heads, slice(0, heads.queries))
        share = pairs.sum() / (heads.batch * heads.heads * heads.pairs(unit).sum())
        assert kept.density(heads) == pytest.approx(float(share), abs=1e-6)
        cuts = [[list(cut) for cut in side] for side in (heads.rows_of(unit.rows), heads.columns_of(unit.cols))]
        assert [edges.tolist() for edges in heads.edges(unit)] == cuts
        seen = heads.scores().isfinite()[0, 0]
        assert int(heads.pairs(unit).sum()) == int(seen.sum())


def test_gradients_pass_through_every_way(heads):
    for unit in (Tile(16, 16), Tile(16, 1), Tile(1, 8)):
        q, k, v = (t.clone().requires_grad_() for t in (heads.q, heads.k, heads.v))
        kept = Kept(torch.ones(1, 1, *heads.grid(unit), dtype=torch.bool), unit)
        attend_kept(heads.with_(q=q, k=k, v=v), kept)[0].square().sum().backward()
        mine = [t.grad for t in (q, k, v)]
        q, k, v = (t.clone().requires_grad_() for t in (heads.q, heads.k, heads.v))
        one = heads.with_(q=q, k=k, v=v)
        (one.scores().softmax(-1) @ one.shared(v)).square().sum().backward()
        for a, b in zip(mine, (q.grad, k.grad, v.grad), strict=True):
            torch.testing.assert_close(a, b, atol=1e-4, rtol=1e-4)


def test_a_mask_off_the_grid_is_refused(heads):
    with pytest.raises(ShapeError, match="grid"):
        attend_kept(heads, Kept(torch.ones(1, 1, 3, 99, dtype=torch.bool), Tile(16, 16)))
    with pytest.raises(ShapeError, match="causal"):
        Heads(heads.k, heads.q[:, : heads.kv_heads, :5], heads.q[:, : heads.kv_heads, :5], causal=True)
