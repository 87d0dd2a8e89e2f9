"""Operators: product equal to the dense form, exact counts, and state that survives copies, casts and files."""

from __future__ import annotations

import copy

import pytest
import torch

from sparseworks.core.errors import ShapeError
from sparseworks.core.operator import OPERATORS, Stored, describe, rebuild
from sparseworks.core.support import Support
from sparseworks.weights.factors import BlockDiagonal, Chain, LinearOperator, Matrix, Shuffle, Sparse, Sum


def sparse(rows: int = 6, cols: int = 8) -> Sparse:
    mask = torch.rand(rows, cols, generator=torch.Generator().manual_seed(3)) < 0.4
    return Sparse.of(torch.randn(rows, cols), Support.from_mask(mask))


def examples() -> dict[str, LinearOperator]:
    torch.manual_seed(0)
    chain = Chain([BlockDiagonal(torch.randn(2, 3, 4)), Shuffle((3, 2, 1)), Matrix(torch.randn(6, 6))])
    return {
        "matrix": Matrix(torch.randn(6, 8)),
        "block_diagonal": BlockDiagonal(torch.randn(2, 3, 4)),
        "sparse": sparse(),
        "shuffle": Shuffle((2, 2, 2)),
        "chain": chain,
        "sum": Sum([chain, sparse()], scales=(0.5, 2.0)),
    }


@pytest.mark.parametrize("name", list(examples()))
def test_the_product_is_that_of_the_dense_form(name):
    operator = examples()[name]
    x = torch.randn(2, 5, operator.in_features)
    assert operator(x).shape == (2, 5, operator.out_features)
    assert torch.allclose(operator(x), x @ operator.dense().T, atol=1e-5)
    operator.bias = torch.nn.Parameter(torch.randn(operator.out_features))
    assert torch.allclose(operator(x), x @ operator.weight.T + operator.bias, atol=1e-5)
    with pytest.raises(ShapeError, match="cannot take an input"):
        operator(torch.randn(3, operator.in_features + 1))


@pytest.mark.parametrize("name", list(examples()))
def test_it_is_rebuilt_from_plain_data_and_its_state(name):
    operator = examples()[name].double()
    operator.bias = torch.nn.Parameter(torch.randn(operator.out_features, dtype=torch.float64))
    again = rebuild(describe(operator)).double()
    again.load_state_dict(operator.state_dict())
    x = torch.randn(3, operator.in_features, dtype=torch.float64)
    assert torch.equal(again(x), operator(x)) and again.stored == operator.stored
    assert torch.equal(copy.deepcopy(operator)(x), operator(x))
    assert set(dict(OPERATORS.items())) >= set(examples())


def test_what_is_stored_is_counted_exactly():
    made = examples()
    assert made["matrix"].stored == Stored(48) and made["matrix"].flops(5) == 2 * 5 * 48
    assert made["block_diagonal"].stored == Stored(24) and made["shuffle"].stored == Stored()
    kept = made["sparse"].values.numel()
    assert made["sparse"].stored == Stored(kept, 48) and made["sparse"].macs == kept
    assert made["sum"].stored == Stored(24 + 36 + kept, 48)
    assert made["sum"].stored.total_bits(16) == 16 * (60 + kept) + 48
    assert made["sum"].stored.words() == 60 + kept + 3
    # as many bits as the state really has: values of 16 bits, one bit an entry
    half = made["sparse"].half()
    assert sum(8 * t.numel() * t.element_size() for t in half.state_dict().values()) == half.stored.total_bits(16)


def test_a_sparse_factor_follows_its_bits():
    a, b = sparse(), sparse()
    before = a.dense()
    mask = b.support.mask().flip(0)
    b.bits.copy_(Support.from_mask(mask).bits())
    assert torch.equal(b.dense() != 0, mask)
    a.load_state_dict(b.state_dict())
    assert torch.equal(a.dense(), b.dense()) and not torch.equal(a.dense(), before)


def test_gradients_are_those_of_the_dense_form():
    for name in ("matrix", "block_diagonal", "sparse", "chain", "sum"):
        operator = examples()[name].double()
        x = torch.randn(4, operator.in_features, dtype=torch.float64)
        parameters = list(operator.parameters())
        ours = torch.autograd.grad(operator(x).sin().sum(), parameters)
        theirs = torch.autograd.grad((x @ operator.dense().T).sin().sum(), parameters)
        assert all(torch.allclose(a, b) for a, b in zip(ours, theirs, strict=True)), name


def test_factors_that_do_not_fit_are_refused():
    with pytest.raises(ShapeError, match="cannot be followed"):
        Chain([Matrix(torch.randn(3, 4)), Matrix(torch.randn(4, 4))])
    with pytest.raises(ShapeError, match="parts of one shape"):
        Sum([Matrix(torch.randn(3, 4)), Matrix(torch.randn(4, 4))])
    with pytest.raises(ShapeError, match="cannot take"):
        Sparse(torch.randn(3), Support.full((2, 2)))
