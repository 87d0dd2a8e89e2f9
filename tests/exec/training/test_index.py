from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sparseworks.core.errors import CheckpointError, ShapeError
from sparseworks.core.support import Support
from sparseworks.exec.native import native
from sparseworks.exec.training import SparseIndex, cut
from sparseworks.exec.training import index as indices

SHAPES = [(0, 5), (5, 0), (1, 1), (3, 7), (63, 191), (64, 192), (65, 193), (257, 400), (13, 1000), (700, 2)]


def random_support(out: int, width: int, density: float, seed: int = 0) -> Support:
    return Support.from_mask(torch.rand(out, width, generator=torch.Generator().manual_seed(seed)) < density)


@pytest.fixture(params=["native", "torch"])
def way(request, monkeypatch):
    """Both ways to build an index."""
    if request.param == "torch":
        for module in (cut, indices):
            monkeypatch.setattr(module, "native", lambda: None)
    elif native() is None:
        pytest.skip("the compiled extension is not built")
    return request.param


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("density", [0.0, 0.05, 0.5, 1.0])
def test_an_index_holds_its_support(way, shape, density):
    support = random_support(*shape, density)
    index = SparseIndex.of(support)
    assert index.support() == support
    assert index.count == support.count and index.shape == shape
    index.forward.check()
    index.backward.check()


@pytest.mark.skipif(native() is None, reason="the compiled extension is not built")
@settings(deadline=None, max_examples=30)
@given(st.integers(0, 300), st.integers(0, 450), st.floats(0, 1), st.integers(0, 100))
def test_both_ways_give_the_same_index(out, width, density, seed):
    support = random_support(out, width, density, seed)
    compiled = SparseIndex.of(support)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cut, "native", lambda: None)
        plain = SparseIndex.of(support)
    assert all(torch.equal(a, b) for a, b in zip(compiled.tensors, plain.tensors, strict=True))


def test_the_order_leads_from_the_transpose_to_the_original(way):
    index = SparseIndex.of(random_support(130, 250, 0.2))
    row, column = index.forward.coordinates()
    row_t, column_t = index.backward.coordinates()
    order = index.order.long()
    assert torch.equal(row[order], column_t) and torch.equal(column[order], row_t)


def test_rows_of_a_cell_come_by_falling_count(way):
    index = SparseIndex.of(random_support(200, 150, 0.3))
    counts = index.forward.count.long().reshape(-1, index.forward.row_block)
    assert bool((counts.diff(dim=1) <= 0).all()) and bool((counts.diff(dim=1) < 0).any())


def test_gather_and_scatter_are_inverse():
    support, weight = random_support(40, 300, 0.3), torch.randn(40, 300)
    index = SparseIndex.of(support)
    assert torch.equal(index.scatter(index.gather(weight)), weight * support.mask())
    with pytest.raises(ShapeError, match="does not fit"):
        index.gather(weight.T)


@pytest.mark.parametrize("density", [(0.2, 0.1), (0.0, 0.3), (0.3, 0.0), (1.0, 0.5)])
def test_a_changed_support_keeps_the_values_of_what_stays(way, density):
    before, after = (random_support(70, 400, d, seed) for seed, d in enumerate(density))
    old, weight = SparseIndex.of(before), torch.randn(70, 400)
    new, source = old.changed_to(after)
    assert new.support() == after
    values = torch.cat([old.gather(weight), torch.zeros(1)])[source.long()]
    assert torch.equal(new.scatter(values), weight * (before.mask() & after.mask()))


@pytest.mark.parametrize("compiled", [True, False])
@settings(deadline=None, max_examples=25)
@given(st.integers(1, 80), st.integers(1, 420), st.floats(0, 1), st.floats(0, 1), st.integers(0, 50))
def test_drop_and_grow_equals_building_anew(compiled, out, width, density, share, seed):
    draw = torch.Generator().manual_seed(seed)
    support = random_support(out, width, density, seed)
    index = SparseIndex.of(support)
    kept = torch.rand(index.count, generator=draw) < share
    free = (index.scatter(kept.float()) == 0).flatten().nonzero().flatten()  # what is dropped may grow again
    grown = free[torch.randperm(free.numel(), generator=draw)[: free.numel() // 3]]
    with pytest.MonkeyPatch.context() as patch:
        if not compiled:
            patch.setattr(indices, "native", lambda: None)
        new, source = index.exchanged(kept, grown)
    flat = index.scatter(kept.float()).flatten()
    flat[grown] = 1
    expected = Support.from_mask(flat.reshape(out, width) > 0)
    direct, where = index.changed_to(expected)
    stays = torch.cat([kept, torch.zeros(1, dtype=torch.bool)])[where.long()]
    assert new.support() == expected and torch.equal(source, torch.where(stays, where, -1))
    assert all(torch.equal(a, b) for a, b in zip(new.tensors, direct.tensors, strict=True))


@pytest.mark.parametrize("shape", SHAPES)
def test_drop_everything_and_grow_everything(way, shape):
    nothing, full = SparseIndex.of(Support.empty(shape)), SparseIndex.of(Support.full(shape))
    new, source = nothing.exchanged(torch.zeros(0, dtype=torch.bool), torch.arange(full.count).flip(0))
    assert all(torch.equal(a, b) for a, b in zip(new.tensors, full.tensors, strict=True)) and bool((source == -1).all())
    gone, source = full.exchanged(torch.zeros(full.count, dtype=torch.bool), torch.zeros(0, dtype=torch.long))
    assert all(torch.equal(a, b) for a, b in zip(gone.tensors, nothing.tensors, strict=True)) and not source.numel()


def test_drop_and_grow_refuses_what_does_not_fit(way):
    support = random_support(20, 30, 0.4)
    index = SparseIndex.of(support)
    everything = torch.ones(index.count, dtype=torch.bool)
    taken = support.mask().flatten().nonzero().flatten()[:1]
    free = (~support.mask()).flatten().nonzero().flatten()[:1]
    for kept, grown in (
        (everything[:-1], free),
        (everything.int(), free),
        (everything, taken),
        (everything, torch.cat([free, free])),
        (everything, torch.tensor([600])),
        (everything, torch.tensor([-1])),
    ):
        with pytest.raises(ShapeError):
            index.exchanged(kept, grown)
    with pytest.raises(ShapeError, match="cannot become"):
        index.changed_to(Support.full((30, 20)))


def test_only_matrices():
    with pytest.raises(ShapeError, match="two dimensions"):
        SparseIndex.of(Support.full((2, 3, 4)))


def saved() -> tuple[list[torch.Tensor], tuple[int, int]]:
    index = SparseIndex.of(random_support(90, 410, 0.2))
    return [t.clone() for t in index.forward.tensors[:3]], index.shape


def test_saved_parts_come_back(way):
    parts, shape = saved()
    assert SparseIndex.of_parts(parts, shape).support() == random_support(90, 410, 0.2)


def damage(name: str, parts: list[torch.Tensor]) -> list[torch.Tensor]:
    columns, count, rows = parts
    if name == "column too large":
        columns[5] = 255
    elif name == "columns do not rise":
        columns[1] = columns[0]
    elif name == "count too large":
        count[0] += 1
    elif name == "a row twice":
        rows[1] = rows[0]
    elif name == "not by falling count":
        count[0], count[44], rows[0], rows[44] = *count[[44, 0]].clone(), *rows[[44, 0]].clone()
    elif name == "cut off":
        columns = columns[:-1]
    elif name == "another type":
        columns = columns.int()
    else:
        count = count[:-1]
    return [columns, count, rows]


@pytest.mark.parametrize(
    "name",
    [
        "column too large",
        "columns do not rise",
        "count too large",
        "a row twice",
        "not by falling count",
        "cut off",
        "another type",
        "counts cut off",
    ],
)
def test_damaged_parts_are_refused(way, name):
    parts, shape = saved()
    with pytest.raises(CheckpointError):
        SparseIndex.of_parts(damage(name, parts), shape)


def test_an_index_that_was_written_to_is_checked_again():
    index = SparseIndex.of(random_support(50, 60, 0.3))
    index.ensure_safe()
    index.forward.columns[0] = 250
    with pytest.raises(CheckpointError):
        index.ensure_safe()


def test_a_transpose_of_another_support_is_refused():
    a, b = (SparseIndex.of(random_support(50, 60, 0.3, seed)) for seed in (0, 1))
    with pytest.raises(CheckpointError, match="transpose"):
        SparseIndex(a.forward, b.backward, a.order).ensure_safe()
