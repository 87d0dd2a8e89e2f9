from __future__ import annotations

import math

import pytest
import torch

from sparseworks.core.errors import DtypeError, ShapeError
from sparseworks.exec.triton.decode import page_attention, page_bounds, page_scores


def reference(q, k, v, pages, page: int, scale: float | None = None):
    """Dense attention of one query per head in float64 with a mask of listed tokens."""
    heads, length = q.shape[1], k.shape[2]
    mask = torch.zeros(q.shape[0], pages.shape[1], length, dtype=torch.bool, device=q.device)
    for (b, h, _), number in zip(
        torch.cartesian_prod(*map(torch.arange, pages.shape)).tolist(), pages.flatten().tolist(), strict=True
    ):
        if number >= 0:
            mask[b, h, number * page : (number + 1) * page] = True
    mask = mask.repeat_interleave(heads // pages.shape[1], dim=1)
    k, v = (t.double().repeat_interleave(heads // k.shape[1], dim=1) for t in (k, v))
    s = (k @ q.double()[..., None])[..., 0] * (q.shape[-1] ** -0.5 if scale is None else scale)
    s = s.masked_fill(~mask, -math.inf)
    return (s.softmax(-1).nan_to_num(0.0)[:, :, None] @ v)[:, :, 0].to(q.dtype), s.logsumexp(-1).float()


def case(shape, lists: int, page: int, count: int, dtype, device):
    batch, heads, kv_heads, length, d = shape
    q = torch.randn(batch, heads, d, device=device).to(dtype)
    k, v = (torch.randn(batch, kv_heads, length, d, device=device).to(dtype) for _ in range(2))
    order = torch.rand(batch, lists, -(-length // page)).argsort(-1)[..., :count]
    return q, k, v, order.to(device)


SHAPES = [  # batch, heads, kv_heads, length, d; lists; page; pages chosen
    ((1, 1, 1, 1, 64), 1, 16, 1),
    ((1, 2, 2, 100, 64), 2, 16, 3),
    ((2, 4, 2, 75, 128), 2, 16, 4),
    ((1, 8, 2, 130, 64), 8, 32, 3),
    ((1, 2, 1, 300, 32), 1, 64, 5),
]


@pytest.mark.parametrize("shape, lists, page, count", SHAPES)
def test_equals_attention_over_the_listed_tokens(shape, lists, page, count, dtype, device, close):
    q, k, v, pages = case(shape, lists, page, count, dtype, device)
    out, lse = page_attention(q, k, v, pages, page)
    expected, sums = reference(q, k, v, pages, page)
    close(out, expected)
    torch.testing.assert_close(
        lse, sums, rtol=1e-2 if dtype != torch.float32 else 1e-5, atol=1e-2 if dtype != torch.float32 else 1e-5
    )


@pytest.mark.parametrize("parts", [1, 2, 7])
def test_splitting_the_list_changes_nothing(parts, device, monkeypatch, close):
    q, k, v, pages = case((1, 2, 1, 200, 64), 1, 16, 7, torch.float32, device)
    monkeypatch.setattr("sparseworks.exec.triton.decode.splits", lambda *_, **__: parts)
    out, lse = page_attention(q, k, v, pages, 16, 2.0)
    expected, sums = reference(q, k, v, pages, 16, 2.0)
    close(out, expected)
    torch.testing.assert_close(lse, sums)


def test_empty_places_in_a_list_count_nothing(device, close):
    q, k, v, pages = case((1, 2, 2, 90, 64), 2, 16, 5, torch.float32, device)
    pages[:, 0, ::2] = -1
    pages[:, 1] = -1
    out, lse = page_attention(q, k, v, pages, 16)
    close(out, reference(q, k, v, pages, 16)[0])
    assert not out[:, 1].any() and lse[0, 1] == -math.inf and torch.isfinite(lse[0, 0])
    out, lse = page_attention(q, k, v, pages[:, :, :0].contiguous(), 16)
    assert not out.any() and bool((lse == -math.inf).all())


def test_bounds_are_the_extremes_of_a_page(dtype, device):
    for length in (5, 48, 70):
        k = torch.randn(2, 2, length, 64, device=device).to(dtype)
        low, high = page_bounds(k, 16)
        for p in range(-(-length // 16)):
            part = k[:, :, p * 16 : (p + 1) * 16]
            assert torch.equal(low[:, :, p], part.amin(2)) and torch.equal(high[:, :, p], part.amax(2))
        assert low.shape[2] == -(-length // 16)


def test_scores_are_never_below_a_key_of_the_page(dtype, device, close):
    q, k, _, _ = case((2, 4, 2, 90, 64), 2, 16, 1, dtype, device)
    low, high = page_bounds(k, 16)
    scores = page_scores(q, low, high)
    a, b, c = q.float()[:, :, None], *(t.float().repeat_interleave(2, dim=1) for t in (low, high))
    close(scores, torch.maximum(a * b, a * c).sum(-1))
    exact = (k.float().repeat_interleave(2, dim=1) @ q.float()[..., None])[..., 0]
    padded = torch.nn.functional.pad(exact, (0, 6), value=-math.inf).reshape(2, 4, 6, 16).amax(-1)
    assert bool((scores >= padded - 1e-4).all())


def test_refusals(device):
    q, k, v, pages = case((1, 2, 1, 64, 64), 1, 16, 2, torch.float32, device)
    with pytest.raises(ShapeError, match="Pages of"):
        page_attention(q, k, v, pages, 24)
    with pytest.raises(ShapeError, match="lists"):
        page_attention(q, k, v, pages.repeat(1, 3, 1), 16)
    with pytest.raises(ShapeError, match="multiple of kv_heads"):
        page_attention(q, torch.cat([k, k, k], 1), torch.cat([v, v, v], 1), pages, 16)
    with pytest.raises(DtypeError, match="one type"):
        page_attention(q.half(), k, v, pages, 16)
    with pytest.raises(ShapeError, match="different shapes"):
        page_scores(q, *(b[:, :, :n].contiguous() for b, n in zip(page_bounds(k, 16), (2, 3), strict=True)))
