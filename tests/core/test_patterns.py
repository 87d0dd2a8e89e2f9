"""Named patterns and their text form."""

from __future__ import annotations

import pytest
import torch

from sparseworks.core import patterns
from sparseworks.core.errors import PatternError
from sparseworks.core.pattern import Pattern, Tile
from sparseworks.core.patterns import EXAMPLES, describe, nm, parse, unstructured, vnm


@pytest.mark.parametrize(
    "text", [*EXAMPLES, "8:16", "2:4:16", "4:8@out", "16x1:4", "vnm:64:2:16", "block:32x1", "block:1x8/row"]
)
def test_text_round_trip(text):
    assert describe(parse(text)) == text and str(parse(text)) == text


def test_spelling_is_forgiven_where_it_is_plain():
    assert parse(" Row ") == parse("row") and parse("unstructured") == parse("tensor")


def test_every_kind_is_among_the_examples():
    forms = {describe(p()) for p in (patterns.rows, patterns.columns, patterns.fan_in)}
    assert forms | {"tensor", "row", "column", "global"} <= set(EXAMPLES)
    assert len({(type(parse(e).quota), parse(e).unit, parse(e).group) for e in EXAMPLES}) >= 12


@pytest.mark.parametrize(
    "text", ["", "3", "2:4:6:1", "4:4:1", "2:4:0", "block:4", "vnm:2:4", "-1:4", "2:4@sideways", "block:0x4", "5:4"]
)
def test_text_that_cannot_be_read(text):
    with pytest.raises(PatternError):
        parse(text)


def test_the_message_lists_the_known_forms():
    with pytest.raises(PatternError, match=r"'spiral'.*N:M \(2:4\).*fan-in"):
        parse("spiral")


@pytest.mark.parametrize(
    ("build", "text"),
    [
        (lambda: unstructured("diagonal"), "diagonal"),  # type: ignore[arg-type]
        (lambda: nm(5, 4), "5:4"),
        (lambda: nm(-1, 4), "-1:4"),
        (lambda: vnm(2, 2, 3), "2:2:3"),
        (lambda: vnm(2, 5, 8), "2:5:8"),
    ],
)
def test_numbers_that_make_no_pattern(build, text):
    with pytest.raises(PatternError, match=text):
        build()


def test_patterns_without_a_name_are_described():
    text = describe(Pattern(Tile(2, 3), Tile(None, 2), 1))
    assert text == "(unit 2x3, group allx2, quota 1)"
    assert "then 2:4" in describe(nm(8, 16).then(nm(2, 4)))


def test_the_global_pattern_on_one_matrix_is_one_group():
    scores = torch.randn(4, 8)
    assert parse("global").select(scores, 7) == parse("tensor").select(scores, 7)
