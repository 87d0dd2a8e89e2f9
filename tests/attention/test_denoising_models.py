"""Methods over the steps of whole models: counting, what re-use costs a sample, block-wise caches, predictors that learn."""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

import pytest
import torch

import sparseworks as sw
from sparseworks.attention import AttentionScore, Clip, Heads, blocks, sparse_attention
from sparseworks.attention.cache.blockwise import Blockwise
from sparseworks.attention.cache.held import KVScore
from sparseworks.attention.cache.scores import BlockSaliency
from sparseworks.attention.masks import Band
from sparseworks.attention.scores import LowRankScore
from sparseworks.attention.timing import Searches
from sparseworks.core.errors import BudgetError, ModelError
from sparseworks.evaluate.sequences import psnr, qkv
from sparseworks.models import MaskedLM, MaskedLMConfig, VideoDiffusion, VideoDiffusionConfig
from sparseworks.models.masked_lm import MASK, denoise, encode
from sparseworks.models.video import flow_loss, sample, squares

PROSE = (
    "The house stood at the end of a long street, and nobody who lived near it could have told how old it was. In the "
    "morning a woman came with two baskets, put them down before the door, and waited until the master of the house had "
    "heard her. He was never in a hurry. 'You are early,' he said at last from the window above, 'and it has not yet "
    "begun to rain.' She looked at the sky, which was grey from one side to the other, and answered that it would not be "
    "long. Then he came down, opened the door, and took what she had brought without another word, as he had done every "
    "day of that year and of the year before. When the clock of the church struck nine she was already far away on the "
    "road that leads over the hills, and thought of nothing but of the letter which she had found under the bread."
)


@pytest.fixture(scope="module")
def small():
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "num_attention_heads": 2, "num_hidden_layers": 2}
    return VideoDiffusion(VideoDiffusionConfig(frames=2, size=8, **sizes)).eval()


# -- steps are counted ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Witness(AttentionScore):
    """Remembers at which steps it was asked, and with what in its memory."""

    shared: str | None = None

    def __call__(self, heads, unit):
        """Ones; the calls are listed in `heads.learned`."""
        calls = heads.memory["calls seen"] = heads.memory.get("calls seen", 0) + 1
        heads.learned.setdefault("asked", []).append((heads.step, calls, heads.prompt))
        return torch.ones(1, 1, *heads.grid(unit))


def test_a_sampler_need_not_know_of_steps(small):
    method = sw.method("pooled_blocks", score=Witness(), pattern=blocks(16), density=0.5)
    x, time = torch.zeros(1, 2, 8, 8), torch.zeros(1)
    with sw.attention(small, method, steps=3, prompt=4) as run, torch.no_grad():
        sample(small, 1, steps=3)
        sample(small, 1, steps=3)
        assert run.step == 2
        small(x, time)
        run.step = 0  # another sample begins before this one has ended
        small(x, time)
    asked = [(0, 1, 4), (1, 2, 4), (2, 3, 4)]
    assert run.layers[0].learned["asked"] == run.layers[1].learned["asked"] == [*asked, *asked, asked[0], asked[0]]
    with sw.attention(small, method, steps=2, calls=2) as run, torch.no_grad():
        for _ in range(5):
            small(x, time)
    assert [a[:2] for a in run.layers[0].learned["asked"]] == [(0, 1), (0, 1), (1, 2), (1, 2), (0, 1)]
    with pytest.raises(BudgetError), sw.attention(small, method, steps=0):
        pass


def test_without_steps_every_call_is_a_prompt_of_its_own(small):
    method = sw.method("pooled_blocks", score=Witness(), pattern=blocks(16), density=0.5)
    with sw.attention(small, method) as run, torch.no_grad():
        sample(small, 1, steps=2)
    assert run.layers[0].learned["asked"] == [(0, 1, 0), (0, 1, 0)]


# -- a video -------------------------------------------------------------------------------------------------------------


def test_what_a_band_missed_at_the_last_dense_step_serves_a_video():
    """Steps must be small: with 15 of them the residual is out of date, and the band alone is nearer."""
    model, steps = cast(VideoDiffusion, sw.load("sparseworks/toydiff").eval()), 25
    dense = sample(model, 2, steps=steps)

    def sampled(method):
        with sw.attention(model, method, steps=steps, clip=Clip(8, 8, 8)) as run:
            return psnr(sample(model, 2, steps=steps), dense), run.density()

    method = sw.method("re_ttention", pattern=blocks(16), always=Band(17))
    (with_rest, density), (band, same) = sampled(method), sampled(method.with_(rest=None))
    assert 0.48 < same < 0.5  # 11 dense steps of 25, and 46 of 512 keys
    taught = 11 * (25 * same - 11) / 14  # dense steps attend to those once more, for what they teach
    assert density == pytest.approx(same + taught / 25, abs=1e-6)
    assert with_rest > band + 0.4


@dataclass(frozen=True)
class Scattered(AttentionScore):
    """Blocks at random."""

    shared: str | None = None

    def __call__(self, heads, unit):
        """Uniform draws."""
        return torch.rand(1, heads.heads, *heads.grid(unit), generator=torch.Generator().manual_seed(heads.layer))


# -- a diffusion language model -------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def dlm():
    return sw.load("sparseworks/dlm").eval()


@pytest.fixture(scope="module")
def prose():
    return encode([PROSE[s : s + 256] for s in range(0, len(PROSE) - 256, 40)])


def test_a_mask_frozen_after_a_fifth_of_the_steps_fills_gaps_as_dense_attention_does(dlm, prose):
    hidden = torch.rand(prose.shape, generator=torch.Generator().manual_seed(1)) < 0.6
    hidden[:, :128] = False
    masked = torch.where(hidden, MASK, prose)

    def filled(method=None):
        if method is None:
            return denoise(dlm, masked, start=128, block=128, steps=6)
        with sw.attention(dlm, method, steps=6, prompt=128):
            return denoise(dlm, masked, start=128, block=128, steps=6)

    def agreement(**changes):
        method = sw.method("sparsed", pattern=blocks(16), density=0.5).with_(**changes)
        return float((filled(method) == dense)[hidden].float().mean())

    dense = filled()
    frozen = agreement()
    assert frozen > agreement(schedule=Searches((0.0,))) + 0.01
    assert frozen > agreement(score=None, always=Band(64)) + 0.02
    assert frozen > agreement(score=Scattered()) + 0.2


@dataclass(frozen=True)
class OneSide(KVScore):
    """Of one side of the block nothing goes."""

    before: bool
    start: int = 128

    def __call__(self, held):
        """Saliency on the other."""
        stays = (held.positions < self.start) == self.before
        return BlockSaliency()(held).masked_fill(stays, 1e4)


@dataclass(frozen=True)
class AtRandom(KVScore):
    """Any token may go."""

    def __call__(self, held):
        """Uniform draws."""
        return torch.rand(held.valid.shape, generator=torch.Generator().manual_seed(held.layer))


@torch.no_grad()
def test_half_a_cache_on_both_sides_is_nearly_the_whole(dlm, prose):
    """Divergence of a half-filled block's logits from those of the full pass, in nats."""
    at = slice(128, 144)
    gone = torch.rand(len(prose), 16, generator=torch.Generator().manual_seed(0)) < 0.5
    begun, half = prose.clone(), prose.clone()
    begun[:, at], half[:, at] = MASK, torch.where(gone, MASK, prose[:, at])
    real = dlm(half).logits[:, at].log_softmax(-1)

    def divergence(**changes):
        with sw.attention(dlm, sw.method("sparse_dllm", **changes)) as run:
            call = Blockwise(run, dlm)
            call(begun, at, 0)
            call(half, at, 1)
            found = call(half, at, 2).log_softmax(-1)
        return float((real.exp() * (real - found)).sum(-1)[gone].mean())

    half_of_all = divergence()
    assert divergence(density=1.0) < 1e-6 and half_of_all < 0.5 * divergence(score=AtRandom())
    assert half_of_all < 0.7 * min(divergence(score=OneSide(before)) for before in (True, False))


def test_tokens_processed_and_bytes_held_are_as_counted():
    torch.manual_seed(0)
    model = MaskedLM(MaskedLMConfig(hidden_size=32, num_attention_heads=2, num_hidden_layers=2)).eval()
    ids = torch.randint(32, 127, (2, 40))
    ids[:, 16:] = MASK
    with sw.attention(model, "sparse_dllm") as run:
        call = Blockwise(run, model)
        filled = denoise(model, ids, start=16, block=8, steps=4, call=call)
        assert call.processed == 2 * 3 * (2 * 40 + 2 * 8)
        assert (
            call.nbytes == 2 * 2 * 2 * 2 * 16 * 16 * 4
        )  # layers, k and v, sequences, heads, half of 32 tokens, width, bytes
        whole = denoise(model, ids, start=16, block=8, steps=4)
        assert filled.shape == whole.shape and not (filled == MASK).any()
        eager = Blockwise(run, model, delay=0)
        denoise(model, ids, start=16, block=8, steps=4, call=eager)
        assert eager.processed == 2 * 3 * (40 + 3 * 8)
        with pytest.raises(ModelError, match="holds nothing"):
            Blockwise(run, model)(ids, slice(16, 24), 2)
        with pytest.raises(BudgetError):
            Blockwise(run, model, delay=-1)
    with sw.attention(model, "pooled_blocks") as run, pytest.raises(ModelError, match="sparse_dllm"):
        Blockwise(run, model)
    uneven = sw.method("sparse_dllm", pattern={"unit": [1, 1], "group": [None, None]}, score="key_norm")
    with sw.attention(model, uneven) as run, pytest.raises(BudgetError, match="HEAD"):
        denoise(model, ids, start=16, block=8, steps=4, call=Blockwise(run, model))


# -- predictors that learn -------------------------------------------------------------------------------------------------


def test_a_predictor_of_rank_8_learns_the_critical_keys():
    """Queries and keys of 32 channels whose scores live in a few: random projections do not know which."""
    x = qkv(256, d=32, heads=2, shared=0.5, scale=1.0)
    size = torch.logspace(0.5, -1.2, 32)
    method = sw.method("dsv", score=LowRankScore(8, warm=30, sparsity=0.3))
    turn = torch.linalg.qr(torch.randn(32, 32, generator=torch.Generator().manual_seed(1))).Q
    heads = Heads(x.q * size @ turn, x.k * size @ turn, x.v, causal=False)
    dense = heads.scores().softmax(-1) @ heads.v
    seen = []
    for _ in range(120):
        (out, _), kept = sparse_attention(heads, method)
        assert kept is not None
        seen.append(kept.density(heads))
    one = heads.learned["low_rank"]
    first = LowRankScore(8).predictor(heads.with_(learned={}))
    first.fit(heads, method.pattern.unit, 0.9)
    assert one.recall.min() > 0.9 > first.recall.max() + 0.1
    assert seen[:30] == [1.0] * 30 and seen[-1] < 0.7  # dense until it can be foretold
    assert float((out - dense).norm() / dense.norm()) < 0.3
    assert seen[-1] == pytest.approx(float(one.critical.mean()), abs=0.05)


def test_training_goes_on_when_heads_turn_sparse():
    model = cast(VideoDiffusion, sw.load("sparseworks/toydiff").train())
    method = sw.method("dsv", score=LowRankScore(8, warm=4, sparsity=0.2, recall=0.8), pattern=blocks(16))
    clips = [squares(1, seed=step) for step in range(8)]
    with torch.no_grad():
        dense = sum(float(flow_loss(model, clip, step)) for step, clip in enumerate(clips))
    sparse = 0.0
    with sw.attention(model, method) as run:
        for step, clip in enumerate(clips):
            loss = flow_loss(model, clip, step)
            loss.backward()
            sparse += float(loss.detach())
    assert sparse == pytest.approx(dense, rel=0.02)
    densities = [run.layers[i].density("prefill") or 1.0 for i in range(4)]
    assert min(densities) < 0.9
    grads = [p.grad for p in model.parameters()]
    assert all(g is not None and g.isfinite().all() for g in grads)
    predictors = [run.layers[i].learned["low_rank"] for i in range(4)]
    assert all(p.fits == 8 for p in predictors)
