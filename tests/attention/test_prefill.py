"""Prefill selection without training: every method against what it claims to better, on drawn tensors."""

from dataclasses import dataclass
from itertools import product

import pytest
import torch

import sparseworks as sw
from sparseworks.attention import AttentionMethod, Heads, Kept, blocks, select, stripes
from sparseworks.attention.boundaries import BoundaryPredictor, labels, novelty, peaks
from sparseworks.attention.masks import Sink, Window
from sparseworks.attention.score import AttentionScore
from sparseworks.attention.scores import (
    AnchorGap,
    ExactMass,
    RaggedChunks,
    SelfSimilar,
    TreeSearch,
    TwoStageIndexer,
    VerticalSlash,
)
from sparseworks.attention.scores.slashes import profiles
from sparseworks.attention.scores.sparge import self_similarity
from sparseworks.attention.skipping import attend_skipping
from sparseworks.core.budget import Count, Density, Mass, Threshold
from sparseworks.core.errors import BudgetError
from sparseworks.core.pattern import Tile
from sparseworks.core.select import top
from sparseworks.evaluate.sequences import iou, qkv, rel_l2

# -- SpargeAttn -------------------------------------------------------------------------------------------------------


def test_self_similarity_is_the_mean_cosine_of_all_pairs(assert_close):
    x = torch.randn(2, 3, 20, 8)
    found = self_similarity(x, [(0, 8), (8, 20)])
    unit = torch.nn.functional.normalize(x[:, :, 8:], dim=-1)
    assert_close(found[..., 1], (unit @ unit.mT).mean((-2, -1)))


@pytest.mark.parametrize("seed", [0, 1])
def test_pooled_blocks_are_nearly_the_best_where_tokens_are_alike(heads_of, call, seed):
    heads = heads_of(qkv(512, heads=2, seed=seed), causal=False)
    pooled, oracle = (
        call(sw.method(n, pattern=blocks(32), density=0.25), heads) for n in ("pooled_blocks", "oracle_blocks")
    )
    assert pooled.mass > 0.95 * oracle.mass


@pytest.mark.parametrize("seed", [0, 1])
def test_the_guard_goes_dense_on_what_cannot_be_judged_and_keeps_the_error_bound_on_both(heads_of, call, dense, seed):
    method = sw.method("spargeattn", pattern=blocks(32), budget=Mass(0.95), always=None)
    blind = method.with_(score=SelfSimilar(similarity=-1.0))
    drawn = qkv(512, heads=2, rho=0.97, seed=seed)
    smooth, shuffled = (heads_of(d, causal=False) for d in (drawn, drawn.shuffled(seed)))
    on_smooth, on_shuffled = call(method, smooth), call(method, shuffled)
    assert on_smooth.density < 0.95 and on_shuffled.density == 1
    for seen in (on_smooth, on_shuffled):
        exact = dense(seen.heads)
        assert float((seen.out - exact).abs().sum() / exact.abs().sum()) < 0.12
    assert call(blind, shuffled).error > 100 * on_shuffled.error


def test_a_mass_is_taken_of_finite_scores_and_infinite_ones_are_kept_besides(heads_of):
    heads = heads_of(qkv(128, heads=1, seed=0), causal=False)
    score = SelfSimilar(similarity=0.3)
    shares = score(heads, Tile(16, 16))
    kept = select(heads, sw.method("spargeattn", score=score, pattern=blocks(16), budget=Mass(0.5), always=None)).mask
    sure = shares == torch.inf
    assert bool(kept[sure].all())
    for row, fixed, chosen in zip(shares[0, 0], sure[0, 0], kept[0, 0], strict=True):
        finite = row[~fixed]
        best = finite.sort(descending=True).values.cumsum(0)
        fewest = int((best < 0.5 * finite.sum() * (1 - 1e-9)).sum()) + 1 if len(finite) and finite.sum() > 0 else 0
        assert int((chosen & ~fixed).sum()) == min(fewest, len(finite))


def test_tiles_far_below_the_running_maximum_add_nothing(heads_of, dense, assert_close):
    heads = heads_of(qkv(256, heads=2, scale=2.5, seed=0))
    kept = Kept(torch.ones(1, 1, *heads.grid(Tile(16, 16)), dtype=torch.bool), Tile(16, 16))
    exact = dense(heads)
    (out, lse), none = attend_skipping(heads, kept, 1e9)
    assert none == 0
    assert_close(out, exact)
    assert_close(lse, heads.scores().logsumexp(-1))
    shares = []
    for margin in (8.0, 4.0, 2.0):
        (out, _), skipped = attend_skipping(heads, kept, margin)
        shares.append(skipped)
        assert float((out - exact).abs().max()) <= 256 * 2.718281828**-margin * float(heads.v.abs().max())
    assert 0 < shares[0] < shares[1] < shares[2] and float(rel_l2(out, exact)) < 0.02


# -- AnchorAttention --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_stripes_reach_a_mass_at_much_lower_density_than_blocks(heads_of, call, seed):
    heads = heads_of(qkv(512, heads=2, columns=8, column_gain=9.0, seed=seed))
    anchor = sw.method("anchor_attention", score=AnchorGap(16, 32), pattern=stripes(32), always=Sink(16) | Window(32))
    seen = [call(anchor.with_(budget=Threshold(-theta)), heads) for theta in (2.0, 4.0, 6.0, 8.0)]
    masses = [s.mass for s in seen]
    assert masses == sorted(masses) and masses[0] > 0.9
    assert [s.density for s in seen] == sorted(s.density for s in seen)
    whole = [call(anchor.with_(pattern=blocks(32), budget=Threshold(-theta)), heads) for theta in (1.0, 2.0, 4.0, 8.0)]
    rival = min(w.density for w in whole if w.mass >= seen[0].mass)
    assert seen[0].density < 0.75 * rival


def test_the_gap_is_that_of_a_loop_and_lists_may_be_shared(heads_of, assert_close):
    heads = heads_of(qkv(96, heads=2, kv_heads=1, seed=3))
    gap = AnchorGap(8, 16)(heads, Tile(32, 1))
    logits = heads.scores()
    for row in range(3):
        rows = slice(32 * row, 32 * row + 32)
        start = max(0, 32 * row - 16)
        near = torch.cat([logits[:, :, rows, : min(8, start)], logits[:, :, rows, start : 32 * row + 32]], -1)
        anchor = near.amax(-1).mean(-1)
        expected = (heads.q[:, :, rows].mean(2, keepdim=True) @ heads.shared(heads.k).mT * heads.factor)[:, :, 0]
        assert_close(gap[:, :, row], expected - anchor.unsqueeze(-1))
    shared = AnchorGap(8, 16, step=2)(heads, Tile(32, 1))
    assert_close(shared[:, :, 0], gap[:, :, :2].amax(2))
    assert_close(shared[:, :, 2], gap[:, :, 2])


# -- HiP --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", [0, 1])
def test_the_tree_finds_what_is_best_where_keys_are_alike_and_not_where_they_are_shuffled(heads_of, call, seed):
    drawn = qkv(1024, rho=0.98, scale=1.6, seed=seed)
    tree = sw.method("hip", score=TreeSearch(64), pattern=blocks(32, 2), budget=Count(64), always=None)
    flat, oracle = tree.with_(score=TreeSearch(None)), tree.with_(score=ExactMass())
    smooth, shuffled = (heads_of(d, causal=False) for d in (drawn, drawn.shuffled(seed)))
    found = call(tree, smooth)
    assert found.density == pytest.approx(1 / 16) and found.mass > 0.85 * call(oracle, smooth).mass
    assert call(tree, shuffled).mass < 0.6 * call(flat, shuffled).mass


def test_a_beam_scores_few_units_and_only_of_the_past(heads_of, assert_close):
    heads = heads_of(qkv(100, heads=2, kv_heads=1, seed=0))
    unit = Tile(8, 4)
    scores, whole = TreeSearch(16)(heads, unit), TreeSearch(None)(heads, unit)
    found = scores.isfinite()
    assert bool((found.sum(-1) <= 4).all()) and bool(found.any(-1).all())
    assert_close(scores[found], whole[found])
    assert not bool((found & ~heads.allowed(unit)).any())
    with pytest.raises(BudgetError, match="beam"):
        TreeSearch(0)


@pytest.mark.parametrize(
    ("queries", "keys", "causal"), [(200, 200, True), (37, 300, True), (37, 300, False), (1, 70, True)]
)
def test_what_a_search_lists_is_chosen_as_from_the_whole_grid(queries, keys, causal):
    """Small whole numbers, so that many scores tie; beams narrower and wider than the budget; with and without a mask."""

    @dataclass(frozen=True)
    class Grid(AttentionScore):
        tree: TreeSearch

        def __call__(self, heads, unit):
            return self.tree(heads, unit)

    draw = torch.Generator().manual_seed(0)
    q, k = (torch.randint(-2, 3, (2, h, n, 8), generator=draw).float() for h, n in ((4, queries), (2, keys)))
    heads = Heads(q, k, k, causal=causal)
    options = product((Count(16), Count(400), Density(0.3)), (8, 64), (None, Sink(4) | Window(16)), ((16, 4), (8, 1)))
    for budget, beam, always, unit in options:
        method = AttentionMethod("test", TreeSearch(beam), blocks(*unit), budget, always=always)
        listed, grid = select(heads, method), select(heads, method.with_(score=Grid(TreeSearch(beam))))
        assert torch.equal(listed.mask, grid.mask)


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize(
    ("queries", "unit"), [(200, Tile(32, 4)), (77, Tile(16, 1)), (1, Tile(8, 2)), (200, Tile(None, 3))]
)
def test_rows_that_search_together_find_what_each_finds_alone(heads_of, causal, queries, unit, assert_close):
    q, k, v = qkv(200, heads=4, kv_heads=2, seed=1)
    heads = heads_of((q[:, :, -queries:], k, v), causal=causal)
    found, logits = TreeSearch(24)(heads, unit), heads.scores()
    for row, (a, b) in enumerate(heads.rows_of(unit.rows)):
        end = heads.offset + b if causal else heads.keys
        for h in range(4):
            expected = _beam(logits[0, h, a:b].amax(0), end, unit.cols, 24 // unit.cols)
            assert_close(found[0, h, row], expected, atol=1e-4)


def _beam(best, end, size, beam):
    """The search of one row, written out: `best` is the largest score of each key."""
    columns, width = -(-end // size), 1
    while -(-columns // width) > beam:
        width *= 2
    score = lambda node: float(best[min(node * size + width * size // 2, end - 1)])  # noqa: E731
    nodes = list(range(0, columns, width))
    while width > 1:
        width //= 2
        both = [n for n in nodes + [n + width for n in nodes] if n < columns]
        nodes = sorted(both, key=score, reverse=True)[:beam]
    found = torch.full((-(-len(best) // size),), -torch.inf)
    for node in nodes:
        found[node] = score(node)
    return found


# -- vertical and slash ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("unit", [Tile(16, 1), Tile(8, 4), Tile(32, 32)])
def test_units_of_columns_and_diagonals_are_those_that_hold_a_pair_of_one(heads_of, causal, unit):
    q, k, v = qkv(90, heads=2, seed=2)
    heads = heads_of((q[:, :, -70:], k, v) if causal else (q, k, v), causal=causal)
    found = VerticalSlash(3, 2, 20)(heads, unit) > 0
    columns, diagonals = (top(p, n) for p, n in zip(profiles(heads, 20), (3, 2), strict=True))
    place, key = torch.arange(heads.offset, 90)[:, None], torch.arange(90)
    wanted = diagonals[:, :, (place - key).abs()] & ((key <= place) | (not causal)) | columns.unsqueeze(2)
    for i, (a, b) in enumerate(heads.rows_of(unit.rows)):
        for j, (c, d) in enumerate(heads.columns_of(unit.cols)):
            assert torch.equal(found[:, :, i, j], wanted[:, :, a:b, c:d].any(-1).any(-1))


# -- HISA -------------------------------------------------------------------------------------------------------------


def test_the_filter_agrees_with_the_flat_indexer_the_more_blocks_pass_and_the_more_coherent_keys_are(heads_of, call):
    drawn = qkv(512, heads=2, kv_heads=1, rho=0.97, seed=0)
    flat = sw.method("hisa", score=TwoStageIndexer(16, None), budget=Count(32), always=None)
    agreement = {}
    for name, d in (("coherent", drawn), ("shuffled", drawn.shuffled())):
        heads = heads_of(d, causal=False)
        best = call(flat, heads).kept.mask
        agreement[name] = [
            iou(call(flat.with_(score=TwoStageIndexer(16, m)), heads).kept.mask, best) for m in (4, 8, 16, 32)
        ]
        assert agreement[name] == sorted(agreement[name]) and agreement[name][-1] == 1
    coherent, shuffled = agreement["coherent"], agreement["shuffled"]
    assert coherent[1] > 0.7 and all(a > b + 0.1 for a, b in zip(coherent[:3], shuffled[:3], strict=True))


def test_an_indexer_of_the_model_is_used_and_its_score_is_that_of_a_loop(heads_of, assert_close):
    heads = heads_of(qkv(48, heads=2, seed=0))
    q, k, w = torch.randn(1, 3, 48, 8), torch.randn(1, 1, 48, 8), torch.rand(1, 3, 48)
    heads.memory["indexer"] = (q, k, w)
    for m, t in ((2, 20), (3, 5), (3, 20), (3, 47)):
        found = TwoStageIndexer(8, m)(heads, Tile(1, 1))[0, 0]
        flat = sum(w[0, h, t] * (q[0, h, t] @ k[0, 0].T).relu() for h in range(3))
        means = k[0, 0].view(6, 8, 8).mean(1)
        coarse = sum(w[0, h, t] * (q[0, h, t] @ means.T).relu() for h in range(3))
        own = t // 8
        best = {0, own} if own < 2 or m == 2 else {0, own, 1 + int(coarse[1:own].argmax())}
        assert set(found[t].isfinite().view(6, 8).all(-1).nonzero()[:, 0].tolist()) - set(range(own + 1, 6)) == best
        assert_close(found[t][found[t].isfinite()], flat[found[t].isfinite()])


# -- DHSA -------------------------------------------------------------------------------------------------------------


def segments(seed: int, n: int = 1024, d: int = 32, scale: float = 1.6):
    """Keys of segments of 8 to 200 tokens, each about a centre of its own, and queries that look for one segment a block."""
    g = torch.Generator().manual_seed(seed)
    first = [0]
    while first[-1] < n:
        first.append(first[-1] + int(torch.randint(8, 200, (1,), generator=g)))
    starts = torch.zeros(1, n, dtype=torch.bool)
    starts[0, torch.tensor([f for f in first if f < n])] = True
    label = starts[0].long().cumsum(0) - 1
    centres = scale * torch.randn(int(label[-1]) + 1, d, generator=g)
    k = centres[label] + 0.4 * torch.randn(n, d, generator=g)
    wanted = torch.randint(len(centres), (n // 32,), generator=g).repeat_interleave(32)
    q = centres[wanted] + 0.4 * torch.randn(n, d, generator=g)
    v = torch.randn(n, d, generator=g)
    return tuple(t[None, None] for t in (q, k, v)), starts


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_ragged_chunks_hold_more_mass_than_blocks_and_root_length_more_than_sums(heads_of, call, seed):
    drawn, starts = segments(seed)
    heads = heads_of(drawn, causal=False)
    dhsa = sw.method("dhsa", pattern=stripes(32), budget=Count(208), always=None)
    masses = {}
    for power in (0.0, 0.5, 1.0):
        heads.memory["boundaries"] = starts
        masses[power] = call(dhsa.with_(score=RaggedChunks(power)), heads).mass
    fixed = call(sw.method("pooled_blocks", pattern=blocks(32, 52), budget=Count(208)), heads).mass
    assert masses[0.5] > 0.99 and masses[0.5] > max(fixed, masses[1.0]) + 0.025


def test_boundaries_are_found_by_novelty_and_better_by_a_trained_predictor():
    drawn = [segments(seed, n=512) for seed in range(5)]
    keys = torch.cat([d[0][1][:, 0] for d in drawn])
    starts = torch.cat([s for _, s in drawn])
    predictor = BoundaryPredictor(32)
    losses = predictor.fit(keys[:4], starts[:4], steps=60)
    assert losses[-1] < 0.3 * losses[0]

    def f1(found):
        hits = float((found & starts[4:]).sum())
        return 2 * hits / float(found.sum() + starts[4:].sum())

    with torch.no_grad():
        learned = f1(peaks(predictor(keys[4:]).sigmoid()))
    assert learned > 0.8 and f1(peaks(novelty(keys[4:]))) > 0.6
    shifted = torch.roll(starts[4:], 3, 1)
    assert learned > f1(shifted) + 0.5


def test_labels_mark_where_later_rows_change_their_mass():
    weights = torch.full((1, 1, 40, 40), 0.0)
    weights[..., :20], weights[..., 20:] = 1.0, 3.0
    weights = (weights.tril() / weights.tril().sum(-1, keepdim=True))[:, :, -8:]
    found = labels(weights, width=4)[0]
    assert bool(found[20]) and not bool(found[8:16].any()) and not bool(found[24:32].any())


# -- Token Sparse Attention -------------------------------------------------------------------------------------------


def test_tokens_pass_by_and_the_others_attend_among_themselves(heads_of, call, assert_close):
    heads = heads_of(qkv(96, heads=2, kv_heads=1, columns=4, seed=0))
    method = sw.method("token_sparse_attention", budget=Mass(0.5), always=Sink(1))
    method = method.with_(score=type(method.score)(8))
    seen = call(method, heads)
    chosen = seen.kept.mask[:, :, 0]
    assert bool(chosen[..., -8:].all()) and 0.1 < float(chosen.float().mean()) < 0.7
    pairs = chosen.unsqueeze(-1) & chosen.unsqueeze(-2)
    scores = heads.scores().masked_fill(~pairs, -torch.inf)
    assert_close(seen.out, scores.softmax(-1).nan_to_num(0.0) @ heads.shared(heads.v))
    assert seen.density == pytest.approx(float((pairs & heads.scores().isfinite()).float().sum() / (2 * 96 * 97 / 2)))
    stays = call(method.with_(score=type(method.score)(8, passes=False)), heads)
    assert stays.kept.queries is None and bool((stays.out.abs().sum(-1) > 0).all())
