"""Comparison of methods: what is refused first, what is kept between runs, what the page shows."""

from __future__ import annotations

import importlib
import json
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from typer.testing import CliRunner

from sparseworks.cli.app import app
from sparseworks.core.errors import (
    BudgetError,
    CheckpointError,
    ModelError,
    PatternError,
    RecipeError,
    UnknownNameError,
)
from sparseworks.evaluate import Record
from sparseworks.jobs.compare import Case, cases, run_cases, span
from sparseworks.jobs.setting import Wish
from sparseworks.report.compared import save_comparison

WISH = Wish(limit=2)
NAME = "toy"


@pytest.fixture(autouse=True)
def _toy(monkeypatch, net, batches):
    """A model called toy whose task is the distance from the dense outputs."""
    dense = [net(x).detach() for x in batches]

    def off(model):
        errors = [(model(x) - y).square().mean().detach() for x, y in zip(batches, dense, strict=True)]
        return SimpleNamespace(value=float(torch.stack(errors).mean()))

    off.metric = "error"
    setting = SimpleNamespace(model=net, task=off, batches=batches)
    monkeypatch.setattr("sparseworks.jobs.compare.setting_for", lambda name, wish: setting)
    monkeypatch.setattr("sparseworks.jobs.compare._loaded", {})


def test_densities_are_read():
    assert span("0.5") == [0.5] and span("0.3,0.5") == [0.3, 0.5]
    assert span("0.3:0.7") == [0.3, 0.4, 0.5, 0.6, 0.7] and span("0.2:0.4:3") == [0.2, 0.3, 0.4]
    for bad in ("", "a", "0:1", "1.5", "0.3:0.5:x"):
        with pytest.raises(BudgetError):
            span(bad)


@pytest.mark.parametrize(
    "methods, densities, pattern, error",
    [
        (["wande"], [0.5], "", UnknownNameError),
        (["rigl"], [0.5], "", RecipeError),
        (["imp"], [0.5], "", RecipeError),
        (["wanda"], [0.5], "2;4", PatternError),
        ([], [0.5], "", BudgetError),
    ],
)
def test_what_cannot_work_is_refused_before_any_work(methods, densities, pattern, error):
    with pytest.raises(error):
        cases(methods, densities, pattern)


def test_a_pattern_that_fixes_the_density_gives_one_case_a_method():
    assert cases(["magnitude", "wanda"], [0.3, 0.5], "2:4") == [
        Case("magnitude", 0.5, "2:4"),
        Case("wanda", 0.5, "2:4"),
    ]
    assert len(cases(["magnitude", "wanda"], [0.3, 0.5])) == 4


def test_a_finished_case_is_read_back_and_another_setting_is_refused(tmp_path, monkeypatch):
    wanted = cases(["magnitude", "random"], [0.5])
    rows = run_cases(NAME, wanted, WISH, tmp_path)
    assert rows[0].quality is not None and rows[1].quality is not None and rows[0].dense is not None
    assert 0 == rows[0].dense < rows[0].quality < rows[1].quality
    assert all(abs(row.kept - 0.5) < 1e-3 and row.seconds > 0 for row in rows)
    assert all(row.peak_bytes is not None and 0 <= row.peak_bytes < 2**30 for row in rows)
    monkeypatch.setattr("sparseworks.jobs.compare._one", lambda *_: pytest.fail("a finished case runs again"))
    assert run_cases(NAME, wanted, WISH, tmp_path) == rows
    with pytest.raises(CheckpointError, match="other settings"):
        run_cases(NAME, wanted, Wish(limit=3), tmp_path)
    page = save_comparison(NAME, rows, tmp_path / "page.html").read_text()
    assert "magnitude" in page and "<svg" in page and f"{rows[0].quality:.4f}" in page


def test_every_row_carries_its_record_and_the_page_refuses_unlike_ones(tmp_path):
    rows = run_cases(NAME, cases(["magnitude", "wanda"], [0.3, 0.5]), WISH, tmp_path)
    for row in rows:
        record = Record.from_dict(row.record)
        assert (record.method, record.value, record.metric) == (row.method, row.quality, "error")
        assert (record.start, record.epochs, record.examples) == ("post-training", 0, 32)
        assert sum(record.densities.values()) / 6 == pytest.approx(row.density, abs=1e-2)
    page = save_comparison(NAME, rows, tmp_path / "page.html").read_text()
    assert "32 calibration examples" in page
    trained = replace(rows[0], record={**rows[0].record, "start": "sparse-to-sparse", "data": ""})
    with pytest.raises(ModelError, match="not said what data each saw"):
        save_comparison(NAME, [*rows, trained], tmp_path / "unlike.html")
    assert not (tmp_path / "unlike.html").exists()
    save_comparison(NAME, [*rows, trained], tmp_path / "told.html", allow=["start"])
    other = replace(rows[0], record={**rows[0].record, "parent": 1})
    with pytest.raises(ModelError, match="parents differ"):
        save_comparison(NAME, [*rows, other], tmp_path / "unlike.html")


def test_a_model_that_is_not_there_does_not_block_the_folder(tmp_path, monkeypatch):
    wanted, found = cases(["magnitude"], [0.5]), importlib.import_module("sparseworks.jobs.compare").setting_for

    def missing(name, wish):
        raise ModelError(f"There is no model {name!r}.")

    monkeypatch.setattr("sparseworks.jobs.compare.setting_for", missing)
    with pytest.raises(ModelError):
        run_cases("nowhere", wanted, WISH, tmp_path)
    monkeypatch.setattr("sparseworks.jobs.compare.setting_for", found)
    assert run_cases(NAME, wanted, WISH, tmp_path)[0].quality is not None


def test_a_worker_ends_when_the_process_that_feeds_it_is_gone(monkeypatch):
    found, ended = importlib.import_module("sparseworks.jobs.compare"), []
    monkeypatch.setattr(found.os, "_exit", ended.append)
    found._end_with_parent()
    assert not ended  # this process has no such parent
    monkeypatch.setattr(found, "parent_process", lambda: SimpleNamespace(join=lambda: ended.append("waited")))
    found._end_with_parent()
    assert ended == ["waited", 1]


def test_the_command_prints_json_and_writes_the_page(tmp_path):
    arguments = [
        "compare",
        NAME,
        "--methods",
        "magnitude",
        "--density",
        "0.5",
        "--limit",
        "2",
        "--out",
        str(tmp_path),
        "--json",
    ]
    found = CliRunner().invoke(app, arguments)
    assert found.exit_code == 0, found.output
    data = json.loads(found.stdout)
    assert data["rows"][0]["method"] == "magnitude" and (tmp_path / "comparison.html").exists()
