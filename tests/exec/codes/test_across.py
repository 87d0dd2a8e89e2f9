"""Selection over a whole batch of products."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sparseworks.core.errors import BudgetError, NonFiniteError
from sparseworks.core.select_across import select_across
from sparseworks.exec.codes import across, encode_topk, places_across


def mask_of(places: torch.Tensor, lengths: torch.Tensor, latents: int) -> torch.Tensor:
    kept = torch.arange(places.shape[1]) < lengths.unsqueeze(1)
    mask = torch.zeros(len(places), latents, dtype=torch.bool)
    mask[torch.arange(len(places)).unsqueeze(1).expand_as(places)[kept], places[kept]] = True
    return mask


@given(st.integers(0, 2**31), st.integers(1, 9), st.integers(1, 60), st.floats(0, 1), st.booleans())
def test_they_are_those_of_the_whole_matrix(seed: int, rows: int, latents: int, share: float, biased: bool) -> None:
    g = torch.Generator().manual_seed(seed)
    # whole numbers make ties; rows of very different size make some ask for more, and again
    size = torch.randint(0, 40, (rows, 1), generator=g)
    x = torch.randint(-2, 3, (rows, 3), generator=g).double() * size
    weight = torch.randint(-2, 3, (latents, 3), generator=g).double()
    bias = torch.randint(-9, 10, (latents,), generator=g).double() if biased else None
    total = round(share * rows * latents)
    places, lengths, least = places_across(x, weight, bias, total)
    products = torch.nn.functional.linear(x, weight, bias).relu()
    mask = mask_of(places, lengths, latents)
    assert int(lengths.sum()) == int(mask.sum()) == total
    assert bool(
        (places.masked_fill(torch.arange(places.shape[1]) >= lengths.unsqueeze(1), latents).diff(dim=1) >= 0).all()
    )
    want = select_across([products], total)[0] & (products > 0)
    assert torch.equal(mask & (products > 0), want)
    assert torch.equal(least, products[want].min()) if bool(want.any()) else bool(least.isnan())


def test_one_row_may_take_all() -> None:
    x, weight = torch.cat([torch.full((1, 4), 100.0), torch.ones(7, 4)]), torch.rand(300, 4) + 0.1
    _, lengths, _ = places_across(x, weight, None, 240)
    assert lengths.tolist() == [240] + 7 * [0]


def test_bad_input_is_refused() -> None:
    x, weight = torch.ones(2, 3), torch.ones(5, 3)
    for total in (-1, 11):
        with pytest.raises(BudgetError, match="Cannot keep"):
            places_across(x, weight, None, total)
    with pytest.raises(NonFiniteError):
        places_across(x * torch.nan, weight, None, 2)


def test_no_more_than_some_products_of_a_row_are_kept_at_once(monkeypatch) -> None:
    """With rows alike, twice the mean and a few: the matrix of rows x latents is never made."""
    asked = []
    monkeypatch.setattr(across, "encode_topk", lambda x, w, b, k: asked.append(k) or encode_topk(x, w, b, k))
    g = torch.Generator().manual_seed(0)
    places_across(torch.randn(64, 16, generator=g), torch.randn(4096, 16, generator=g), None, 64 * 8)
    assert asked[0] == 24 and max(asked) <= 96, asked
