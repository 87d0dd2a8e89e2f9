from __future__ import annotations

import pytest
import torch

from sparseworks.core.codes import Codes
from sparseworks.core.errors import DtypeError, ShapeError


@pytest.mark.parametrize("dtype", [torch.int32, torch.int64])
def test_dense_writes_zeros_out_and_carries_gradients(dtype):
    values = torch.tensor([[1.0, 2.0], [3.0, 4.0]], requires_grad=True)
    codes = Codes(values, torch.tensor([[2, 0], [1, 2]], dtype=dtype), 4)
    assert codes.dense().tolist() == [[2, 0, 1, 0], [0, 3, 4, 0]] and len(codes) == 2
    codes.dense().sum().backward()
    assert values.grad is not None and values.grad.tolist() == [[1, 1], [1, 1]]


def test_moves_and_empty_codes():
    codes = Codes(torch.ones(1, 1), torch.zeros(1, 1, dtype=torch.long), 1)
    assert codes.to("cpu").dense().tolist() == [[1]]
    for shape in [(0, 3), (3, 0), (0, 0)]:
        empty = Codes(torch.zeros(shape), torch.zeros(shape, dtype=torch.int32), 5)
        assert empty.dense().shape == (shape[0], 5)


def test_other_values_at_the_same_places():
    codes = Codes(torch.tensor([[1.0, 1.0], [1.0, 0.0]]), torch.tensor([[2, 0], [1, 0]]), 4, torch.tensor([2, 1]))
    assert codes.with_values(torch.tensor([[1.0, 2.0], [3.0, 0.0]])).dense().tolist() == [[2, 0, 1, 0], [0, 3, 0, 0]]
    with pytest.raises(ShapeError):
        codes.with_values(torch.ones(2, 3))
    with pytest.raises(DtypeError):
        codes.with_values(torch.ones(2, 2, dtype=torch.long))


def test_unchecked_codes_are_of_the_right_shape_and_type_at_least():
    assert Codes.unchecked(torch.ones(1, 2), torch.tensor([[1, 1]]), 2).dense().tolist() == [[0, 2]]
    with pytest.raises(ShapeError):
        Codes.unchecked(torch.ones(1, 3), torch.tensor([[0, 1, 2]]), 2)
    with pytest.raises(DtypeError):
        Codes.unchecked(torch.ones(1, 1), torch.zeros(1, 1), 2)


@pytest.mark.parametrize(
    ("values", "indices", "width", "error"),
    [
        (torch.ones(1, 1, dtype=torch.int32), torch.zeros(1, 1, dtype=torch.long), 2, DtypeError),
        (torch.ones(1, 1), torch.zeros(1, 1), 2, DtypeError),
        (torch.ones(1, 1), torch.zeros(1, 2, dtype=torch.long), 2, ShapeError),
        (torch.ones(1), torch.zeros(1, dtype=torch.long), 2, ShapeError),
        (torch.ones(1, 3), torch.tensor([[0, 1, 2]]), 2, ShapeError),
        (torch.ones(1, 1), torch.tensor([[2]]), 2, ShapeError),
        (torch.ones(1, 1), torch.tensor([[-1]]), 2, ShapeError),
        (torch.ones(1, 2), torch.tensor([[1, 1]]), 2, ShapeError),
    ],
)
def test_refusals(values, indices, width, error):
    with pytest.raises(error):
        Codes(values, indices, width)


def test_rows_of_different_length():
    z = torch.tensor([[0.0, 2.0, 0.0, -1.0], [0.0, 0.0, 0.0, 0.0], [5.0, 0.0, 0.0, 0.0]], requires_grad=True)
    codes = Codes.from_dense(z)
    assert codes.lengths.tolist() == [2, 0, 1] and codes.nnz == 3 and codes.values.shape == (3, 2)
    assert torch.equal(codes.dense(), z)
    codes.dense().square().sum().backward()
    assert torch.equal(z.grad, 2 * z.detach())
    ptr, indices, values = codes.csr()
    assert ptr.tolist() == [0, 2, 2, 3] and indices.tolist() == [1, 3, 0] and values.tolist() == [2, -1, 5]
    kept = Codes.from_mask(torch.zeros(2, 3), torch.tensor([[True, False, True], [False, False, True]]))
    assert kept.nnz == 3 and kept.lengths.tolist() == [2, 1]  # an entry that is kept may be 0
    full = Codes(torch.ones(1, 2), torch.tensor([[3, 1]]), 4)
    assert full.csr()[1].tolist() == [1, 3] and full.nnz == 2


def test_damaged_lengths_are_refused():
    values, indices = torch.tensor([[1.0, 0.0]]), torch.tensor([[2, 0]])
    assert Codes(values, indices, 4, torch.tensor([1])).nnz == 1
    for lengths in (torch.tensor([3]), torch.tensor([1, 1]), torch.tensor([1], dtype=torch.int32)):
        with pytest.raises(ShapeError):
            Codes(values, indices, 4, lengths)
    with pytest.raises(ShapeError, match="Beyond"):
        Codes(torch.tensor([[1.0, 2.0]]), indices, 4, torch.tensor([1]))


def test_the_first_entries_of_each_row():
    codes = Codes(
        torch.tensor([[3.0, 2.0, 1.0], [5.0, 0.0, 0.0]]), torch.tensor([[4, 0, 2], [1, 0, 0]]), 6, torch.tensor([3, 1])
    )
    found = codes.first(2)
    assert torch.equal(found.dense(), torch.tensor([[2.0, 0, 0, 0, 3, 0], [0, 5, 0, 0, 0, 0]]))
    assert found.lengths is not None and found.lengths.tolist() == [2, 1]
    assert torch.equal(codes.first(9).dense(), codes.dense())
