from __future__ import annotations

import math

import pytest
import torch
from torch.nn import functional as F

from sparseworks.core.errors import DtypeError, ShapeError
from sparseworks.core.support import Support
from sparseworks.exec.triton.attention import block_attention


def reference(q, k, v, support: Support, block: int, causal: bool, scale: float | None = None):
    """Dense attention in float64 with a mask of tokens; rows without keys give zeros and -inf."""
    heads, (queries, keys) = q.shape[1], (q.shape[2], k.shape[2])
    k, v = (t.double().repeat_interleave(heads // k.shape[1], dim=1) for t in (k, v))
    s = q.double() @ k.transpose(-1, -2) * (q.shape[-1] ** -0.5 if scale is None else scale)
    mask = support.mask().to(q.device).repeat_interleave(block, 1).repeat_interleave(block, 2)[:, :queries, :keys]
    if causal:
        mask = mask & torch.ones(queries, keys, dtype=torch.bool, device=q.device).tril(keys - queries)
    s = s.masked_fill(~mask, -math.inf)
    return (s.softmax(-1).nan_to_num(0.0) @ v).to(q.dtype), s.logsumexp(-1).float()


def case(shape, support_heads: int, block: int, density: float, dtype, device):
    batch, heads, kv_heads, queries, keys, d = shape
    q = torch.randn(batch, heads, queries, d, device=device).to(dtype)
    k, v = (torch.randn(batch, kv_heads, keys, d, device=device).to(dtype) for _ in range(2))
    mask = torch.rand(support_heads, -(-queries // block), -(-keys // block)) < density
    return q, k, v, Support.from_mask(mask)


def lists(support: Support, device: str):
    return tuple(t.to(device) for t in support.indices())


def check(got, expected, close):
    close(got[0], expected[0])
    seen = torch.isfinite(expected[1])
    assert torch.equal(torch.isfinite(got[1]), seen)
    torch.testing.assert_close(
        got[1][seen],
        expected[1][seen],
        rtol=1e-2 if got[0].dtype != torch.float32 else 1e-5,
        atol=1e-2 if got[0].dtype != torch.float32 else 1e-5,
    )


SHAPES = [  # batch, heads, kv_heads, queries, keys, d; heads of the support; block
    ((1, 1, 1, 1, 1, 64), 1, 16),
    ((2, 2, 1, 20, 37, 64), 1, 16),
    ((1, 2, 2, 40, 40, 128), 2, 32),
    ((1, 2, 1, 130, 150, 64), 2, 64),
    ((1, 1, 1, 140, 140, 128), 1, 128),
]


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("shape, support_heads, block", SHAPES)
def test_equals_masked_dense_attention(shape, support_heads, block, causal, dtype, device, close):
    q, k, v, support = case(shape, support_heads, block, 0.5, dtype, device)
    got = block_attention(q, k, v, *lists(support, device), block, causal)
    check(got, reference(q, k, v, support, block, causal), close)


@pytest.mark.parametrize("causal", [False, True])
def test_everything_kept_is_torch_attention(causal, device, close):
    q, k, v, _ = case((2, 2, 2, 50, 50, 32), 1, 16, 1.0, torch.float32, device)
    out, _ = block_attention(q, k, v, *lists(Support.full((1, 4, 4)), device), 16, causal)
    close(out, F.scaled_dot_product_attention(q, k, v, is_causal=causal))


def test_queries_without_keys_give_zeros_and_no_mass(device):
    q, k, v, _ = case((1, 2, 1, 40, 40, 64), 1, 16, 1.0, torch.float32, device)
    out, lse = block_attention(q, k, v, *lists(Support.empty((2, 3, 3)), device), 16, False)
    assert not out.any() and bool((lse == -math.inf).all())


def test_causal_queries_ahead_of_all_keys_see_nothing(device, close):
    q, k, v, _ = case((1, 1, 1, 40, 24, 64), 1, 16, 1.0, torch.float32, device)
    support = Support.full((1, 3, 2))
    got = block_attention(q, k, v, *lists(support, device), 16, True)
    check(got, reference(q, k, v, support, 16, True), close)
    assert not got[0][:, :, :16].any()


def test_large_scores_do_not_overflow_and_scale_is_used(device, close):
    q, k, v, support = case((1, 1, 1, 32, 32, 64), 1, 16, 1.0, torch.float32, device)
    got = block_attention(q, k, v, *lists(support, device), 16, False, 30.0)
    check(got, reference(q, k, v, support, 16, False, 30.0), close)


@pytest.mark.parametrize("scale", [0.0, -0.5])
def test_scales_that_are_not_positive(scale, device, close):
    q, k, v, support = case((1, 2, 1, 40, 40, 64), 2, 16, 0.6, torch.float32, device)
    got = block_attention(q, k, v, *lists(support, device), 16, True, scale)
    check(got, reference(q, k, v, support, 16, True, scale), close)


def test_every_sequence_may_have_its_own_lists(device, close):
    q, k, v, _ = case((2, 2, 1, 40, 40, 64), 1, 16, 1.0, torch.float32, device)
    support = Support.from_mask(torch.rand(4, 3, 3) < 0.5)
    out, lse = block_attention(q, k, v, *lists(support, device), 16)
    for b in range(2):
        one = Support.from_mask(support.mask()[2 * b : 2 * b + 2])
        expected = reference(q[b : b + 1], k[b : b + 1], v[b : b + 1], one, 16, False)
        check((out[b : b + 1], lse[b : b + 1]), expected, close)


def test_shift_says_which_keys_a_query_sees(device, close):
    q, k, v, _ = case((1, 1, 1, 32, 48, 64), 1, 16, 1.0, torch.float32, device)
    at = lists(Support.full((1, 2, 3)), device)
    close(block_attention(q, k, v, *at, 16, True, shift=0)[0], F.scaled_dot_product_attention(q, k, v, is_causal=True))
    close(block_attention(q, k, v, *at, 16, True, shift=16)[0], block_attention(q, k, v, *at, 16, True)[0])


def test_halves_merge_by_their_log_sums(device, close):
    """What the log-sum-exp is for: two disjoint supports give the attention over their union."""
    q, k, v, _ = case((1, 1, 1, 32, 64, 64), 1, 16, 1.0, torch.float32, device)
    mask = torch.zeros(1, 2, 4, dtype=torch.bool)
    mask[..., :2] = True
    (a, la), (b, lb) = (
        block_attention(q, k, v, *lists(Support.from_mask(m), device), 16, False) for m in (mask, ~mask)
    )
    whole, lse = block_attention(q, k, v, *lists(Support.full((1, 2, 4)), device), 16, False)
    torch.testing.assert_close(torch.logaddexp(la, lb), lse)
    close(a * (la - lse).exp()[..., None] + b * (lb - lse).exp()[..., None], whole)


def test_refusals(device):
    q, k, v, support = case((1, 2, 1, 32, 32, 64), 1, 16, 1.0, torch.float32, device)
    at = lists(support, device)
    with pytest.raises(ShapeError, match="blocks of"):
        block_attention(q, k, v, *at, 24, False)
    with pytest.raises(ShapeError, match="lists of blocks"):
        block_attention(torch.cat([q, q], 2), k, v, *at, 16, False)
    with pytest.raises(ShapeError, match="multiple of kv_heads"):
        block_attention(q, torch.cat([k, k, k], 1), torch.cat([v, v, v], 1), *at, 16, False)
    with pytest.raises(DtypeError, match="one type"):
        block_attention(q.half(), k, v, *at, 16, False)


def test_many_more_queries_than_keys_end(device, close):
    q, k, v, _ = case((1, 1, 1, 64, 16, 64), 1, 16, 1.0, torch.float32, device)
    support = Support.full((1, 4, 1))
    check(block_attention(q, k, v, *lists(support, device), 16, True), reference(q, k, v, support, 16, True), close)
