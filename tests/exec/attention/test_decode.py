"""Pages and token lists against plain attention over the same keys; bounds stay exact while pages grow."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sparseworks.core.errors import BudgetError, DtypeError, KernelError, ShapeError
from sparseworks.core.support import Support
from sparseworks.exec.attention import KeyPages, attend_tokens, merge


def dense(q, k, v, mask):
    """One query a head over the True tokens of its row of `mask`."""
    group = q.shape[0] // k.shape[0]
    k, v = (t.double().repeat_interleave(group, 0) for t in (k, v))
    weight = torch.einsum("hd,htd->ht", q.double(), k).mul(q.shape[1] ** -0.5).exp() * mask
    total = weight.sum(-1)
    return torch.einsum("ht,htd->hd", weight, v) / torch.where(total == 0, 1.0, total)[:, None], total.log()


def cache(kv_heads, tokens, d):
    k, v = torch.randn(kv_heads, tokens, d), torch.randn(kv_heads, tokens, d)
    pages = KeyPages(kv_heads, d)
    pages.append(k, v)
    return pages, k, v


def close(got, want):
    for a, b in zip(got, want, strict=True):
        torch.testing.assert_close(a.double(), b, rtol=1e-4, atol=1e-5)


def expanded(chosen, tokens):
    return chosen.repeat_interleave(64, -1)[:, :tokens]


@pytest.mark.parametrize("top", [None, 1, 3, 100])
@pytest.mark.parametrize(
    ("heads", "kv_heads", "tokens", "d"), [(1, 1, 1, 64), (4, 2, 1500, 64), (6, 1, 640, 40), (2, 2, 257, 128)]
)
def test_attends_to_the_pages_of_the_largest_bounds(heads, kv_heads, tokens, d, top, isa):
    pages, k, v = cache(kv_heads, tokens, d)
    q = torch.randn(heads, d)
    bound = pages.bounds(q).clone()
    bound[:, -1] = torch.inf
    count = min(top or pages.pages, pages.pages)
    chosen = torch.zeros_like(bound, dtype=torch.bool).scatter_(1, bound.topk(count).indices, True)
    close(pages.attend(q, top=top), dense(q, k, v, expanded(chosen, tokens)))


def test_given_pages_per_head_and_merge(isa):
    pages, k, v = cache(2, 700, 64)
    q, mask = torch.randn(4, 64), torch.rand(4, 11) < 0.4
    mask[1] = False
    got = pages.attend(q, pages=Support.from_mask(mask))
    close(got, dense(q, k, v, expanded(mask, 700)))
    assert (got[0][1] == 0).all() and got[1][1] == -torch.inf
    close(merge([got, pages.attend(q, pages=Support.from_mask(~mask))]), dense(q, k, v, torch.ones(4, 700)))


def test_bounds_are_least_upper_bounds_of_the_box(isa):
    pages, k, _ = cache(2, 1300, 48)
    q = torch.randn(4, 48)
    scores = torch.einsum("hd,htd->ht", q, k.repeat_interleave(2, 0)) * 48**-0.5
    bound = pages.bounds(q)
    assert (scores <= expanded(bound, 1300) + 1e-4).all()
    least, most = (t.repeat_interleave(2, 0) for t in pages.limits())
    torch.testing.assert_close(
        bound, torch.where(q[:, None] < 0, q[:, None] * least, q[:, None] * most).sum(-1) * 48**-0.5
    )


@settings(max_examples=25, deadline=None)
@given(st.lists(st.integers(0, 140), min_size=1, max_size=6), st.integers(0, 2**30))
def test_appending_in_pieces_equals_appending_at_once(pieces, seed):
    torch.manual_seed(seed)
    whole, k, v = cache(2, sum(pieces), 24)
    grown = KeyPages(2, 24)
    for one, other in zip(k.split(pieces, 1), v.split(pieces, 1), strict=True):
        grown.append(one, other)
    assert grown.tokens == sum(pieces)
    assert torch.equal(grown.keys(), k) and torch.equal(grown.values(), v)
    assert all(torch.equal(a, b) for a, b in zip(grown.limits(), whole.limits(), strict=True))
    for p, page in enumerate(k.split(64, 1) if k.shape[1] else ()):
        assert torch.equal(grown.limits()[0][:, p], page.amin(1)) and torch.equal(grown.limits()[1][:, p], page.amax(1))


def test_room_grows_by_an_eighth_and_tokens_are_copied_a_bounded_number_of_times(monkeypatch):
    """Page by page up to 12,800 tokens: bytes against those of the tokens, and the tokens that were moved."""
    moved, pages = [], KeyPages(2, 8)
    allocate = KeyPages._allocate
    monkeypatch.setattr(KeyPages, "_allocate", lambda self, n: (moved.append(self.tokens), allocate(self, n)))
    page = (64 + 64 + 2) * 2 * 32 * 4  # keys, values and bounds of two heads; sizes of a head are rounded up to 32
    for _ in range(200):
        pages.append(*torch.randn(2, 2, 64, 8))
        assert pages.nbytes == sum(t.untyped_storage().nbytes() for t in (pages._k, pages._v, pages._bounds))
        assert pages.nbytes <= (pages.pages * 9 / 8 + 16) * page
    assert sum(moved) < 8 * pages.tokens


def test_an_empty_cache(isa):
    out, lse = KeyPages(1, 8).attend(torch.randn(2, 8))
    assert (out == 0).all() and (lse == -torch.inf).all()


def test_pages_refuse():
    pages, k, v = cache(2, 130, 32)
    q = torch.randn(4, 32)
    for bad in (torch.randn(3, 32), torch.randn(4, 31), torch.randn(4)):
        with pytest.raises(ShapeError):
            pages.attend(bad)
    for bad in ({"top": 0}, {"top": 1, "pages": Support.full((4, 3))}):
        with pytest.raises(BudgetError):
            pages.attend(q, **bad)
    with pytest.raises(ShapeError, match="support of pages"):
        pages.attend(q, pages=Support.full((4, 2)))
    with pytest.raises(ShapeError):
        pages.append(k[:, :, :3], v)
    with pytest.raises(DtypeError):
        pages.append(k.long(), v.long())
    with pytest.raises(ShapeError):
        KeyPages(0, 4)


@pytest.mark.parametrize("per_head", [True, False])
@pytest.mark.parametrize(("queries", "d"), [(1, 64), (3, 96), (2, 40)])
def test_token_lists(queries, d, per_head, isa):
    k, v, q = torch.randn(2, 301, d), torch.randn(2, 301, d), torch.randn(4, queries, d)
    lengths = [130, 0, 1, 301] if per_head else [77, 64]
    lists = [torch.randperm(301)[:n] for n in lengths]
    ptr = torch.tensor([0, *lengths]).cumsum(0)
    out, lse = attend_tokens(q, k, v, ptr, torch.cat(lists))
    mask = torch.zeros(4, 301)
    for head in range(4):
        mask[head, lists[head if per_head else head // 2]] = 1
    for n in range(queries):
        close((out[:, n], lse[:, n]), dense(q[:, n], k, v, mask))


def test_token_lists_refuse():
    q, k = torch.randn(4, 1, 32), torch.randn(2, 10, 32)
    with pytest.raises(ShapeError, match="lists"):
        attend_tokens(q, k, k, torch.tensor([0, 1, 2, 3]), torch.arange(3))
    with pytest.raises(KernelError, match="outside"):
        attend_tokens(q, k, k, torch.tensor([0, 1, 2]), torch.tensor([0, 10]))
    with pytest.raises(KernelError, match="rise"):
        attend_tokens(q, k, k, torch.tensor([0, 2, 1]), torch.tensor([0]))
