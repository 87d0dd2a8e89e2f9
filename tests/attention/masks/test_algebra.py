"""Random masks of masks against set algebra on their pairs; what is refused."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sparseworks.attention.masks import (
    Band,
    Causal,
    Columns,
    Dilated,
    Document,
    Extent,
    FrameBand,
    Full,
    Intersection,
    LastRows,
    MultiDiagonal,
    Neighbourhood,
    Offsets,
    PerHead,
    PowerOfTwo,
    Prefix,
    Sink,
    Stride,
    Tiled,
    Union,
    VerticalSlash,
    Window,
)
from sparseworks.core.config import from_config
from sparseworks.core.errors import PatternError, RecipeError, ShapeError, UnknownNameError
from sparseworks.testing import check_mask
from sparseworks.testing.mask import pooled

small = st.integers(1, 9)
primitives = st.one_of(
    st.just(Causal()),
    st.just(Full()),
    small.map(Sink),
    small.map(Window),
    small.map(Band),
    small.map(LastRows),
    small.map(Prefix),
    small.map(PowerOfTwo),
    st.builds(Stride, small, st.none() | st.integers(0, 3)),
    st.builds(Dilated, small, small),
    st.builds(MultiDiagonal, small, small),
    st.builds(FrameBand, small, small),
    st.lists(small, max_size=4).map(Document),
    st.lists(st.integers(0, 40), max_size=5).map(Columns),
    st.lists(st.integers(-20, 40), max_size=5).map(Offsets),
    st.builds(VerticalSlash, st.lists(small, max_size=2), st.lists(small, max_size=2)),
    st.sampled_from(((1, 1, 1), (2, 3, 4), (1, 5, 2), (4, 5, 6))).map(lambda w: Neighbourhood((4, 5, 6), w)),
)
masks = st.recursive(
    primitives,
    lambda inner: st.one_of(
        inner.map(lambda m: ~m),
        st.builds(lambda a, b: a & b, inner, inner),
        st.builds(lambda a, b: a | b, inner, inner),
        st.builds(lambda a, b: PerHead((a, b)), inner, inner),
    ),
    max_leaves=4,
)
calls = st.tuples(st.integers(1, 40), st.integers(1, 60), st.tuples(small, small), st.just(2), st.integers(0, 60))
"""(queries, keys, tile, heads, offset): within the 120 tokens of the grid."""


@settings(max_examples=150)
@given(masks, calls)
def test_blocks_of_any_mask_are_its_pairs_pooled(mask, call):
    queries, keys, tile, heads, offset = call
    pairs = mask.pairs(queries, keys, heads, offset)
    some, every = pooled(pairs, tile)
    kept, whole = mask.blocks(*call).mask(), mask.whole_blocks(*call).mask()
    assert bool((kept | ~some).all()) and bool((every | ~whole).all())
    assert not mask.exact_some or torch.equal(kept, some)
    assert not mask.exact_every or torch.equal(whole, every)
    assert torch.equal(mask.blocks(*call, exact=True).mask(), some)
    assert torch.equal(mask.whole_blocks(*call, exact=True).mask(), every)
    for head in range(heads):
        wanted = pairs[head % len(pairs), -1].nonzero().flatten()
        assert torch.equal(mask.columns(offset + queries - 1, keys, head, heads), wanted)
        assert mask.row_bound(offset + queries - 1, head, Extent(keys, heads)) >= len(wanted)


@given(primitives, calls)
def test_primitives_are_exact_even_for_single_tokens(mask, call):
    queries, keys, _, heads, offset = call
    assert mask.exact_some
    pairs = mask.pairs(queries, keys, heads, offset)
    assert torch.equal(mask.blocks(queries, keys, (1, 1), heads, offset).mask(), pairs)


@given(masks, masks)
def test_the_operators_are_set_algebra(a, b):
    def pairs(m):
        return m.pairs(20, 30, 2, 7).expand(2, 20, 30)

    assert torch.equal(pairs(a & b), pairs(a) & pairs(b))
    assert torch.equal(pairs(a | b), pairs(a) | pairs(b))
    assert torch.equal(pairs(~a), ~pairs(a))
    assert torch.equal(pairs(~(a & b)), pairs(~a | ~b))
    assert ~~a == a


def test_operators_flatten_and_masks_are_values():
    a, b, c = Window(4), Sink(2), Causal()
    assert (a & b & c) == Intersection((a, b, c)) and (a | (b | c)) == Union((a, b, c))
    assert len({a | b, a | b, b | a}) == 2 and ~~a is a
    assert Columns([5, 1, 5]) == Columns((1, 5))


def test_per_head_serves_groups_of_heads():
    mask = PerHead((Window(2), Sink(3)))
    pairs = mask.pairs(9, 9, 4)
    assert torch.equal(pairs[0], pairs[1]) and torch.equal(pairs[2], pairs[3]) and not torch.equal(pairs[1], pairs[2])
    with pytest.raises(ShapeError, match="3 heads cannot share 2 masks"):
        mask.blocks(8, 8, heads=3)
    ptr, idx = mask.lists(8, 9, 4)
    assert ptr.tolist() == [0, 2, 4, 7, 10] and idx.tolist() == [7, 8, 7, 8, 0, 1, 2, 0, 1, 2]


def test_a_mask_in_units_is_the_mask_repeated():
    mask, unit = Tiled(Window(3) | Stride(4), 5), 5
    units = (Window(3) | Stride(4)).pairs(7, 7)[0]
    assert torch.equal(mask.pairs(35, 35)[0], units.repeat_interleave(unit, 0).repeat_interleave(unit, 1))


def test_neighbours_are_counted_with_the_box_moved_inside():
    pairs = Neighbourhood((3, 4, 5), (2, 3, 3)).pairs(60, 60)[0]
    assert pairs.sum(1).unique().tolist() == [18]
    corner = pairs[0].nonzero().flatten().tolist()
    assert corner == [f * 20 + y * 5 + x for f in range(2) for y in range(3) for x in range(3)]


@pytest.mark.parametrize(
    "act",
    [
        lambda: Window(0),
        lambda: Window(2.5),
        lambda: Sink(-1),
        lambda: Stride(4, -1),
        lambda: Columns((-1,)),
        lambda: Columns((0.5,)),
        lambda: Document((3, 0)),
        lambda: Neighbourhood((4, 4), (5, 1)),
        lambda: Neighbourhood((4, 4), (2,)),
        lambda: MultiDiagonal(0, 1),
        lambda: Tiled(Causal(), 0),
        lambda: PerHead(()),
        lambda: Union(()),
    ],
)
def test_bad_parameters_are_refused(act):
    with pytest.raises(PatternError):
        act()


def test_bad_calls_are_refused():
    with pytest.raises(ShapeError, match="tile"):
        Causal().blocks(8, 8, (0, 4))
    with pytest.raises(ShapeError, match="grid"):
        (Neighbourhood((2, 2), (1, 1)) | Causal()).blocks(5, 5)
    with pytest.raises(ShapeError, match="head"):
        Causal().pairs(4, 4, 0)


def test_recipes_say_what_is_wrong():
    with pytest.raises(UnknownNameError, match="window"):
        from_config("mask", "windw")
    with pytest.raises(RecipeError, match="needs a value for n"):
        from_config("mask", "window")
    with pytest.raises(RecipeError, match="as a list"):
        from_config("mask", {"all": {"masks": "causal"}})
    assert from_config("mask", {"all": {"masks": ["causal", {"window": {"n": 3}}]}}) == Causal() & Window(3)


def test_empty_sizes_have_no_blocks():
    assert Causal().blocks(0, 8).shape == (1, 0, 1) and Causal().pairs(0, 8).shape == (1, 0, 8)
    assert Causal().blocks(8, 0).shape == (1, 1, 0)


@dataclass(frozen=True)
class Forgets(Window):
    def below(self, x):
        return x.clamp(0, self.n - 1)


@dataclass(frozen=True)
class Drifts(Window):
    def keeps(self, q, k, head, extent):
        return self.keeps_offset(q - k + (extent.keys == 41))


@dataclass(frozen=True)
class Boasts(Window):
    def every(self, rows, cols, head, extent):
        return self.some(rows, cols, head, extent)


@pytest.mark.parametrize(("kind", "says"), [(Forgets, "lists"), (Drifts, "lists"), (Boasts, "counts as whole")])
def test_the_suite_catches_a_broken_mask(kind, says):
    with pytest.raises(AssertionError, match=says):
        check_mask(kind(4))
