"""The next token over a growing cache against plain attention; what a cache has shown is never overwritten."""

from __future__ import annotations

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sparseworks.core.errors import DtypeError, ShapeError
from sparseworks.exec.attention import KeyValueCache


def rotated(x, cos, sin):
    first, second = x.chunk(2, -1)
    return x * cos[:, None] + torch.cat([-second, first], -1) * sin[:, None]


def dense(q, keys, values, mask=None, scale=None):
    group = q.shape[1] // keys.shape[1]
    keys, values = (t.double().repeat_interleave(group, 1) for t in (keys, values))
    scores = torch.einsum("bhd,bhtd->bht", q.double(), keys) * (scale or q.shape[2] ** -0.5)
    scores = scores if mask is None else scores + mask.double()[:, None]
    return torch.einsum("bht,bhtd->bhd", scores.softmax(-1), values)


def filled(batch, kv_heads, tokens, d, dtype=torch.float32):
    cache = KeyValueCache(batch, kv_heads, d, dtype=dtype)
    cache.append(torch.randn(batch, kv_heads, tokens, d), torch.randn(batch, kv_heads, tokens, d))
    return cache


def token(batch, heads, kv_heads, d):
    q, k, v = torch.randn(batch, heads, d), torch.randn(batch, kv_heads, d), torch.randn(batch, kv_heads, d)
    angle = torch.rand(batch, d) * 6
    return q, k, v, (angle.cos(), angle.sin())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    ("batch", "heads", "kv_heads", "tokens", "d"),
    [
        (1, 1, 1, 0, 2),
        (1, 4, 2, 63, 16),
        (2, 6, 2, 64, 12),
        (3, 5, 1, 131, 40),
        (1, 8, 8, 200, 64),
        (4, 32, 8, 70, 128),
    ],
)
def test_equals_plain_attention_and_appends(batch, heads, kv_heads, tokens, d, dtype, isa):
    cache = filled(batch, kv_heads, tokens, d, dtype)
    for _ in range(3):
        q, k, v, angles = token(batch, heads, kv_heads, d)
        keys, values = cache.keys().float(), cache.values().float()
        new = rotated(k, *angles).to(dtype).float(), v.to(dtype).float()
        got = cache.attend_next(q, k, v, angles=angles)
        keys, values = (torch.cat([old, t[:, :, None]], 2) for old, t in zip((keys, values), new, strict=True))
        loose = {"rtol": 2e-2, "atol": 2e-2} if dtype is torch.bfloat16 else {"rtol": 1e-4, "atol": 1e-5}
        torch.testing.assert_close(got.double(), dense(rotated(q, *angles), keys, values), **loose)
        torch.testing.assert_close(cache.keys().float(), keys, **loose)
        assert torch.equal(cache.values().float(), values)
    assert cache.tokens == tokens + 3


@pytest.mark.parametrize("shared", [True, False])
def test_mask_scale_and_shared_angles(shared, isa):
    cache = filled(2, 2, 70, 16)
    q, k, v, angles = token(2, 4, 2, 16)
    angles = tuple(a[:1] for a in angles) if shared else angles
    mask = torch.zeros(2, 71)
    mask[0, :66], mask[1, 3] = -torch.inf, -2.0
    keys = torch.cat([cache.keys(), rotated(k, *angles)[:, :, None]], 2)
    values = torch.cat([cache.values(), v[:, :, None]], 2)
    got = cache.attend_next(q, k, v, angles=angles, mask=mask, scale=0.3)
    torch.testing.assert_close(got.double(), dense(rotated(q, *angles), keys, values, mask, 0.3), rtol=1e-4, atol=1e-5)


def test_nothing_to_see_gives_zero_and_no_angles_rotate_nothing(isa):
    cache = filled(1, 1, 5, 16)
    q, k, v, _ = token(1, 2, 1, 16)
    assert not cache.attend_next(q, k, v, mask=torch.full((1, 6), -torch.inf)).any()
    assert torch.equal(cache.keys()[:, :, -1], k)


def test_a_score_that_is_not_a_number_is_seen(isa):
    cache = filled(1, 1, 5, 16)
    q, k, v, _ = token(1, 2, 1, 16)
    q[0, 1, 3] = torch.nan
    got = cache.attend_next(q, k, v)
    assert got[0, 0].isfinite().all() and got[0, 1].isnan().all()


@settings(max_examples=30, deadline=None)
@given(st.lists(st.sampled_from(["append", "next", "crop", "show"]), max_size=14), st.integers(0, 99))
def test_what_was_shown_stays(steps, seed):
    """Whatever is done with a cache, it holds what `torch.cat` would, and so do all views it gave out."""
    generator = torch.Generator().manual_seed(seed)
    cache, keys, shown = KeyValueCache(1, 2, 8), torch.zeros(1, 2, 0, 8), []
    for step in steps:
        k = torch.randn(1, 2, 1, 8, generator=generator)
        if step == "append":
            cache.append(k, k)
        elif step == "next":
            cache.attend_next(k[:, :, 0], k[:, :, 0], k[:, :, 0])
        elif step == "show":
            shown.append((cache.keys(), keys))
        elif cache.tokens:
            cache.crop(1)
        keys = torch.cat([keys, k], 2) if step in ("append", "next") else keys[:, :, : cache.tokens]
    for view, held in (*shown, (cache.keys(), keys), (cache.values(), keys)):
        assert torch.equal(view, held)


def test_copies_do_not_share_buffers():
    cache = filled(1, 1, 3, 16)
    for twin in (copy.copy(cache), copy.deepcopy(cache)):
        twin.append(*(torch.ones(1, 1, 1, 16),) * 2)
        cache.append(*(torch.zeros(1, 1, 1, 16),) * 2)
        assert twin.keys()[0, 0, -1].all() and not cache.keys()[0, 0, -1].any()
        cache.crop(1)


def test_filled_in_inference_mode_it_can_be_written_to_outside():
    with torch.inference_mode():
        cache = filled(1, 1, 3, 16)
    cache.append(*(torch.ones(1, 1, 1, 16),) * 2)
    assert cache.tokens == 4


def test_what_does_not_fit_is_refused():
    cache = filled(2, 2, 3, 16)
    q, k, v, angles = token(2, 4, 2, 16)
    with pytest.raises(ShapeError, match="multiple of 2 heads"):
        cache.attend_next(q[:, :3], k, v)
    with pytest.raises(ShapeError, match="next key and value"):
        cache.attend_next(q, k[:, :1], v)
    with pytest.raises(ShapeError, match="Cosines"):
        cache.attend_next(q, k, v, angles=(angles[0][:, :8], angles[1][:, :8]))
    with pytest.raises(ShapeError, match="mask"):
        cache.attend_next(q, k, v, mask=torch.zeros(2, 3))
    with pytest.raises(DtypeError, match="float32 on the CPU"):
        cache.attend_next(q.double(), k, v)
    with pytest.raises(ShapeError, match="cannot be forgotten"):
        cache.crop(4)
    with pytest.raises(ShapeError, match="Keys and values"):
        cache.append(torch.zeros(2, 2, 1, 8), torch.zeros(2, 2, 1, 8))
    with pytest.raises(DtypeError, match="floating"):
        cache.append(*(torch.zeros(2, 2, 1, 16, dtype=torch.int32),) * 2)
    with pytest.raises(ShapeError, match="at least 1"):
        KeyValueCache(0, 1, 1)
    with pytest.raises(DtypeError, match="bfloat16"):
        KeyValueCache(1, 1, 1, dtype=torch.float16)
    assert cache.tokens == 3
