"""Exact counts, stable under ties, NaN refused, ragged quotas, batched equal to a loop, any dtype."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sparseworks.core.errors import BudgetError, DtypeError, NonFiniteError, PatternError, ShapeError
from sparseworks.core.pattern import COLUMN, ELEMENT, ROW, Pattern, Tile, to_groups
from sparseworks.core.patterns import EXAMPLES, parse, unstructured
from sparseworks.core.select import select, top
from sparseworks.core.support import Support

TENSOR, PER_ROW, PER_COLUMN = unstructured("tensor"), unstructured("row"), unstructured("column")
INF = float("inf")
quick = settings(deadline=None, max_examples=50)


def by_sorting(scores: torch.Tensor, keep: int) -> torch.Tensor:
    """The definition: sort by (-score, index), keep the first."""
    flat = scores.reshape(-1).tolist()
    order = sorted(range(len(flat)), key=lambda i: (-flat[i], i))[:keep]
    mask = torch.zeros(len(flat), dtype=torch.bool)
    mask[torch.tensor(order, dtype=torch.long)] = True
    return mask.reshape(scores.shape)


# Few distinct values, so that most entries tie; both zeros and both infinities among them.
tied = st.lists(st.sampled_from([-INF, -1.0, -0.0, 0.0, 0.5, 1.0, INF]), min_size=1, max_size=40)


@quick
@given(values=tied, share=st.floats(0, 1))
def test_counts_are_exact_and_ties_go_to_the_lower_index(values, share):
    scores = torch.tensor([values])
    keep = round(share * len(values))
    support = select(scores, TENSOR, keep)
    assert support.count == keep
    assert torch.equal(support.mask(), by_sorting(scores, keep))


@quick
@given(values=st.lists(tied, min_size=1, max_size=6), data=st.data())
def test_ragged_counts_per_row(values, data):
    width = min(map(len, values))
    scores = torch.tensor([v[:width] for v in values])
    keep = data.draw(st.lists(st.integers(0, width), min_size=len(values), max_size=len(values)))
    support = select(scores, PER_ROW, torch.tensor(keep))
    assert support.mask().sum(1).tolist() == keep
    for row, (line, k) in enumerate(zip(scores, keep, strict=True)):
        assert torch.equal(support.mask()[row], by_sorting(line, k))


@pytest.mark.parametrize("text", EXAMPLES)
def test_all_scores_equal_still_gives_the_exact_count(text):
    pattern = parse(text)
    scores = torch.full((16, 16), 3.0)
    counts = pattern.counts(scores.shape, 0.5)
    support = select(scores, pattern, counts)
    entries = pattern.unit.sizes(scores.shape)[0] * pattern.unit.sizes(scores.shape)[1]
    expected = int(counts.sum()) * entries
    assert support.count == (expected // 2 if pattern.inner else expected)  # the inner 2:4 halves
    assert pattern.admits(support)


def test_selection_does_not_depend_on_the_scale_or_storage_of_the_scores():
    scores = torch.rand(12, 16, generator=torch.Generator().manual_seed(0))
    expected = select(scores, PER_ROW, 5)
    assert select(scores * 4, PER_ROW, 5) == expected
    assert select(scores.T.contiguous().T, PER_ROW, 5) == expected


DTYPES = [
    torch.float64,
    torch.float32,
    torch.bfloat16,
    torch.float16,
    torch.int8,
    torch.int16,
    torch.int32,
    torch.int64,
]
DTYPES += [torch.uint8, torch.bool, torch.uint16, torch.float8_e4m3fn]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("text", ["tensor", "row", "2:4", "block:2x2"])
def test_every_real_dtype(dtype, text):
    scores = torch.tensor([[3, 1, 2, 0], [0, 0, 1, 1], [2, 2, 2, 2], [1, 0, 3, 2]]).to(dtype)
    pattern = parse(text)
    keep = pattern.counts(scores.shape, 0.5)
    wide = scores.double() if dtype != torch.bool else scores.long()
    assert select(scores, pattern, keep) == select(wide, pattern, keep)


def test_negative_fp8_scores_are_ranked_as_numbers_not_as_bytes():
    scores = torch.tensor([[-4.0, -1.0, -2.0, -8.0]]).to(torch.float8_e4m3fn)
    assert select(scores, parse("2:4")).mask().tolist() == [[False, True, True, False]]


@pytest.mark.parametrize("dtype", [torch.complex64, torch.uint64])
def test_scores_without_an_order_are_refused(dtype):
    with pytest.raises(DtypeError, match="order"):
        select(torch.ones(2, 2, dtype=dtype), TENSOR, 1)


@pytest.mark.parametrize("where", [(0, 0), (1, 3)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_nan_is_refused_and_the_message_says_where(where, dtype):
    scores = torch.zeros(2, 4, dtype=dtype)
    scores[where] = float("nan")
    with pytest.raises(NonFiniteError, match=rf"first at \[{where[0]}, {where[1]}\]"):
        select(scores, TENSOR, 3)


def test_infinities_mean_always_and_last():
    scores = torch.tensor([[1.0, -INF, INF, 2.0]])
    assert select(scores, TENSOR, 1).mask().tolist() == [[False, False, True, False]]
    assert select(scores, TENSOR, 3).mask().tolist() == [[True, False, True, True]]


def test_a_unit_with_both_infinities_has_no_order():
    with pytest.raises(NonFiniteError, match="both"):
        select(torch.tensor([[INF, -INF, 1.0, 1.0]]), Pattern(unit=Tile(1, 2)), 1)


def test_bf16_units_are_summed_in_float32():
    # In bfloat16 256 + 1 = 256: both units would tie and the first would win.
    scores = torch.tensor([[256.0, 0.0, 256.0, 1.0]], dtype=torch.bfloat16)
    assert select(scores, Pattern(unit=Tile(1, 2)), 1).mask().tolist() == [[False, False, True, True]]


@pytest.mark.parametrize("text", EXAMPLES)
def test_batches_equal_a_loop(text):
    pattern = parse(text)
    scores = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    keep = pattern.counts((8, 8), 0.5)
    batched = select(scores, pattern, keep).mask()
    for i in range(2):
        for j in range(3):
            assert torch.equal(batched[i, j], select(scores[i, j], pattern, keep).mask())


def test_counts_may_differ_within_a_batch():
    scores = torch.randn(2, 3, 5, generator=torch.Generator().manual_seed(2))
    keep = torch.tensor([[0, 1, 2], [3, 4, 5]])
    assert torch.equal(select(scores, PER_ROW, keep).mask().sum(-1), keep)


def test_extremes_keep_nothing_and_everything():
    scores = torch.randn(4, 8)
    for pattern, size in ((TENSOR, 32), (PER_ROW, 8), (PER_COLUMN, 4), (parse("block:2x2"), 8)):
        assert select(scores, pattern, 0) == Support.empty((4, 8))
        assert select(scores, pattern, size) == Support.full((4, 8))
    assert select(scores, parse("0:4")).count == 0
    assert select(scores, parse("4:4")).count == 32


@pytest.mark.parametrize("shape", [(0, 8), (8, 0), (0, 0), (0, 4, 8), (3, 0, 8)])
def test_empty_tensors(shape):
    scores = torch.zeros(shape)
    assert select(scores, parse("2:4")).shape == shape
    assert select(scores, TENSOR, 0).count == 0


def test_n_of_m_on_both_axes():
    scores = torch.randn(8, 12, generator=torch.Generator().manual_seed(3))
    across_in = select(scores, parse("2:4")).mask()
    across_out = select(scores, parse("2:4@out")).mask()
    assert (across_in.reshape(8, 3, 4).sum(-1) == 2).all()
    assert (across_out.reshape(2, 4, 12).sum(1) == 2).all()
    assert torch.equal(across_out, select(scores.T.contiguous(), parse("2:4")).mask().T)
    best = scores.reshape(8, 3, 4).topk(2, dim=-1).indices
    assert torch.equal(across_in, torch.zeros(8, 3, 4).scatter(-1, best, 1).bool().reshape(8, 12))


def test_shared_n_of_m_chooses_one_set_for_all_neighbours():
    mask = select(torch.randn(8, 8, generator=torch.Generator().manual_seed(4)), parse("4x2:4")).mask()
    assert torch.equal(mask.reshape(2, 4, 8)[:, :1].expand(2, 4, 8), mask.reshape(2, 4, 8))


def test_v_n_m_is_two_nested_selections():
    scores = torch.rand(8, 16, generator=torch.Generator().manual_seed(5))
    mask = select(scores, parse("vnm:4:2:8")).mask()
    for panel in range(2):
        for group in range(2):
            s = scores[panel * 4 : panel * 4 + 4, group * 8 : group * 8 + 8]
            columns = s.sum(0).topk(4).indices.sort().values
            for row in range(4):
                best = columns[s[row, columns].topk(2).indices]
                expected = torch.zeros(8, dtype=torch.bool)
                expected[best] = True
                assert torch.equal(mask[panel * 4 + row, group * 8 : group * 8 + 8], expected)


def test_nested_selection_needs_equal_rows():
    uneven = Pattern(group=Tile(None, 4), quota=3).then(parse("1:2"))
    with pytest.raises(PatternError, match="same number"):
        select(torch.arange(16.0).reshape(4, 4), uneven)


def test_what_is_selected_is_selected_again():
    scores = torch.randn(8, 8, generator=torch.Generator().manual_seed(6))
    for text in EXAMPLES:
        pattern = parse(text)
        keep = pattern.counts((8, 8), 0.5)
        first = select(scores, pattern, keep)
        assert select(first.mask(), pattern, keep) == first


@quick
@given(seed=st.integers(0, 1000), rows=st.integers(1, 6), groups=st.integers(1, 4))
def test_rows_may_be_permuted_before_or_after(seed, rows, groups):
    g = torch.Generator().manual_seed(seed)
    scores, order = torch.randn(rows, groups * 4, generator=g), torch.randperm(rows, generator=g)
    for text in ("2:4", "row"):
        pattern = parse(text)
        keep = None if text == "2:4" else 2
        direct = select(scores[order], pattern, keep).mask()
        assert torch.equal(direct, select(scores, pattern, keep).mask()[order])


def test_top_agrees_with_and_without_a_common_count():
    x = torch.randint(0, 3, (5, 9), generator=torch.Generator().manual_seed(7)).float()
    ragged = torch.tensor([0, 9, 4, 4, 1])
    for row, k in enumerate(ragged.tolist()):
        assert torch.equal(top(x, ragged)[row], top(x, k)[row])


@pytest.mark.parametrize(
    ("keep", "error", "text"),
    [
        (None, BudgetError, "state how many"),
        (-1, BudgetError, "cannot keep -1"),
        (9, BudgetError, "has 8 units; cannot keep 9"),
        (torch.tensor([1, 2]), BudgetError, "2 counts were given for 4 groups"),
        (torch.tensor([1, 2, 3, 9]), BudgetError, "cannot keep 9"),
        (torch.tensor([1.0, 1.0, 1.0, 1.0]), DtypeError, "integers"),
        (0.5, DtypeError, "integer"),
    ],
)
def test_counts_that_cannot_be_kept(keep, error, text):
    with pytest.raises(error, match=text):
        select(torch.zeros(4, 8), PER_ROW, keep)


def test_numpy_and_small_integer_counts_are_taken():
    import numpy as np

    scores = torch.arange(32.0).reshape(4, 8)
    expected = select(scores, PER_ROW, 3)
    for keep in (np.int64(3), torch.tensor(3), torch.full((4,), 3, dtype=torch.int32), torch.tensor([[3, 3, 3, 3]])):
        assert select(scores, PER_ROW, keep) == expected


def test_shapes_that_do_not_fit():
    with pytest.raises(ShapeError, match="rows, cols"):
        select(torch.zeros(8), TENSOR, 1)
    with pytest.raises(PatternError, match="cannot be cut into tiles of 4"):
        select(torch.zeros(4, 6), parse("2:4"))
    with pytest.raises(PatternError, match="has 2 units"):
        select(torch.zeros(2, 2), Pattern(quota=3, group=Tile(1, None)))


def test_groups_round_trip():
    from sparseworks.core.pattern import from_groups

    x = torch.arange(48).reshape(2, 4, 6)
    for tile in (ELEMENT, ROW, COLUMN, Tile(2, 3), Tile(4, 1), Tile(None, None), Tile(2, None)):
        assert torch.equal(from_groups(to_groups(x, tile), tile, x.shape), x)


@pytest.mark.parametrize("text", ["row", "2:4", "16x2:4", "tensor"])
def test_groups_ordered_some_at_a_time_give_the_same(text, monkeypatch):
    scores, pattern = torch.randint(0, 5, (48, 32)).float(), parse(text)
    keep = None if pattern.quota is not None else torch.arange(48) % 7 if text == "row" else 100
    whole = select(scores, pattern, keep)
    monkeypatch.setattr("sparseworks.core.select._AT_ONCE", 96)
    assert select(scores, pattern, keep) == whole
