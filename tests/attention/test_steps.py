"""Re-use over denoising steps: every method against its own baseline on traces that drift, and the formulas by hand."""

from __future__ import annotations

import math
from dataclasses import dataclass

import pytest
import torch

import sparseworks as sw
from sparseworks.attention import Clip, Heads, dense_attention, sparse_attention
from sparseworks.attention.budgets import CallBudget, Growing, HeadAdaptive
from sparseworks.attention.kept import attend_kept
from sparseworks.attention.masks import Band
from sparseworks.attention.rests import Reshape
from sparseworks.attention.scores import ByRegion, FrameThenBlock, PooledProduct, RunningGap
from sparseworks.attention.scores.exact import block_mass
from sparseworks.attention.scores.skips import running_gaps
from sparseworks.attention.select import select
from sparseworks.attention.timing import From, Periodic, Searches
from sparseworks.core.budget import Budget, Density, Threshold
from sparseworks.core.errors import BudgetError
from sparseworks.core.pattern import ELEMENT, ROW, Pattern, Tile
from sparseworks.evaluate.sequences import QKV, blend, drift, falling, mass_rows, qkv, rel_l2
from sparseworks.evaluate.sequences.heads import frames

BLOCKS = Tile(64, 64)


def heads_of(scales, n: int = 1024, *, seed: int = 0, shared: float = 0.7) -> QKV:
    """One head a scale, from flat to peaked."""
    parts = [qkv(n, scale=s, shared=shared, seed=100 * seed + i) for i, s in enumerate(scales)]
    return QKV(*(torch.cat([getattr(p, x) for p in parts], 1) for x in "qkv"))


def over_steps(method, trace, steps: int):
    """(relative error, density) of every step, with one memory."""
    memory: dict = {}
    for t, x in enumerate(trace):
        heads = Heads(*x, causal=False, step=t, steps=steps, memory=memory)
        (out, _), kept = sparse_attention(heads, method)
        yield float(rel_l2(out, dense_attention(heads)[0])), 1.0 if kept is None else kept.density(heads)


# -- when ---------------------------------------------------------------------------------------------------------------


def calls(timing, steps: int = 50, keys: int = 4):
    memory: dict = {}
    x = torch.zeros(1, 1, keys, 8)
    for step in range(steps):
        heads = Heads(x, x, x, causal=False, step=step, steps=steps, memory=memory)
        acts = timing.acts(heads)
        yield "." if not acts else "S" if timing.selects(heads) else "-"


def test_searches_are_made_at_their_steps_and_dense_steps_come_back():
    assert "".join(calls(Searches((0.2, 0.6)))) == "." * 10 + "S" + "-" * 19 + "S" + "-" * 19
    assert "".join(calls(Searches((0.0,)), 4)) == "S---"
    assert "".join(calls(Periodic(0.25, 5), 20)) == "." * 6 + "SSSS." + "SSSS." + "SSSS"
    assert "".join(calls(From(steps=0.5, every=2), 6)) == "...S-S"
    for wrong in (lambda: Searches((0.6, 0.2)), lambda: Searches(()), lambda: Periodic(2.0), lambda: Periodic(0.1, 0)):
        with pytest.raises(BudgetError):
            wrong()


# -- AdaSpa --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(2))
def test_a_log_sum_exp_of_ten_steps_ago_ranks_blocks_as_today_s(seed):
    trace = list(drift(heads_of((0.8, 1.2, 1.6, 2.0), seed=seed), 11, 0.07, seed=seed))
    then, now = Heads(*trace[0], causal=False), Heads(*trace[-1], causal=False)
    stale, exact = block_mass(now, BLOCKS, dense_attention(then)[1]), block_mass(now, BLOCKS)

    def best(mass):
        return torch.zeros_like(mass).scatter(-1, mass.topk(3, dim=-1).indices, 1.0)

    assert float((best(stale) * best(exact)).sum() / best(exact).sum()) > 0.95
    old, ideal = ((exact * best(m)).sum(-1).mean() for m in (block_mass(then, BLOCKS), exact))
    assert old > 0.95 * ideal > 2 * 3 / 16  # units chosen at random hold their share


@pytest.mark.parametrize("seed", range(3))
def test_heads_that_lose_much_get_more_at_the_same_mean(seed):
    trace = list(drift(heads_of((0.8, 1.2, 1.6, 2.0, 2.5, 3.0), seed=seed), 9, 0.1, seed=seed))
    method = sw.method("adaspa", schedule=Searches((0.0,)))
    adaptive, even = (list(over_steps(m, trace, 50)) for m in (method, method.with_(budget=Density(0.2))))
    for step in (0, 8):
        assert adaptive[step][1] == pytest.approx(even[step][1])
        assert adaptive[step][0] < 0.9 * even[step][0]
    assert adaptive[8][0] < 2 * adaptive[0][0]  # masks of eight steps ago still hold


def test_shares_of_heads_by_hand():
    mass = torch.tensor([[0.7, 0.2, 0.1, 0.0], [0.25, 0.25, 0.25, 0.25], [0.4, 0.3, 0.2, 0.1]])[None, :, None]
    assert HeadAdaptive(0.5, 0.5).counts(mass)[0, :, 0].tolist() == [1, 3, 2]
    assert HeadAdaptive(0.5, 0.0).counts(mass)[0, :, 0].tolist() == [2, 2, 2]
    wide = torch.rand(2, 7, 5, 33, generator=torch.Generator().manual_seed(0))
    assert HeadAdaptive(0.3).counts(wide).sum(1).eq(7 * round(0.3 * 33)).all()
    with pytest.raises(BudgetError):
        HeadAdaptive(0.0)
    with pytest.raises(BudgetError):
        HeadAdaptive(0.3).counts(wide[0, 0])


# -- LiteAttention -------------------------------------------------------------------------------------------------------


def test_gaps_are_those_of_a_tile_by_tile_loop():
    heads = Heads(*qkv(128, heads=4, kv_heads=2, seed=3), causal=True)
    mask = torch.rand(1, 4, 4, 4, generator=torch.Generator().manual_seed(0)) < 0.7
    mask |= torch.eye(4, dtype=torch.bool)
    found = running_gaps(heads, Tile(32, 32), mask & heads.allowed(Tile(32, 32)))
    scores = heads.scores()[0]
    for h in range(4):
        for row in range(4):
            running = torch.full((32,), -math.inf)
            for column in range(row + 1):
                if not mask[0, h, row, column]:
                    assert found[0, h, row, column] == -math.inf
                    continue
                tile = scores[h, 32 * row : 32 * row + 32, 32 * column : 32 * column + 32].amax(-1)
                gap = float(((tile - running) * math.log2(math.e)).max()) if running.isfinite().all() else math.inf
                assert float(found[0, h, row, column]) == pytest.approx(gap, abs=1e-4)
                running = torch.maximum(running, tile)


def test_skip_lists_only_grow_cost_nothing_and_can_begin_anew():
    scales = (0.8, 1.2, 1.6, 2.0, 2.5)
    trace = list(blend(lambda t: heads_of(scales, 384, seed=t), 8, falling(0.2, 0.02, 8)))
    method = sw.method("lite_attention", pattern=sw.attention.blocks(32), budget=Threshold(-3.0))
    found = list(over_steps(method, trace, 8))
    density = [d for _, d in found]
    assert density[0] == 1 and density == sorted(density, reverse=True) and density[-1] < 0.75
    memory: dict = {}
    heads = Heads(*trace[-1], causal=False, memory=memory)
    sparse_attention(heads, method)
    (again, _), _ = sparse_attention(heads, method)  # estimated at this very step
    fresh = float(rel_l2(again, dense_attention(heads)[0]))
    assert found[-1][0] < 3 * fresh
    away = [heads_of(scales, 384, seed=99).shuffled(1)] * 2
    jumped = list(over_steps(method, trace[:4] + away, 8))
    assert jumped[-1][0] > 3 * jumped[3][0]
    anew = list(over_steps(method.with_(score=RunningGap(anew=4)), trace[:4] + away, 8))
    assert anew[4][0] < 1e-5 and anew[5][0] < 0.5 * jumped[-1][0]
    late = list(over_steps(method.with_(score=RunningGap(slack=8.0)), trace[:2], 8))
    assert late[1][1] > density[1]


def test_what_a_tile_held_when_it_was_marked_is_bounded():
    heads = Heads(*heads_of((1.2, 2.0, 3.0), 512), causal=False)
    for bits in (-3.0, -6.0):
        gone = running_gaps(heads, BLOCKS, torch.ones(1, 3, 8, 8, dtype=torch.bool)) < bits
        pairs = gone.repeat_interleave(64, -2).repeat_interleave(64, -1)
        lost = mass_rows(heads.q, heads.k, pairs)
        assert gone.any() and (lost <= gone.sum(-1).repeat_interleave(64, -1) * 64 * 2**bits).all()


# -- SparseD -------------------------------------------------------------------------------------------------------------


def test_prompt_and_answer_keep_their_shares():
    parts = heads_of((1.0, 2.0), 512, shared=0.2)
    loud = QKV(parts.q, torch.cat([3 * parts.k[:, :, :256], parts.k[:, :, 256:]], 2), parts.v)  # the prompt draws all
    heads = Heads(*loud, causal=False, step=10, steps=50, prompt=256)
    method = sw.method("sparsed", pattern=sw.attention.blocks(32))
    apart, together = (select(heads, m).mask for m in (method, method.with_(score="exact_mass", density=5 / 16)))
    assert apart[..., 8:].sum(-1).unique().tolist() == [2] and apart[..., :8].sum(-1).unique().tolist() == [3]
    mass = block_mass(heads, Tile(32, 32))[..., 8:]
    held = [float((mass * m[..., 8:]).sum() / mass.topk(2, dim=-1).values.sum()) for m in (apart, together)]
    assert held[0] == pytest.approx(1, abs=1e-3) and held[1] < 0.6
    plain = select(heads.with_(prompt=0), method.with_(score=ByRegion(PooledProduct()), density=0.25)).mask
    assert torch.equal(plain, select(heads, method.with_(score="pooled", density=0.25)).mask)


@pytest.mark.parametrize("seed", range(2))
def test_a_frozen_mask_of_each_head_beats_one_for_all_and_a_band(seed):
    trace = list(drift(heads_of((1.2, 1.5, 2.0, 2.5), 1024, seed=seed, shared=0.3), 9, 0.15, seed=seed))
    method = sw.method("sparsed", pattern=sw.attention.blocks(32), schedule=Searches((0.1,)))
    own = list(over_steps(method, trace, 10))
    assert own[0] == (pytest.approx(0, abs=1e-5), 1.0)
    shared = list(over_steps(method.with_(score=Together()), trace, 10))
    band = list(over_steps(method.with_(score=None, always=Band(160)), trace, 10))
    assert band[-1][1] > 0.95 * own[-1][1] and shared[-1][1] == pytest.approx(own[-1][1])
    assert own[-1][0] < 0.8 * min(shared[-1][0], band[-1][0])


@dataclass(frozen=True)
class Together(ByRegion):
    """One mask for all heads."""

    def __call__(self, heads, unit):
        """Places by the mean mass over heads."""
        return block_mass(heads, unit).mean(1, keepdim=True)


# -- Re-ttention ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(2))
def test_ratio_and_residual_each_take_their_part_of_the_error(seed):
    trace = list(drift(qkv(256, heads=4, seed=seed), 6, 0.2, seed=seed))
    method = sw.method(
        "re_ttention", pattern=Pattern(ELEMENT, ROW), always=Band(9), rest=Reshape(0.0), schedule=Periodic(0.0, 20)
    )
    band, ratio, both = (
        [e for e, _ in over_steps(m, trace, 50)]
        for m in (method.with_(rest=None), method.with_(rest=Reshape(0.0, residual=False)), method)
    )
    for step in (1, 3, 5):
        assert both[step] < 0.5 * ratio[step] < 0.35 * band[step]
    assert both[0] == pytest.approx(0, abs=1e-6) and both[1] < both[3] < both[5]  # it gets out of date


def test_reshaped_rows_by_hand():
    trace = list(drift(qkv(96, heads=2), 3, 0.3))
    method = sw.method("re_ttention", pattern=sw.attention.blocks(16), always=Band(9), schedule=Periodic(0.0, 9))
    memory: dict = {}
    first, _, third = (Heads(*x, causal=False, step=t, steps=9, memory=memory) for t, x in enumerate(trace))
    (out, _), kept = sparse_attention(first, method)
    assert kept is not None and kept.mask.all() and torch.allclose(out, dense_attention(first)[0], atol=1e-6)
    taught = kept.density(first) - 1
    (out, lse), kept = sparse_attention(third, method)
    assert kept is not None and taught == pytest.approx(kept.density(third), rel=1e-6)
    then = first.scores().masked_fill(~kept.tokens(first, slice(None)), -torch.inf)
    ratio = (then.logsumexp(-1) - first.scores().logsumexp(-1)).exp()
    residual = dense_attention(first)[0] - ratio[..., None] * (then.softmax(-1) @ first.v)
    grown = (ratio + 0.08).clamp(max=1)
    plain, log = attend_kept(third, kept)
    assert torch.allclose(out, grown[..., None] * plain + residual, atol=1e-5)
    assert torch.allclose(lse, log - grown.log(), atol=1e-5)


# -- Light Forcing -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Listed(CallBudget):
    """The densities of `Growing` in another order, at as many products."""

    of: tuple[float, ...]

    def at(self, heads: Heads) -> Budget:
        """Of this chunk."""
        return Density(self.of[heads.keys // heads.queries - 1])


def generated(method, seed: int, chunks: int = 7, per: int = 2, videos: int = 8):
    """Chunks of frames, each made of the last one by two layers that read all before it; and density over all pairs.

    Whatever is lost in a chunk is fed to all later ones, as in a model that generates.
    """
    size = per * 128
    x, turns = [], []
    for i in range(videos):
        x.append(frames((per, 8, 16), d=32, heads=2, seed=videos * seed + i, smooth=1.5).v)
        g = torch.Generator().manual_seed(videos * seed + i)
        turns.append(torch.linalg.qr(torch.randn(2, 2, 2, 32, 32, generator=g)).Q)  # layer, q and v, head
    h, turn = torch.cat(x), torch.stack(turns, 2)
    h = h / h.std((1, 2, 3), keepdim=True)
    cache, outs, counted = [[], []], [], 0.0
    for i in range(1, chunks + 1):
        for held, (q, v) in zip(cache, turn, strict=True):
            held.append(h)
            k = torch.cat(held, 2)
            heads = Heads(2.2 * (0.6 * h + 0.8 * h @ q), 2.2 * k, k @ v, causal=False, clip=Clip(i * per, 8, 16))
            assert heads.queries == size
            if method is None:
                out = dense_attention(heads)[0]
            else:
                (out, _), kept = sparse_attention(heads, method)
                assert kept is not None
                counted += kept.density(heads) * i
            h = (h + out) / (h + out).std((1, 2, 3), keepdim=True)
        outs.append(h)
    return outs, counted / (chunks * (chunks + 1))


def test_a_video_made_in_chunks_ends_nearer_if_sparsity_grows():
    """Beside as many products spread evenly, evenly but for a dense first chunk, or falling: the last chunk, and the mean of all.

    Three times eight videos; in the last chunk .54 beside .61, .57 and .58, in the mean .35 beside .51, .39 and .41.
    """
    falling_, places = Growing(0.2).densities(), range(1, 8)
    even = sum(i * d for i, d in zip(places, falling_, strict=True)) / 28
    back = falling_[:0:-1]
    back = [d * (28 * even - 1) / sum(i * x for i, x in enumerate(back, 2)) for d in back]
    budgets, pooled = (Growing(0.2), Density(even), Listed((1.0, *[0.2] * 6)), Listed((1.0, *back))), torch.zeros(4)
    for seed in range(3):
        exact, _ = generated(None, seed)
        last, mean = [], []
        for budget in budgets:
            method = sw.method("light_forcing", budget=budget, pattern=sw.attention.blocks(16))
            outs, density = generated(method, seed)
            assert density == pytest.approx(even, abs=0.003)
            errors = [((o - e).flatten(1).norm(dim=1) / e.flatten(1).norm(dim=1)).mean() for o, e in zip(outs, exact, strict=True)]  # fmt: skip
            last.append(float(errors[-1]))
            mean.append(float(sum(errors)) / 7)
        assert last[0] < min(last[1:]) and mean[0] < 0.95 * min(mean[1:])
        pooled += torch.tensor(last) / 3
    assert float(pooled[0]) < 0.97 * float(pooled[1:].min())


def test_densities_of_chunks_are_those_of_the_published_settings():
    for value, least in ((0.12, 1 / 6), (0.2, 0.5)):
        found = Growing(value, 7, least).densities()
        weights = [(3 * i) ** -0.5 for i in range(2, 8)]  # chunks of three frames
        room = sum(3 * i * value * (1 - least) for i in range(2, 8))
        beta = room / sum(3 * i * w for i, w in enumerate(weights, 2))
        assert found == pytest.approx([1.0, *(value * least + beta * w for w in weights)], abs=1e-6)
    assert Growing(0.2, 1).densities() == [1.0]
    with pytest.raises(BudgetError):
        Growing(0.0)


def test_frames_first_finds_nearly_what_a_flat_search_does():
    x = frames((16, 8, 16), d=32, heads=2, smooth=1.5, scale=1.6)
    heads = Heads(x.q[:, :, -256:], x.k, x.v, causal=False, clip=Clip(16, 8, 16))
    unit, method = Tile(32, 32), sw.method("light_forcing", pattern=sw.attention.blocks(32), density=0.1)
    mass = block_mass(heads, unit)
    two, flat = (
        float((mass * select(heads, method.with_(score=s)).mask).sum(-1).mean()) for s in (FrameThenBlock(4), "pooled")
    )
    assert two > 0.95 * flat
    rows, columns = heads.grid(unit)
    assert FrameThenBlock(4).scored(heads, unit) == 2 * rows * (14 + 6 * 4) < 0.6 * 2 * rows * columns
    for sink, near in ((1, 2), (0, 0), (2, 2)):
        opened = FrameThenBlock(4, sink, near).opened(heads, unit).unflatten(-1, (16, 4))
        assert torch.equal(opened.all(-1), opened.any(-1)) and bool((opened[..., 0].sum(-1) == 6).all())
        frame = opened[..., 0]
        assert bool(frame[..., :sink].all()) and bool(frame[..., 14 - near :].all())
        pooled = (heads.q.unflatten(2, (rows, -1)).mean(3) @ heads.k.unflatten(2, (16, -1)).mean(3).mT)[
            ..., sink : 14 - near
        ]
        best = torch.zeros_like(pooled, dtype=torch.bool).scatter(-1, pooled.topk(4 - sink - near).indices, True)
        assert torch.equal(frame[..., sink : 14 - near], best)
    for wrong in ((0, 0, 0), (4, 3, 2), (4, -1, 0)):
        with pytest.raises(BudgetError):
            FrameThenBlock(*wrong)


def test_text_of_a_clip_is_attended_to_and_attends():
    x = qkv(160, heads=2, d=16)
    heads = Heads(*x, causal=False, step=30, steps=50, clip=Clip(4, 4, 8, text=32))
    for name in ("adaspa", "re_ttention", "pooled_blocks"):
        mask = select(heads, sw.method(name, pattern=sw.attention.blocks(16))).mask
        assert mask[..., :2, :].all() and mask[..., :2].all() and not mask.all()
