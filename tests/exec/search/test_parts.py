"""The compiled kernels of every instruction set give what the references give, bit for bit on whole numbers."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from sparseworks.core.errors import BudgetError, KernelError, ShapeError
from sparseworks.exec.native import features
from sparseworks.exec.search import Blocks, Forward, Impacts, Lists, blocks, group, impacts, lists
from sparseworks.testing.index import example_vectors

BUILT = features()["built"]


@pytest.fixture(params=[50, 70_000])
def forward(request):
    return Forward.of(example_vectors(300, request.param, 0))


def without(monkeypatch):
    for module in (lists, impacts, group, blocks):
        monkeypatch.setattr(module, "native", lambda: None)


@pytest.mark.skipif(not BUILT, reason="not built")
@pytest.mark.parametrize("isa", BUILT)
def test_kernels_equal_references(forward, isa, running, monkeypatch):
    queries = example_vectors(11, forward.width, 1)
    mask, opened = torch.arange(300) % 3 > 0, []

    def everything():
        inverted = Lists.of(forward, 128)
        cut = Impacts.of(inverted, 20)
        block = Blocks.build(forward, inverted, postings=20, fraction=0.25, mass=0.5, threads=1)
        plain = Blocks.build(forward, inverted, postings=20, geometric=False, mass=1.0)
        parts = [inverted.ptr, inverted.local, inverted.values, cut.ptr, cut.posting, cut.impact]
        parts += [getattr(b, n) for b in (block, plain) for n in Blocks.__dataclass_fields__]
        for allowed in (None, mask):
            found = [
                inverted.search(queries, 9, allowed, 1),
                inverted.search_bounded(queries, 9, allowed, 1),
                inverted.search_bounded(queries, 9, allowed, 2, blocks=True),
                cut.search(forward, queries, 9, allowed, terms=40, candidates=300),
                block.search(forward, queries, 9, allowed, cut=3, heap=0.9),
                plain.search(forward, queries, 9, allowed, cut=40, heap=1.0),
            ]
            parts += [f for r in found for f in (r.scores.where(r.scores > 0, -1), r.ids.where(r.scores > 0, -1))]
            opened.append(torch.cat([r.opened for r in found[-2:]]))
        return parts

    with running(isa):
        fast = everything()
    without(monkeypatch)
    for i, (a, b) in enumerate(zip(fast, everything(), strict=True)):
        assert a.dtype == b.dtype and torch.equal(a, b), i
    # A block whose bound is the bar up to rounding may be opened or not.
    assert all(int((a - b).abs().max()) <= 8 for a, b in zip(opened[:2], opened[2:], strict=True))


def test_lists_hold_each_posting_in_order(forward):
    inverted = Lists.of(forward, 100)
    assert inverted.ranges == 3 and len(inverted.values) == forward.entries
    rows = forward.rows()
    order = rows.indices.argsort(stable=True)
    assert torch.equal(inverted.document_of(), rows.row_of()[order]) and torch.equal(
        inverted.values, rows.values[order]
    )
    assert torch.equal(inverted.term_of(), rows.indices[order].long())
    ptr, most = inverted.blocks
    for l in np.flatnonzero(inverted.ptr.diff().numpy())[:20]:
        values = inverted.values[int(inverted.ptr[l]) : int(inverted.ptr[l + 1])]
        assert [float(v.max()) for v in values.split(lists.BLOCK)] == most[int(ptr[l]) : int(ptr[l + 1])].tolist()
        assert float(values.max()) == float(inverted.list_max[l])


def test_long_lists_have_several_blocks_and_are_skipped_in():
    n = 5000
    ptr = torch.arange(0, 2 * n + 1, 2)
    values = torch.stack([torch.ones(n), (torch.arange(n) // 200 % 5).float() + 1], 1).flatten()
    forward = Forward.of(example_vectors(0, 2, 0).__class__(ptr, torch.tensor([0, 1]).repeat(n), values, 2))
    queries = example_vectors(0, 2, 0).__class__(
        torch.tensor([0, 2]), torch.tensor([0, 1]), torch.tensor([1.0, 1.0]), 2
    )
    inverted = Lists.of(forward)
    want = inverted.search(queries, 10)
    for blocks_too in (False, True):
        got = inverted.search_bounded(queries, 10, blocks=blocks_too)
        assert torch.equal(got.ids, want.ids) and torch.equal(got.scores, want.scores)
    assert int(got.opened[0]) < n / 2


def test_refusals(forward):
    inverted, queries = Lists.of(forward), example_vectors(3, forward.width, 1)
    with pytest.raises(BudgetError):
        Lists.of(forward, 0)
    with pytest.raises(ShapeError, match="terms"):
        inverted.search(example_vectors(1, 60, 0), 3)
    for bad in (torch.ones(299, dtype=torch.bool), torch.ones(300)):
        with pytest.raises(ShapeError, match="byte or bool"):
            inverted.search(queries, 3, bad)
    for bad in ({"k": -1}, {"k": 3, "threads": 0}):
        with pytest.raises(BudgetError):
            inverted.search(queries, **bad)
    signed = queries.__class__(queries.ptr, queries.indices, -queries.values, queries.width)
    with pytest.raises(KernelError, match="not negative"):
        inverted.search_bounded(signed, 3)
    with pytest.raises(KernelError, match="not be negative"):
        negative = Forward.of(signed)
        Blocks.build(negative, Lists.of(negative))
    with pytest.raises(BudgetError):
        Impacts.of(inverted, 5).search(forward, queries, 5, candidates=4)
