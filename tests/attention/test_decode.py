"""What each way of decoding is for: against its own baseline, on queries and keys that have the property it lives on."""

import itertools

import pytest
import torch

import sparseworks as sw
from sparseworks.attention import AttentionMethod, Heads, pages, select, sparse_attention
from sparseworks.attention.codes import decode, encode
from sparseworks.attention.index import sequence
from sparseworks.attention.masks import Sink, Window
from sparseworks.attention.scores import (
    Centroids,
    ChannelProduct,
    ExactMass,
    HeadVote,
    Landmarks,
    LayerReuse,
    LogicalPages,
    Nucleus,
    PageBound,
    PooledProduct,
    ProbeMass,
    StreamingHeads,
)
from sparseworks.attention.scores.centroids import global_threshold
from sparseworks.attention.scores.channels import calibrated, channel_weights
from sparseworks.attention.scores.landmarks import outliers
from sparseworks.attention.scores.logical import PageLimits, reach
from sparseworks.attention.scores.reuse import layer_similarity, reuse_plan
from sparseworks.attention.timing import Alike, From
from sparseworks.core.budget import Count, Density, Mass, Threshold
from sparseworks.core.errors import BudgetError, DtypeError
from sparseworks.core.pattern import Tile
from sparseworks.evaluate.sequences import QKV, blend, drift, mass_recall, qkv, rel_l2

SEEDS = (0, 1)


def decoding(score, budget, size: int = 1, **options) -> AttentionMethod:
    return AttentionMethod("test", score, pattern=pages(size), budget=budget, phases=("decode",), **options)


def recall(x: QKV, method: AttentionMethod, queries, prompt: Heads | None = None) -> tuple[torch.Tensor, float]:
    """Mass recall of every head and density, the mean over single queries; the index is made from the prompt."""
    q, k, v = x
    memory = {}
    if method.score.INDEX is not None:
        memory["index"] = method.score.INDEX.of(method.score, sequence(prompt or Heads(q, k, v), 0))
    found, density = [], []
    for i in queries:
        heads = Heads(q[:, :, i : i + 1], k, v, memory=memory)
        kept = select(heads, method)
        mask = kept.tokens(heads, slice(0, 1)).expand(1, heads.heads, -1, -1)
        found.append(mass_recall(heads.q, k, mask)[0])
        density.append(kept.density(heads))
    return torch.stack(found).mean(0), sum(density) / len(density)


# -- channels ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", SEEDS)
def test_a_few_outlier_channels_find_tokens_that_random_channels_do_not(seed):
    """Catalogued: oracle .655, calibrated .528 to .590, random .16 to .21; here .49, .29 to .40, .12."""
    x, queries, budget = qkv(1024, heads=2, outliers=6, scale=1.0, seed=seed), range(512, 1024, 32), Density(1 / 16)
    best = recall(x, decoding(ExactMass(), budget), queries)[0].mean()
    few = [recall(x, decoding(ChannelProduct(r / 64), budget), queries)[0].mean() for r in (4, 8, 16)]
    draw = torch.Generator().manual_seed(seed)
    drawn = (tuple(tuple(torch.randperm(64, generator=draw)[:4].tolist()) for _ in range(2)),)
    random = recall(x, decoding(ChannelProduct(table=drawn), budget), queries)[0].mean()
    assert random + 0.08 < few[0] < few[1] < best and few[2] > 0.7 * best
    coded = recall(x, decoding(ChannelProduct(1 / 8, bits=4), budget), queries)[0].mean()
    assert abs(coded - few[1]) < 0.02


def test_channels_of_a_calibration_are_those_of_the_prompt_it_was_made_on():
    heads = Heads(*qkv(256, heads=4, kv_heads=2, outliers=4, seed=3))
    weights = channel_weights(heads)[0]
    by_hand = torch.zeros(2, 64)
    for head, c in itertools.product(range(4), range(64)):
        by_hand[head // 2, c] += (heads.q[0, head, :, c] * heads.k[0, head // 2, :, c]).abs().mean()
    torch.testing.assert_close(weights, by_hand)
    table = calibrated([weights]).table
    assert [set(row) for row in table[0]] == [set(w.topk(4).indices.tolist()) for w in weights]


# -- nucleus ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", SEEDS)
def test_top_p_serves_the_worst_head_where_a_fixed_count_does_not(seed):
    q, k, v = qkv(1024, heads=5, scale=1.0, seed=seed)
    x = QKV(q * 1.4 * torch.tensor([0.3, 0.7, 1.2, 1.8, 2.6]).view(1, 5, 1, 1), k, v)
    queries = range(600, 1024, 64)
    mass, density = recall(x, decoding(Nucleus(share=1.0), Mass(0.9)), queries)
    fixed, _ = recall(x, decoding(ExactMass(), Density(density)), queries)
    assert mass.min() > 0.88 and fixed.min() < 0.65
    assert fixed.max() > mass.max()  # peaked heads get less than a fixed count would give them
    coarse, _ = recall(x, decoding(Nucleus(share=1.0, bits=2), Mass(0.9)), queries)
    assert coarse.min() < mass.min() - 0.1


def test_candidates_bound_what_a_nucleus_keeps_and_groups_share_the_union():
    heads = Heads(*(t[:, :, -1:] if t.shape[1] == 4 else t for t in qkv(512, heads=4, kv_heads=2, seed=0)))
    method = sw.method("twilight", score=Nucleus(share=0.1, least=16), schedule=From())
    kept = select(heads, method).mask[0, :, 0]
    assert torch.equal(kept[0], kept[1]) and not torch.equal(kept[0], kept[2])
    alone = select(heads, method.with_(score=Nucleus(share=0.1, least=16, shared=None))).mask[0, :, 0]
    assert torch.equal(kept[0], alone[0] | alone[1])
    among = Nucleus(share=0.1, least=16).candidates(heads)[0, :, 0]
    assert among.sum(-1).max() <= 4 * 16 and not (alone[:, :-1] & ~among[:, :-1]).any()


def test_codes_are_within_half_a_step():
    x = torch.randn(3, 50, 32, generator=torch.Generator().manual_seed(0))
    span = x.amax(-1).clamp(min=0) - x.amin(-1).clamp(max=0)
    for bits, most in ((2, 3), (4, 15), (8, 255)):
        parts = encode(x, bits)
        assert parts["codes"].shape == (3, 50, 32 * bits // 8) and parts["codes"].dtype == torch.uint8
        error = (decode(parts, bits) - x).abs().amax(-1)
        assert (error <= 1.01 * span / most).all() and error.max() > 0.2 * (span / most).max() / 2
    with pytest.raises(DtypeError, match="2, 4 or 8 bits"):
        encode(x, 3)


# -- pages inside pages -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", SEEDS)
def test_logical_pages_choose_better_than_the_bounds_of_whole_pages(seed):
    x, queries = qkv(1024, heads=2, scale=1.25, seed=seed), range(512, 1024, 16)
    found = [
        recall(x, decoding(s, Count(128), 64), queries)[0].mean() for s in (LogicalPages(), PageBound(), ExactMass())
    ]
    assert found[1] + 0.015 < found[0] < found[2]
    q, k, v = x
    heads = Heads(q[:, :, -1:], k, v)
    bound = LogicalPages()(heads, Tile(1, 64))
    assert (bound + 1e-5 >= heads.scores().unflatten(-1, (-1, 64)).amax(-1)).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_held_extremes_of_pages_are_those_of_the_keys_whatever_comes_and_goes(dtype):
    """Grown by some tokens at a time and cropped into a page, beyond it and to nothing; scores are made without the keys."""
    keys = torch.randn(2, 300, 16, generator=torch.Generator().manual_seed(0)).to(dtype)
    score = LogicalPages(16)
    index, n = PageLimits.of(score, Heads(*(keys[None, :, :40] for _ in range(3)))), 40
    for change in (1, 7, 16, 0, 33, -1, -20, 5, -38, 100, -143, 3, 200):
        n += change
        if change < 0:
            index.crop(n, keys[:, :n])
        else:
            index.extend(keys[:, n - change : n])
        parts = [keys[:, a : min(a + 16, n)] for a in range(0, n, 16)]
        for name, how in (("most", torch.amax), ("least", torch.amin)):
            expected = torch.stack([how(p, 1) for p in parts], 1) if n else keys[:, :0]
            assert torch.equal(index.parts[name], expected)
        assert index.nbytes == 2 * 2 * -(-n // 16) * 16 * dtype.itemsize + 8
        if n:
            q = torch.randn(1, 4, 1, 16, generator=torch.Generator().manual_seed(n)).to(dtype)
            k = keys[None, :, :n]
            unseen = Heads(
                q, torch.full_like(k, torch.nan), k, memory={"index": PageLimits.restored(score, index.state())}
            )
            assert torch.equal(score(unseen, Tile(1, 64)), score(Heads(q, k, k), Tile(1, 64)))


def test_choosing_every_fourth_step_costs_little_mass_on_smooth_queries():
    start = qkv(1024, heads=2, scale=1.0, seed=0)
    lost = []
    for every in (1, 4):
        memory, total = {}, 0.0
        for x in drift(start, 12, 0.05, seed=1):
            heads = Heads(x.q[:, :, -1:], start.k, start.v, memory=memory)
            method = decoding(LogicalPages(), Count(256), 64, schedule=From(every=every))
            _, kept = sparse_attention(heads, method)
            total += (
                float(mass_recall(heads.q, heads.k, kept.tokens(heads, slice(0, 1)).expand(1, 2, 1, -1)).mean()) / 12
            )
        lost.append(total)
    assert lost[0] - lost[1] < 0.01


def test_heads_that_look_nowhere_far_stream():
    x = qkv(512, heads=4, kv_heads=4, scale=1.0, seed=0)
    q = x.q.clone()
    q[:, 2:] = 0
    q[:, 2:, :, :] = 3 * x.k[:, 2:]  # these two look at themselves and their neighbours
    heads = Heads(q, x.k, x.v)
    gate = reach(heads, 16, 64)[0]
    assert gate[2:].max() < gate[:2].min()
    score = StreamingHeads(sink=16, window=64)
    method = sw.method("lserve", score=score, budget=Count(192), always=Sink(16) | Window(64))
    index = score.INDEX.of(score, heads)
    assert index.parts["streams"].tolist() == [False, False, True, True]
    one = Heads(q[:, :, -1:], x.k, x.v, memory={"index": index})
    kept = select(one, method).tokens(one, slice(0, 1))[0, :, 0]
    # pages of 64 that hold sink and window: the first and the last
    assert kept[2:].sum(-1).tolist() == [128, 128] and kept[:2].sum(-1).tolist() == [192, 192]


# -- clusters ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", SEEDS)
def test_clusters_hold_more_mass_than_pages_and_chunks(seed):
    x, queries = qkv(512, heads=2, scale=1.2, clusters=20, spread=0.4, rho=0.5, seed=seed), range(256, 512, 16)
    one = recall(x, decoding(Centroids(recent=0), Density(0.1)), queries)[0].mean()
    two = recall(x, decoding(Centroids(recent=0, coarse=0.02), Density(0.1)), queries)[0].mean()
    page = recall(x, decoding(PageBound(), Density(0.1), 16), queries)[0].mean()
    chunk = recall(x, decoding(PooledProduct(), Density(0.1), 8), queries)[0].mean()
    assert one > max(page, chunk) + 0.1 and two > max(page, chunk) + 0.05
    score = Centroids(recent=0)
    index = score.INDEX.of(score, Heads(*x))
    draw = torch.Generator().manual_seed(seed)
    index.parts["label"] = index.parts["label"][:, torch.randperm(512, generator=draw)]
    q, k, v = x
    heads = [Heads(q[:, :, i : i + 1], k, v, memory={"index": index}) for i in queries]
    masks = [select(h, decoding(score, Density(0.1))).mask for h in heads]
    shuffled = sum(float(mass_recall(h.q, k, m).mean()) for h, m in zip(heads, masks, strict=True)) / len(heads)
    assert shuffled < 0.3 * one


def test_one_threshold_for_all_heads_beats_an_equal_count_where_heads_differ():
    """The mass over both heads at an equal sum of tokens: the flat head needs more of them."""
    q, k, v = qkv(512, heads=2, clusters=20, spread=0.3, rho=0.5, scale=1.2, seed=0)
    x, score = QKV(q * torch.tensor([0.5, 2.0]).view(1, 2, 1, 1), k, v), Centroids(recent=0)
    index = score.INDEX.of(score, Heads(*x))
    scores = score(Heads(x.q[:, :, -100:], k, v, causal=False, memory={"index": index}), Tile(1, 1))
    threshold = global_threshold([scores], 0.7)
    queries = range(412, 512, 4)
    common, density = recall(x, decoding(score, Threshold(threshold)), queries)
    equal, _ = recall(x, decoding(score, Density(density)), queries)
    assert 0.25 < density < 0.35 and common.mean() > equal.mean() + 0.02


def test_shares_of_centroids_are_those_of_a_hand_written_loop():
    x = qkv(120, 16, heads=2, seed=0)
    score = Centroids(share=0.1, recent=20)
    heads = Heads(*x)
    index = score.INDEX.of(score, heads)
    found = score(Heads(x.q[:, :, -1:], x.k, x.v, memory={"index": index}), Tile(1, 1))[0, :, 0]
    assert found[:, 100:].isinf().all()
    for head in range(2):
        label, q = index.parts["label"][head].long(), x.q[0, head, -1]
        size = {c: int((label == c).sum()) for c in set(label.tolist())}
        e = {c: float((q @ x.k[0, head, :100][label == c].mean(0) / 4).exp()) for c in size}
        total = sum(size[c] * e[c] for c in size)
        torch.testing.assert_close(
            found[head, :100], torch.tensor([e[c] / total for c in label.tolist()]), rtol=1e-4, atol=1e-7
        )


# -- one list a layer -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", SEEDS)
def test_a_soft_vote_hears_heads_of_small_logits(seed):
    """Catalogued .78 beside .44; here .41 beside .31."""
    q, k, v = qkv(1024, heads=4, scale=1.0, seed=seed)
    x = QKV(q * torch.tensor([0.3, 1.0, 2.0, 4.0]).view(1, 4, 1, 1), k, v)
    queries = range(512, 1024, 32)
    soft, hard = (recall(x, decoding(HeadVote(0, 0, s), Count(64)), queries)[0].mean() for s in (True, False))
    assert soft > hard + 0.05


def test_a_list_is_reused_while_queries_are_alike():
    trace = blend(lambda t: qkv(384, heads=4, scale=1.0, seed=t), 16, 0.15)
    start, memory = qkv(384, heads=4, scale=1.0, seed=0), {}
    method = decoding(HeadVote(4, 32), Count(128), always=Sink(4) | Window(32))
    chosen, lost = 0, 0.0
    for x in trace:
        heads = Heads(x.q[:, :, -1:], start.k, start.v, memory=memory)
        before = memory.get("query")
        _, kept = sparse_attention(heads, method.with_(schedule=Alike(0.9)))
        chosen += memory["query"] is not before
        fresh = select(heads, method)
        a, b = (
            mass_recall(heads.q, heads.k, m.tokens(heads, slice(0, 1)).expand(1, 4, 1, -1)).mean()
            for m in (kept, fresh)
        )
        lost += float(b - a) / 16
    assert chosen <= 6 and lost < 0.03
    turned = Heads(-heads.q, start.k, start.v, memory=memory)
    sparse_attention(turned, method.with_(schedule=Alike(0.9)))
    torch.testing.assert_close(memory["query"], -heads.q.flatten(1))


# -- landmarks --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", SEEDS)
def test_outlier_chunks_hold_what_means_hide(seed):
    """Isolated heavy keys: their chunk's mean says nothing of them, unless the chunk is kept exact."""
    x = qkv(512, heads=2, scale=1.0, columns=6, column_gain=7.0, seed=seed)
    queries, budget = range(300, 512, 16), Count(96)
    with_, without = (recall(x, decoding(Landmarks(8, n, 0), budget), queries)[0].mean() for n in (8, 0))
    assert with_ > without + 0.1
    mask = outliers(x.k[0], 8, 8)
    heavy = torch.stack([m[c // 8] for m, c in zip(mask, x.columns, strict=True)]).float().mean()
    assert heavy > 0.8


# -- layers -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(4))
def test_the_plan_is_the_best_of_all(seed):
    s = torch.rand(8, 8, generator=torch.Generator().manual_seed(seed))
    s = s.fill_diagonal_(1.0)
    for anchors, forced in ((1, ()), (3, ()), (4, (5,))):
        values = []
        for chosen in itertools.product((0, 1), repeat=8):
            if sum(chosen) <= anchors and chosen[0] and all(chosen[f] for f in forced):
                last, total = 0, 0.0
                for layer in range(8):
                    last = layer if chosen[layer] else last
                    total += float(s[last, layer])
                values.append(total)
        plan = reuse_plan(s, anchors, forced)
        assert sum(float(s[a, layer]) for layer, a in enumerate(plan)) == pytest.approx(max(values))
        assert len(set(plan)) <= anchors and all(plan[f] == f for f in forced)
    with pytest.raises(BudgetError, match="have to be anchors"):
        reuse_plan(s, 1, (3,))


def test_followers_attend_to_what_their_anchor_found():
    x = qkv(256, heads=4, kv_heads=2, seed=0)
    other = qkv(256, heads=4, kv_heads=2, seed=1)
    method, common = decoding(LayerReuse((0, 0, 2)), Count(32)), {}
    first = Heads(x.q[:, :, -1:], x.k, x.v, layer=0, common=common)
    _, kept = sparse_attention(first, method)
    assert kept.density(first) == 1
    follower = Heads(other.q[:, :, -1:], other.k, other.v, layer=1, common=common)
    kept = select(follower, method)
    mass = first.scores().softmax(-1)[0, :, 0]
    listed = (mass[0::2] + mass[1::2]).topk(32).indices
    for head in range(4):
        assert set(kept.mask[0, head, 0].nonzero()[:, 0].tolist()) == set(listed[head // 2].tolist())
    assert layer_similarity([kept.mask, kept.mask]).tolist() == [[1.0, 1.0], [1.0, 1.0]]


# -- a set of keys a layer --------------------------------------------------------------------------------------------


def test_unnormalised_sums_favour_early_keys():
    """Of keys that all queries look at, planted anywhere, the late ones fall behind; division takes a good part of the bias away."""
    found = {True: [], False: []}
    for seed in (1, 2, 3):
        x = qkv(512, heads=4, kv_heads=1, scale=0.8, columns=16, column_gain=2.0, seed=seed)
        late = x.columns[0][x.columns[0] >= 256]
        for fair in found:
            shares = ProbeMass(normalise=fair)(Heads(*x), Tile(None, 1))[0, 0, 0]
            held = torch.isin(late, shares.topk(32).indices).float().mean()
            found[fair].append((float(held), float(shares[:64].sum())))
    assert all(held == 1 for held, _ in found[True]) and all(held < 0.9 for held, _ in found[False])
    assert all(a[1] < 0.8 * b[1] for a, b in zip(found[True], found[False], strict=True))


def test_a_mass_a_layer_beats_a_fixed_share_at_an_equal_mean():
    layers = [
        Heads(*qkv(384, heads=2, scale=s, columns=c, column_gain=6.0, seed=3))
        for s, c in ((0.9, 0), (1.0, 12), (1.0, 48))
    ]
    method = sw.method("zipvl_prefill", budget=Mass(0.8))

    def errors(methods):
        outs = [sparse_attention(h, m) for h, m in zip(layers, methods, strict=True)]
        dense = [h.scores().softmax(-1) @ h.v for h in layers]
        return [float(rel_l2(o[0][0], d)) for o, d in zip(outs, dense, strict=True)], [
            kept.mask.float().mean().item() for _, kept in outs
        ]

    adaptive, shares = errors([method] * 3)
    mean = sum(shares) / 3
    fixed, _ = errors([method.with_(budget=Density(mean))] * 3)
    assert max(shares) > 2 * min(shares) and sum(adaptive) < 0.95 * sum(fixed)
