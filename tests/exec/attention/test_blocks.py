"""Attention over kept blocks against masked dense attention: values, log-sum-exp, gradients, merging, refusals."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import sparseworks as sw
from sparseworks.core.errors import DtypeError, KernelError, ShapeError
from sparseworks.core.support import Support
from sparseworks.exec.attention import merge
from sparseworks.exec.attention.blocks import block_lists


def dense(q, k, v, support, block, causal, scale=None):
    """Masked dense attention, by softmax over the expanded block mask."""
    q, k, v = (t.double() for t in (q, k, v))
    group = q.shape[1] // k.shape[1]
    k, v = k.repeat_interleave(group, 1), v.repeat_interleave(group, 1)
    queries, keys = q.shape[2], k.shape[2]
    mask = support.mask().repeat_interleave(block, -2).repeat_interleave(block, -1)[..., :queries, :keys]
    if causal:
        mask = mask & torch.ones(queries, keys, dtype=torch.bool).tril()
    scores = (q @ k.mT) * (q.shape[-1] ** -0.5 if scale is None else scale)
    weight = scores.exp() * mask
    total = weight.sum(-1, keepdim=True)
    out = weight / torch.where(total == 0, 1.0, total) @ v
    total = total.squeeze(-1)
    return out, torch.where(total == 0, -torch.inf, torch.where(total == 0, 1.0, total).log())


def tensors(batch, heads, kv_heads, queries, keys, d, dtype=torch.float32):
    return (
        torch.randn(batch, heads, queries, d, dtype=dtype),
        torch.randn(batch, kv_heads, keys, d, dtype=dtype),
        torch.randn(batch, kv_heads, keys, d, dtype=dtype),
    )


def blocks(lead, queries, keys, block, share):
    return Support.from_mask(torch.rand(*lead, -(-queries // block), -(-keys // block)) < share)


CASES = [
    # batch, heads, kv_heads, queries, keys, d, block, causal, lead, share
    (1, 1, 1, 64, 64, 64, 64, True, (), 1.0),
    (2, 4, 2, 200, 200, 64, 64, True, (4,), 0.5),
    (2, 2, 1, 131, 257, 32, 32, False, (2, 1), 0.4),
    (1, 3, 3, 97, 61, 40, 64, False, (1,), 0.6),
    (1, 2, 2, 129, 129, 128, 128, True, (1, 2), 0.7),
    (1, 2, 2, 50, 50, 8, 7, True, (2,), 0.5),
    (1, 2, 1, 1, 300, 96, 64, False, (2,), 0.5),
    (1, 2, 2, 70, 70, 64, 64, True, (), 0.0),
    (1, 1, 1, 0, 70, 64, 64, False, (), 1.0),
    (1, 1, 1, 70, 0, 64, 64, False, (), 1.0),
]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_equals_masked_dense_attention(case, isa):
    batch, heads, kv_heads, queries, keys, d, block, causal, lead, share = case
    q, k, v = tensors(batch, heads, kv_heads, queries, keys, d)
    support = blocks(lead, queries, keys, block, share)
    out, lse = sw.attend(q, k, v, support, block=block, causal=causal, return_lse=True)
    want, want_lse = dense(q, k, v, support, block, causal)
    torch.testing.assert_close(out.double(), want, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(lse.double(), want_lse, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_other_types(dtype, isa):
    q, k, v = tensors(1, 2, 1, 100, 100, 64, dtype)
    support = blocks((2,), 100, 100, 64, 0.6)
    out = sw.attend(q, k, v, support, causal=True, scale=0.3)
    assert out.dtype is dtype
    want, _ = dense(q, k, v, support, 64, True, 0.3)
    torch.testing.assert_close(out.double(), want, rtol=2e-2, atol=1e-10 if dtype is torch.float64 else 1e-2)


def test_large_scores_stay_finite(isa):
    q, k, v = tensors(1, 1, 1, 128, 128, 64)
    out, lse = sw.attend(100 * q, 100 * k, v, Support.full((2, 2)), return_lse=True)
    want = torch.nn.functional.scaled_dot_product_attention(100 * q, 100 * k, v)
    torch.testing.assert_close(out, want, rtol=1e-3, atol=1e-3)
    assert lse.isfinite().all()


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("block", [64, 32])
def test_gradients_equal_those_of_masked_dense_attention(causal, block, isa):
    q, k, v = (t.requires_grad_() for t in tensors(2, 4, 2, 150, 150, 64))
    support = blocks((4,), 150, 150, block, 0.5)
    out, lse = sw.attend(q, k, v, support, block=block, causal=causal, return_lse=True)
    want, want_lse = dense(q, k, v, support, block, causal)
    weight, some = torch.randn_like(out), lse.isfinite()
    ours = torch.autograd.grad((out * weight).sum() + lse[some].sin().sum(), (q, k, v))
    theirs = torch.autograd.grad((want * weight).sum() + want_lse[some].sin().sum(), (q, k, v))
    for a, b in zip(ours, theirs, strict=True):
        assert a.isfinite().all()
        torch.testing.assert_close(a, b.float(), rtol=1e-3, atol=1e-4)


def test_gradcheck():
    q, k, v = (t.requires_grad_() for t in tensors(1, 2, 1, 7, 7, 3, torch.float64))
    support = Support.from_mask(torch.tensor([[1, 0, 0], [1, 1, 0], [0, 1, 1]]).bool())
    run = lambda *qkv: sw.attend(*qkv, support, block=3, causal=True, return_lse=True)  # noqa: E731
    assert torch.autograd.gradcheck(run, (q, k, v))


def test_opcheck():
    q, k, v = (t.requires_grad_() for t in tensors(1, 2, 1, 70, 70, 32))
    ptr, idx = block_lists(Support.full((2, 2)), 1, 2, 2, 2, True)
    tests = ("test_schema", "test_autograd_registration", "test_faketensor")
    torch.library.opcheck(torch.ops.sparseworks.attend.default, (q, k, v, ptr, idx, 64, True, 0.2), test_utils=tests)


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 150), st.integers(1, 150), st.integers(0, 2**30), st.integers(2, 4))
def test_disjoint_parts_merge_to_the_union(queries, keys, seed, count):
    torch.manual_seed(seed)
    q, k, v = tensors(1, 2, 1, queries, keys, 32)
    owner = torch.randint(0, count + 1, (2, -(-queries // 32), -(-keys // 32)))
    parts = [sw.attend(q, k, v, Support.from_mask(owner == i), block=32, return_lse=True) for i in range(count)]
    union = sw.attend(q, k, v, Support.from_mask(owner < count), block=32, return_lse=True)
    for got, want in zip(merge(parts), union, strict=True):
        torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-5)


def test_merge_differs_from_the_mean_and_refuses():
    parts = [(torch.ones(3, 4), torch.zeros(3)), (torch.zeros(3, 4), torch.full((3,), 3.0).log())]
    out, lse = merge(parts)
    torch.testing.assert_close(out, torch.full((3, 4), 0.25))
    torch.testing.assert_close(lse, torch.full((3,), 4.0).log())
    with pytest.raises(ShapeError, match="at least one"):
        merge([])
    with pytest.raises(ShapeError, match="all alike"):
        merge([parts[0], (torch.zeros(2, 4), torch.zeros(2))])


def test_blocks_above_the_diagonal_are_ignored(isa):
    q, k, v = tensors(1, 1, 1, 128, 128, 32)
    full, lower = Support.full((4, 4)), Support.from_mask(torch.ones(4, 4).tril().bool())
    a, b = (sw.attend(q, k, v, s, block=32, causal=True) for s in (full, lower))
    assert torch.equal(a, b)
    assert not torch.allclose(a, sw.attend(q, k, v, full, block=32))


def test_refusals():
    q, k, v = tensors(1, 4, 2, 64, 64, 32)
    full = Support.full((1, 1))
    for bad in [(q[0], k, v), (q, k[..., :16], v[..., :16]), (q[:, :3], k, v), (q, k, v[:, :, :3])]:
        with pytest.raises(ShapeError):
            sw.attend(*bad, full)
    with pytest.raises(ShapeError, match="should have shape"):
        sw.attend(q, k, v, Support.full((2, 2)))
    with pytest.raises(ShapeError, match="at least one token"):
        sw.attend(q, k, v, full, block=0)
    with pytest.raises(DtypeError):
        sw.attend(q, k.double(), v, full)
    ptr, idx = torch.tensor([0, 1, 2, 3, 4]).int(), torch.tensor([0, 0, 0, 1]).int()
    with pytest.raises(KernelError, match="outside"):
        torch.ops.sparseworks.attend(q, k, v, ptr, idx, 64, False, 1.0)
    with pytest.raises(KernelError, match="rise"):
        torch.ops.sparseworks.attend(q, k, v, ptr.flip(0).contiguous(), idx, 64, False, 1.0)


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("tokens", [1, 65, 197])
def test_without_a_support_everything_is_kept(tokens, causal, isa):
    q, k, v = (t.requires_grad_() for t in tensors(3, 4, 2, tokens, tokens, 64))
    out = sw.attend(q, k, v, causal=causal)
    want, _ = dense(q, k, v, Support.full((-(-tokens // 64),) * 2), 64, causal)
    torch.testing.assert_close(out.double(), want, rtol=1e-4, atol=1e-5)
    g = torch.randn_like(out)
    for a, b in zip(
        torch.autograd.grad(out, (q, k, v), g), torch.autograd.grad(want, (q, k, v), g.double()), strict=True
    ):
        torch.testing.assert_close(a, b.float(), rtol=1e-3, atol=1e-4)


def test_views_are_read_where_they_lie(isa):
    """q, k and v of one projection, as permuted views."""
    packed = torch.randn(2, 90, 3, 4, 32)
    q, k, v = packed.permute(2, 0, 3, 1, 4)
    support = blocks((4,), 90, 90, 32, 0.5)
    assert torch.equal(
        sw.attend(q, k, v, support, block=32), sw.attend(*(t.contiguous() for t in (q, k, v)), support, block=32)
    )


def test_compiled_callers_get_the_same():
    q, k, v = (t.requires_grad_() for t in tensors(1, 2, 2, 70, 70, 32))
    support = blocks((2,), 70, 70, 32, 0.6)
    run = torch.compile(lambda *t: sw.attend(*t, support, block=32, causal=True), backend="aot_eager")
    eager = sw.attend(q, k, v, support, block=32, causal=True)
    torch.testing.assert_close(run(q, k, v), eager)
    ours = torch.autograd.grad(run(q, k, v).sum(), (q, k, v))
    for a, b in zip(ours, torch.autograd.grad(eager.sum(), (q, k, v)), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("default", [torch.bfloat16, torch.float64])
def test_the_default_type_of_tensors_does_not_matter(default):
    q, k, v = (t.requires_grad_() for t in tensors(1, 2, 1, 70, 70, 16))
    expected = dense(q, k, v, Support.full((2, 2)), 64, True, None)
    before = torch.get_default_dtype()
    torch.set_default_dtype(default)
    try:
        out, lse = sw.attend(q, k, v, causal=True, return_lse=True)
        out.sum().backward()
    finally:
        torch.set_default_dtype(before)
    assert out.dtype is lse.dtype is torch.float32
    torch.testing.assert_close(out, expected[0].float(), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(lse, expected[1].float(), rtol=1e-4, atol=1e-5)


def test_overlapping_windows():
    """Their strides are no layout for an output."""
    _, k, v = tensors(1, 2, 2, 16, 50, 32)
    q, window = torch.randn(1, 2, 16 + 31).unfold(-1, 32, 1), torch.randn(1, 2, 50 + 31).unfold(-1, 32, 1).detach()
    torch.testing.assert_close(sw.attend(q, k, v), sw.attend(q.contiguous(), k, v))
    grads = []
    for keys in (window.clone(memory_format=torch.contiguous_format), window):
        keys.requires_grad_()
        sw.attend(q.contiguous(), keys, v).square().sum().backward()
        grads.append(keys.grad)
    torch.testing.assert_close(*grads)
