"""A support is the same set in both storages: algebra, differences, counts, hash; damaged storage is refused."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sparseworks.core.errors import DtypeError, PatternError, ShapeError
from sparseworks.core.pattern import COLUMN, ROW, Tile
from sparseworks.core.support import Support

quick = settings(deadline=None, max_examples=50)


@st.composite
def masks(draw, count: int = 1):
    """Boolean masks of one common shape, empty ones included."""
    shape = draw(st.sampled_from([(1, 1), (3, 5), (2, 8), (2, 3, 7), (0, 4), (4, 0), (7, 3)]))
    size = 1
    for s in shape:
        size *= s
    bits = st.lists(st.booleans(), min_size=size, max_size=size)
    return [torch.tensor(draw(bits), dtype=torch.bool).reshape(shape) for _ in range(count)]


@quick
@given(masks())
def test_both_storages_hold_the_same_set(made):
    (mask,) = made
    bits = Support.from_mask(mask)
    ragged = bits.as_indices()
    assert bits.storage == "bits" and ragged.storage == "indices"
    assert torch.equal(ragged.mask(), mask) and torch.equal(bits.mask(), mask)
    assert ragged == bits and hash(ragged) == hash(bits) and ragged.hash() == bits.hash()
    assert torch.equal(ragged.as_bits().bits(), bits.bits())
    assert bits.count == ragged.count == int(mask.sum()) and bits.size == mask.numel()
    assert Support.from_indices(*ragged.indices(), mask.shape) == bits
    assert Support.from_bits(bits.bits(), mask.shape) == bits


@quick
@given(masks(count=3))
def test_set_algebra(made):
    a, b, c = (Support.from_mask(m) for m in made)
    b = b.as_indices()
    full, empty = Support.full(a.shape), Support.empty(a.shape)
    assert torch.equal((a & b).mask(), made[0] & made[1])
    assert torch.equal((a | b).mask(), made[0] | made[1])
    assert torch.equal((a - b).mask(), made[0] & ~made[1])
    assert ~(a & b) == ~a | ~b and ~~a == a
    assert a & (b | c) == (a & b) | (a & c)
    assert a | empty == a & full == a and a - a == empty and a | ~a == full
    assert (a & b) <= a <= (a | b)
    assert (a <= b) == (a & b == a)


@quick
@given(masks(count=2))
def test_a_difference_leads_from_one_to_the_other(made):
    a, b = (Support.from_mask(m) for m in made)
    change = a.diff(b)
    assert (a - change.dropped) | change.grown == b
    assert change.dropped <= a and (change.grown & a).count == 0
    assert change.count == int((made[0] ^ made[1]).sum())


def test_counts_by_group():
    support = Support.from_mask(torch.tensor([[1, 1, 0, 0], [0, 0, 0, 1]], dtype=torch.bool))
    assert support.kept().tolist() == [3]
    assert support.kept(ROW).tolist() == [2, 1]
    assert support.kept(COLUMN).tolist() == [1, 1, 0, 1]
    assert support.kept(Tile(1, 2)).tolist() == [2, 0, 0, 1]
    with pytest.raises(PatternError, match="tiles of 3"):
        support.kept(Tile(1, 3))


def test_density_and_bytes():
    support = Support.from_mask(torch.eye(16, dtype=torch.bool))
    assert support.density == 1 / 16 and support.nbytes == 32
    assert support.as_indices().nbytes == 8 * (17 + 16)
    assert Support.empty((0, 3)).density == 1.0
    assert "16 of 256" in repr(support)


def test_the_hash_depends_on_shape_and_bits_only():
    a = Support.from_mask(torch.ones(2, 8, dtype=torch.bool))
    b = Support.from_mask(torch.ones(4, 4, dtype=torch.bool))
    assert torch.equal(a.bits(), b.bits()) and a.hash() != b.hash() and a != b
    assert len(a.hash()) == 64
    assert a != "something else"


def test_indices_may_come_in_any_order_and_are_sorted():
    support = Support.from_indices(torch.tensor([0, 2, 2]), torch.tensor([3, 1]), (2, 4))
    assert support.indices()[1].tolist() == [1, 3]


def test_the_caller_cannot_change_it_through_the_mask_it_came_from():
    mask = torch.ones(2, 8, dtype=torch.bool)
    support = Support.from_mask(mask)
    mask.zero_()
    support.mask().zero_()
    assert support.count == 16
    with pytest.raises(AttributeError, match="immutable"):
        support.shape = (1, 1)


def test_copies_and_pickles():
    for support in (Support.full((3, 5)), Support.full((3, 5)).as_indices()):
        for other in (copy.copy(support), copy.deepcopy(support), pickle.loads(pickle.dumps(support))):
            assert other == support and other.storage == support.storage


def test_masks_must_be_boolean():
    with pytest.raises(DtypeError, match="not inferred"):
        Support.from_mask(torch.ones(2, 2))


@pytest.mark.parametrize("shape", [(3, 3), (1, 1), (5, 5)])
def test_damage_in_the_padding_bits_is_found(shape):
    bits = Support.full(shape).bits().clone()
    bits[-1] |= 0x80
    with pytest.raises(ShapeError, match="damaged"):
        Support.from_bits(bits, shape)


def test_bits_of_another_size_or_type():
    with pytest.raises(ShapeError, match="need 2 bytes"):
        Support.from_bits(torch.zeros(3, dtype=torch.uint8), (4, 4))
    with pytest.raises(ShapeError, match="uint8"):
        Support.from_bits(torch.zeros(2, dtype=torch.int32), (4, 4))


@pytest.mark.parametrize(
    ("ptr", "idx", "text"),
    [
        ([0, 1], [0], "do not describe 2 rows"),
        ([1, 1, 1], [0], "do not describe"),
        ([0, 2, 1], [0], "do not describe"),
        ([0, 1, 1], [4], r"lie in \[0, 4\)"),
        ([0, 1, 1], [-1], r"lie in \[0, 4\)"),
        ([0, 2, 2], [1, 1], "repeat"),
    ],
)
def test_indices_that_are_damaged(ptr, idx, text):
    with pytest.raises(ShapeError, match=text):
        Support.from_indices(torch.tensor(ptr), torch.tensor(idx), (2, 4))


def test_indices_must_be_integers():
    with pytest.raises(DtypeError, match="integers"):
        Support.from_indices(torch.tensor([0, 1]), torch.tensor([0.5]), (1, 4))


def test_shapes_must_agree():
    with pytest.raises(ShapeError, match="cannot be combined"):
        _ = Support.full((2, 2)) & Support.full((1, 4))
    with pytest.raises(ShapeError, match="rows, cols"):
        Support.from_mask(torch.ones(3, dtype=torch.bool))
    with pytest.raises(ShapeError, match="from_mask"):
        Support((2, 2))
