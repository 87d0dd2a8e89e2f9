"""n:m:g: every choice equally often in each chunk and block, and how much of the weights' l1 norm that keeps."""

from __future__ import annotations

from itertools import combinations, pairwise
from math import comb

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sparseworks.core.errors import NonFiniteError, PatternError
from sparseworks.core.grouped import choices, numbers, uses
from sparseworks.core.pattern import Pattern, Tile
from sparseworks.core.patterns import parse
from sparseworks.core.support import Support
from sparseworks.testing import check_pattern

SMALL = ((1, 2), (1, 4), (2, 4), (3, 4), (2, 5))


def gaussian(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).abs()


@pytest.mark.parametrize(("n", "m"), [*SMALL, (4, 8), (5, 12)])
def test_neighbouring_choices_differ_in_one_column(n: int, m: int):
    sets = [set(row.tolist()) for row in choices(n, m)]
    assert sorted(map(sorted, sets)) == sorted(map(list, combinations(range(m), n)))
    assert all(len(a & b) == n - 1 for a, b in pairwise(sets))


@settings(deadline=None, max_examples=25)
@given(
    st.sampled_from(SMALL), st.integers(1, 4), st.integers(1, 3), st.integers(0, 5), st.integers(0, 99), st.booleans()
)
def test_every_choice_is_made_by_exactly_g_rows(sizes, g: int, chunks: int, blocks: int, seed: int, ties: bool):
    n, m = sizes
    pattern, scores = parse(f"{n}:{m}:{g}"), gaussian(chunks * g * comb(m, n), blocks * m, seed=seed)
    chosen = pattern.select(scores.round() if ties else scores)
    made = uses(numbers(chosen.mask(), n, m), comb(m, n), pattern.chunk)
    assert made.shape == (chunks, comb(m, n), blocks) and bool((made == g).all())
    assert pattern.admits(chosen)


@pytest.mark.parametrize("text", ["2:4:1", "2:4:3", "1:4:2", "2:5:1"])
def test_the_assignment_is_greedy(text: str):
    """Beside the definition, pair by pair; scores of few values, so that ties decide."""
    pattern, seed = parse(text), 5
    scores = (gaussian(pattern.chunk, pattern.group.cols or 1, seed=seed) * 2).round()
    table = choices(int(pattern.quota or 0), pattern.group.cols or 1).tolist()
    pairs = [(-float(scores[r, c].sum()), r, i) for r in range(len(scores)) for i, c in enumerate(table)]
    row, left = {}, [pattern.uses or 0] * len(table)
    for _, r, i in sorted(pairs):
        if r not in row and left[i]:
            row[r], left[i] = i, left[i] - 1
    mask = pattern.select(scores).mask()
    assert [mask[r].nonzero().flatten().tolist() for r in range(len(scores))] == [
        table[row[r]] for r in range(len(scores))
    ]


@pytest.mark.parametrize(
    ("text", "kept"), [("2:4", 0.743), ("2:4:1", 0.685), ("2:4:4", 0.721), ("2:4:16", 0.735), ("tensor", 0.796)]
)
def test_kept_norm_of_gaussian_weights(text: str, kept: float):
    """The larger g, the nearer to 2:4."""
    pattern, weight = parse(text), gaussian(384, 512)
    chosen = pattern.select(weight, pattern.counts(weight.shape, 0.5))
    assert chosen.density == 0.5
    assert float((weight * chosen.mask()).sum() / weight.sum()) == pytest.approx(kept, abs=0.003)


def test_admits_each_choice_at_most_g_times():
    pattern = parse("1:2:2")
    mask = torch.tensor([[1, 0], [1, 0], [0, 1], [0, 1]], dtype=torch.bool)
    assert pattern.admits(Support.from_mask(mask))
    mask[2] = torch.tensor([True, False])
    assert not pattern.admits(Support.from_mask(mask)) and parse("1:2").admits(Support.from_mask(mask))
    mask[2] = False
    assert pattern.admits(Support.from_mask(mask))


def test_infinite_scores_come_first_and_nan_is_refused():
    scores = torch.ones(6, 4)
    scores[3, [1, 2]], scores[4, [0, 3]] = torch.inf, -torch.inf
    mask = parse("2:4:1").select(scores).mask()
    assert mask[3].tolist() == [False, True, True, False]
    scores[0, 0] = torch.nan
    with pytest.raises(NonFiniteError):
        parse("2:4:1").select(scores)


def test_batches_types_and_conformance():
    check_pattern("2:4:2", (24, 16))
    scores = gaussian(3, 12, 8)
    whole = parse("2:4:2").select(scores).mask()
    assert all(torch.equal(whole[i], parse("2:4:2").select(scores[i].double()).mask()) for i in range(3))


def test_rows_that_make_no_whole_chunk_are_refused():
    with pytest.raises(PatternError, match="20 rows cannot be cut into chunks of 24, which 2:4:4 needs"):
        parse("2:4:4").select(gaussian(20, 8))
    with pytest.raises(PatternError, match="10 columns"):
        parse("2:4:4").select(gaussian(24, 10))


@pytest.mark.parametrize("text", ["0:4:1", "4:4:1", "5:4:1", "2:4:0", "8:16:1"])
def test_numbers_that_make_no_layout(text: str):
    with pytest.raises(PatternError, match=text):
        parse(text)


def test_only_single_entries_along_the_inputs_are_spread():
    for kind in (
        {"unit": Tile(2, 1)},
        {"group": Tile(4, 1)},
        {"quota": None},
        {"inner": parse("1:2")},
        {"across": True},
    ):
        with pytest.raises(PatternError, match="spread"):
            Pattern(**{"group": Tile(1, 4), "quota": 2, "uses": 1, **kind})
