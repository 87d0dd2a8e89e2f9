"""A plan's page shows every shape, what was expected, what was measured, and where the file cannot go."""

from __future__ import annotations

import pytest

from sparseworks.core.errors import SparseworksError
from sparseworks.exec import Plan, Row
from sparseworks.exec.units import Unit
from sparseworks.report.planned import measured, plan_page, save_plan


@pytest.fixture
def drawn() -> Plan:
    row = Row("a", 64, 0, 0.1, "tile", "tile-fp32", 20.0, 100.0, 5.0, "why <b>", (("own-kernel", 30.0),))
    return Plan((row,), (64,), (Unit("a", (96, 64), (("a", 0, 96),)),), machine={"threads": 1})


def test_the_page_shows_shapes_kernels_and_the_bound(drawn):
    page = plan_page(drawn)
    for text in ("96x64, 64 rows", "tile-fp32", "own-kernel", "dense", "physical bound", "why &lt;b&gt;", "<svg"):
        assert text in page
    assert "http://" not in page.replace("http://www.w3.org", "").replace("http://purl.org", "").replace(
        "http://creativecommons", ""
    )


def test_convolutions_are_drawn_at_their_positions():
    row = Row("a", 16, 0, 0.1, "taps", "taps-fp32", 20.0, 100.0, 5.0, "why", rows=320)
    page = plan_page(Plan((row,), (16,), (Unit("a", (16, 72), (("a", 0, 16),)),), machine={"threads": 1}))
    assert "16x72, 320 rows" in page and "taps-fp32" in page


def test_what_was_measured(drawn):
    assert measured(drawn.table[0]) == {"tile-fp32": 20.0, "own-kernel": 30.0, "dense": 100.0}


def test_saved_or_refused(drawn, tmp_path):
    assert save_plan(drawn, tmp_path / "new" / "plan.html").read_text(encoding="utf-8").startswith("<!doctype")
    (tmp_path / "file").write_text("")
    with pytest.raises(SparseworksError, match="Cannot write"):
        save_plan(drawn, tmp_path / "file" / "plan.html")
