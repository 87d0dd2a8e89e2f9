"""Rows of queries over keys that lie apart, and the largest scores of listed keys, against plain attention over the same pairs."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sparseworks.core.errors import DtypeError, KernelError, ShapeError
from sparseworks.exec.attention import attend_columns, peaks


def tensors(batch, heads, kv_heads, queries, keys, d):
    return (torch.randn(batch, h, n, d) for h, n in ((heads, queries), (kv_heads, keys), (kv_heads, keys)))


def pairs(mask, queries, keys, tall, wide, offset, causal):
    """The mask over queries and keys, one by one."""
    place, key = torch.arange(offset, offset + queries), torch.arange(keys)
    found = mask[:, :, place // tall - offset // tall][..., key // wide]
    return found & (key <= place[:, None]) if causal else found


def dense(q, k, v, mask, scale=None):
    q, k, v = q.double(), *(t.double().repeat_interleave(q.shape[1] // t.shape[1], 1) for t in (k, v))
    scores = (q @ k.mT * (q.shape[3] ** -0.5 if scale is None else scale)).masked_fill(~mask, -torch.inf)
    lse = scores.logsumexp(-1)
    return (scores - lse.unsqueeze(-1)).exp().nan_to_num(0.0) @ v, lse


def close(got, want, **tolerance):
    for a, b in zip(got, want, strict=True):
        torch.testing.assert_close(a.double(), b, **(tolerance or {"rtol": 1e-4, "atol": 1e-5}))


def marked(lead, queries, keys, tall, wide, offset, share):
    rows = -(-(offset + queries) // tall) - offset // tall
    return torch.rand(*lead, rows, -(-keys // wide)) < share


# batch, heads, key heads, queries, keys, d, lists of (batch, heads), tall, wide, causal
CASES = [
    (1, 1, 1, 1, 1, 64, (1, 1), 1, 1, True),
    (2, 4, 2, 200, 200, 64, (2, 4), 32, 4, True),
    (1, 4, 2, 150, 333, 40, (1, 4), 128, 1, True),
    (2, 6, 2, 90, 300, 128, (1, 1), 7, 5, False),
    (1, 2, 1, 300, 300, 20, (1, 2), 300, 1, True),
    (2, 2, 2, 45, 80, 33, (2, 1), 16, 3, False),
]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_equals_masked_dense_attention(case, isa):
    *sizes, lead, tall, wide, causal = case
    q, k, v = tensors(*sizes)
    queries, keys = q.shape[2], k.shape[2]
    offset = keys - queries if causal else 0
    mask = marked(lead, queries, keys, tall, wide, offset, 0.3)
    empty = mask.shape[2] > 1
    mask[:, :, 0] &= not empty  # a row that attends to nothing
    want = dense(q, k, v, pairs(mask, queries, keys, tall, wide, offset, causal), scale=0.2)
    got = attend_columns(q, k, v, mask, tall=tall, wide=wide, offset=offset, causal=causal, scale=0.2)
    close(got, want)
    none = want[1].isneginf()
    assert bool(none.any()) >= empty and bool((got[0][none] == 0).all())


def test_heads_that_agree_share_what_is_gathered(isa):
    q, k, v = tensors(2, 6, 2, 100, 100, 32)
    mask = marked((2, 2), 100, 100, 32, 1, 0, 0.3).repeat_interleave(3, 1)
    same = attend_columns(q, k, v, mask, tall=32)
    close(same, dense(q, k, v, pairs(mask, 100, 100, 32, 1, 0, True)))
    mask[0, 1] = ~mask[0, 1]
    close(attend_columns(q, k, v, mask, tall=32), dense(q, k, v, pairs(mask, 100, 100, 32, 1, 0, True)))


@settings(max_examples=60, deadline=None)
@given(
    st.integers(1, 2), st.sampled_from([(1, 1), (4, 2), (3, 1)]), st.integers(1, 200), st.integers(0, 200), st.integers(1, 70),
    st.integers(1, 200), st.integers(1, 20), st.booleans(), st.integers(0, 2**30),
)  # fmt: skip
def test_any_shape(batch, heads, queries, before, d, tall, wide, causal, seed):
    torch.manual_seed(seed)
    q, k, v = tensors(batch, *heads, queries, before + queries, d)
    offset = before if causal else 0
    mask = marked((batch, heads[0]), queries, before + queries, tall, wide, offset, float(torch.rand(1)))
    want = dense(q, k, v, pairs(mask, queries, before + queries, tall, wide, offset, causal))
    close(attend_columns(q, k, v, mask, tall=tall, wide=wide, offset=offset, causal=causal), want)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_other_types_and_views(dtype, isa):
    q, k, v = (t.to(dtype) for t in tensors(1, 4, 4, 64, 64, 32))
    q, k, v = (t.transpose(1, 2).contiguous().transpose(1, 2) for t in (q, k, v))
    mask = marked((1, 4), 64, 64, 16, 1, 0, 0.5)
    out, lse = attend_columns(q, k, v, mask, tall=16)
    assert out.dtype is dtype and lse.dtype is torch.promote_types(dtype, torch.float32)
    close((out, lse), dense(q, k, v, pairs(mask, 64, 64, 16, 1, 0, True)), rtol=1e-2, atol=1e-2)


def test_large_scores_and_late_keys_stay_finite(isa):
    q, k, v = (100 * t for t in tensors(1, 1, 1, 200, 200, 32))
    mask = torch.zeros(1, 1, 1, 200, dtype=torch.bool)
    mask[..., 3:200:2] = True  # the first panel shows most rows nothing, or little
    got = attend_columns(q, k, v, mask, tall=200)
    close(got, dense(q, k, v, pairs(mask, 200, 200, 200, 1, 0, True)), rtol=1e-3, atol=1e-3)


def test_gradients_are_those_of_masked_dense_attention():
    q, k, v = (t.requires_grad_() for t in tensors(1, 4, 2, 50, 80, 32))
    mask = marked((1, 4), 50, 80, 16, 1, 30, 0.4) | (torch.arange(80) == 0)
    weights = torch.randn(1, 4, 50, 32)
    out, lse = attend_columns(q, k, v, mask, tall=16, offset=30)
    mine = torch.autograd.grad((out * weights).sum() + lse.sin().sum(), (q, k, v))
    out, lse = dense(q, k, v, pairs(mask, 50, 80, 16, 1, 30, True))
    theirs = torch.autograd.grad((out * weights).sum() + lse.sin().sum(), (q, k, v))
    close(mine, [t.double() for t in theirs], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("causal", [True, False])
def test_peaks_are_the_largest_scores_of_the_listed_keys(causal, isa):
    q, k, _ = tensors(2, 4, 2, 150, 170, 40)
    offset = 20 if causal else 0
    logits = (q @ k.repeat_interleave(2, 1).mT) * -0.3
    if causal:
        logits = logits.masked_fill(torch.arange(170) > torch.arange(20, 170)[:, None], -torch.inf)
    for tall in (1, 32, 200):
        rows = -(-(offset + 150) // tall) - offset // tall
        places = torch.randint(0, 170, (2, 4, rows, 67))
        got = peaks(q, k, places, tall=tall, offset=offset, causal=causal, scale=-0.3)
        row = torch.arange(offset, offset + 150) // tall - offset // tall
        best = torch.stack([logits[:, :, row == r].amax(2) for r in range(rows)], 2)
        torch.testing.assert_close(got, best.gather(-1, places), rtol=1e-4, atol=1e-4)


def test_a_score_that_is_not_a_number_is_seen(isa):
    q, k, _ = tensors(1, 1, 1, 40, 40, 32)
    k[0, 0, 5, 3] = torch.nan
    found = peaks(q, k, torch.arange(40).view(1, 1, 1, 40), tall=40)
    assert found.isnan()[0, 0, 0].nonzero().tolist() == [[5]]


def test_what_does_not_fit_is_refused():
    q, k, v = tensors(1, 2, 2, 20, 20, 32)
    mask = torch.ones(1, 2, 2, 20, dtype=torch.bool)
    for bad in (mask[:, :, :1], mask[:, :1, :, :5], mask.float(), mask[0]):
        with pytest.raises(ShapeError, match="mask is bool over"):
            attend_columns(q, k, v, bad, tall=16)
    with pytest.raises(ShapeError, match="at least 1"):
        attend_columns(q, k, v, mask, tall=0)
    with pytest.raises(DtypeError, match="floating"):
        attend_columns(q.long(), k.long(), v.long(), mask, tall=16)
    with pytest.raises(ShapeError, match="Places"):
        peaks(q, k, torch.zeros(1, 2, 3, 4, dtype=torch.long), tall=16)
    with pytest.raises(KernelError, match="outside"):
        peaks(q, k, torch.full((1, 2, 2, 4), 20), tall=16)
