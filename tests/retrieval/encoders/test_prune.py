from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sparseworks.core.budget import Count, Density, Mass, Peak
from sparseworks.core.codes import Codes
from sparseworks.core.errors import BudgetError
from sparseworks.retrieval.encoders import prune_codes

CODES = Codes.from_dense(torch.tensor([[0.0, 4.0, 1.0, 3.0, 2.0], [0.0, 0.0, 5.0, 0.0, 0.0], [0.0] * 5]))


def test_by_count_share_of_the_largest_and_mass():
    assert prune_codes(CODES, 2).dense().tolist() == [[0, 4, 0, 3, 0], [0, 0, 5, 0, 0], [0] * 5]
    assert prune_codes(CODES, Peak(0.5)).dense().tolist() == [[0, 4, 0, 3, 2], [0, 0, 5, 0, 0], [0] * 5]
    assert prune_codes(CODES, Mass(0.7)).dense().tolist() == [[0, 4, 0, 3, 0], [0, 0, 5, 0, 0], [0] * 5]
    assert prune_codes(CODES, Count(0)).nnz == 0
    with pytest.raises(BudgetError):
        prune_codes(CODES, Density(0.5))


@given(st.integers(0, 12), st.integers(0, 1000))
def test_what_is_kept_is_the_largest(k, seed):
    g = torch.Generator().manual_seed(seed)
    z = torch.randn(4, 9, generator=g) * (torch.rand(4, 9, generator=g) < 0.6)
    found = prune_codes(Codes.from_dense(z), k).dense()
    for row, kept in zip(z, found, strict=True):
        assert torch.equal(kept[kept != 0], row[kept != 0]) and (kept != 0).sum() == min(k, int((row != 0).sum()))
        if 0 < (kept != 0).sum() < (row != 0).sum():
            assert kept[kept != 0].abs().min() >= row[kept == 0].abs().max()
