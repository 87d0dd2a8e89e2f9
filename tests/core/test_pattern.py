"""Pattern = (unit, group, quota): capacity, counts, what is admitted, nesting, refusals."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sparseworks.core.errors import BudgetError, PatternError
from sparseworks.core.pattern import ELEMENT, ROW, WHOLE, Pattern, Tile
from sparseworks.core.patterns import EXAMPLES, nm, parse, unstructured, vnm
from sparseworks.core.support import Support

quick = settings(deadline=None, max_examples=50)


def support(rows: list[str]) -> Support:
    return Support.from_mask(torch.tensor([[c == "x" for c in row] for row in rows]))


@pytest.mark.parametrize(
    ("text", "groups", "size"),
    [
        ("tensor", 1, 128),
        ("row", 8, 16),
        ("column", 16, 8),
        ("2:4", 32, 4),
        ("2:4@out", 32, 4),
        ("4x2:4", 8, 4),
        ("block:4x4", 1, 8),
        ("block:4x4/row", 2, 4),
        ("rows", 1, 8),
        ("columns", 1, 16),
        ("vnm:4:2:8", 4, 8),
    ],
)
def test_capacity(text, groups, size):
    assert parse(text).capacity((8, 16)) == (groups, size)


@quick
@given(rows=st.integers(0, 9), cols=st.integers(0, 9), density=st.floats(0, 1))
def test_counts_sum_to_the_budget_and_are_as_even_as_integers_allow(rows, cols, density):
    for pattern in (unstructured("tensor"), unstructured("row"), unstructured("column")):
        counts = pattern.counts((rows, cols), density)
        groups, _ = pattern.capacity((rows, cols))
        assert counts.numel() == groups
        if groups:
            assert int(counts.sum()) == round(density * rows * cols)
            assert int(counts.max() - counts.min()) <= 1


def test_counts_from_entries_and_from_the_quota():
    assert parse("row").counts((4, 8), 10).sum() == 10
    assert parse("block:2x2").counts((4, 8), 16).tolist() == [4]
    assert parse("2:4").counts((2, 8), None).tolist() == [2, 2, 2, 2]
    assert parse("fan-in").counts((3, 8), 0.5).tolist() == [4, 4, 4]
    assert parse("fan-in").counts((0, 8), 0.5).tolist() == []


def test_counts_that_cannot_be():
    with pytest.raises(BudgetError, match="state a density or a count"):
        parse("row").counts((4, 8), None)
    with pytest.raises(BudgetError, match=r"lies in \[0, 1\], got 1.5"):
        parse("row").counts((4, 8), 1.5)
    with pytest.raises(BudgetError, match="got nan"):
        parse("row").counts((4, 8), float("nan"))
    with pytest.raises(BudgetError, match="Cannot keep 33 of 32"):
        parse("row").counts((4, 8), 33)


@pytest.mark.parametrize(
    ("text", "density"),
    [
        ("2:4", 0.5),
        ("1:4", 0.25),
        ("2:4@out", 0.5),
        ("16x2:4", 0.5),
        ("vnm:64:2:8", 0.25),
        ("row", None),
        ("fan-in", None),
    ],
)
def test_density_that_the_pattern_fixes(text, density):
    assert parse(text).fixed_density == density


@pytest.mark.parametrize("text", EXAMPLES)
def test_admits_what_it_selects(text):
    pattern = parse(text)
    scores = torch.randn(8, 16, generator=torch.Generator().manual_seed(0))
    chosen = pattern.select(scores, pattern.counts((8, 16), 0.5))
    assert pattern.admits(chosen)
    assert pattern.admits(Support.empty((8, 16)))
    assert pattern.admits(Support.full((8, 16))) == (pattern.fixed_density is None)


def test_refuses_supports_of_another_pattern():
    assert not nm(2, 4).admits(support(["xxx.", "x..."]))
    assert nm(2, 4).admits(support(["xx..", "x..."]))  # fewer than N is allowed: the format pads
    assert not parse("2x1:4").admits(support(["x...", ".x.."]))
    assert not parse("rows").admits(support(["xx..", "...."]))
    assert not parse("fan-in").admits(support(["xx..", "x..."]))
    assert not nm(2, 4).admits(support(["xxx"]))  # does not divide


def test_a_nested_pattern_checks_both_levels():
    pattern = vnm(2, 2, 8)
    assert pattern.admits(support(["xx......", "..xx...."]))
    assert not pattern.admits(support(["xx......", "..x.xx.."]))  # five columns in the panel
    assert not pattern.admits(support(["xxx.....", "........"]))  # three of one row's four
    assert pattern.admits(support(["x.......", "........"]))


def test_then_appends_at_the_innermost_level():
    assert nm(4, 8).then(nm(2, 4)) == Pattern(group=Tile(1, 8), quota=4, inner=nm(2, 4))
    assert nm(8, 16).then(nm(4, 8)).then(nm(2, 4)) == nm(8, 16).then(nm(4, 8).then(nm(2, 4)))
    mask = nm(4, 8).then(nm(2, 4)).select(torch.arange(16.0).reshape(1, 16)).mask()
    assert mask[0].nonzero().flatten().tolist() == [6, 7, 14, 15]


def test_tiles():
    assert Tile(None, 4).sizes((6, 8)) == (6, 4)
    assert Tile(None, None).sizes((0, 3)) == (1, 3)
    assert str(Tile(2, None)) == "2xall"
    with pytest.raises(PatternError, match="at least one row"):
        Tile(0, 1)
    with pytest.raises(PatternError, match="6 rows cannot be cut into tiles of 4"):
        Tile(4, 1).sizes((6, 8))


@pytest.mark.parametrize(
    ("build", "text"),
    [
        (lambda: Pattern(quota=-1), "got -1"),
        (lambda: Pattern(quota=2.0), "got 2.0"),
        (lambda: Pattern(quota="all"), "got 'all'"),
        (lambda: Pattern(group=Tile(1, 4), quota=5), "Cannot keep 5 of a group of 4"),
        (lambda: Pattern(group=ROW).then(Pattern(group=ROW)), "at most one"),
    ],
)
def test_patterns_that_make_no_sense(build, text):
    with pytest.raises(PatternError, match=text):
        build()


def test_patterns_are_values():
    assert Pattern(ELEMENT, WHOLE) == Pattern() and hash(nm(2, 4)) == hash(parse("2:4"))
    assert Pattern.parse(nm(2, 4)) == nm(2, 4)
