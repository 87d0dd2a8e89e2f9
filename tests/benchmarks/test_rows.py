"""Rows of benchmarks: one form for all, kept while a run goes on, and tables of like rows only."""

from __future__ import annotations

import importlib.util
import json
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from torch import nn

import sparseworks as sw
from sparseworks.core.errors import BudgetError, CheckpointError, ModelError

SCRIPTS = Path(__file__).parents[2] / "benchmarks" / "weights"


def script(name: str):
    """A module of `benchmarks/weights`, found as when it is run."""
    sys.path.insert(0, str(SCRIPTS))
    try:
        spec = importlib.util.spec_from_file_location(name, SCRIPTS / f"{name}.py")
        assert spec is not None and spec.loader is not None
        module = sys.modules.get(name) or importlib.util.module_from_spec(spec)
        if name not in sys.modules:
            sys.modules[name] = module
            spec.loader.exec_module(module)
        return module
    finally:
        sys.path.remove(str(SCRIPTS))


rows = script("rows")


def row(label="rigl", density=0.1, seed=0, value=90.0, method="rigl", **changes):
    model = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 4))
    chosen = None if density == 1.0 else sw.method(method, density=density)
    supports = sw.prune(model, sw.method("random", density=density), progress=False).supports if chosen else {}
    given = {
        "task": "digits", "metric": "accuracy", "value": value, "epochs": 4, "examples": 600, "data": "4 epochs", "seed": seed,
    }  # fmt: skip
    return rows.Row(label, density, rows.record_of(chosen, supports, model, **{**given, **changes}))


def test_a_row_is_flat_and_comes_back():
    one = replace(row(), seconds=1.5, peak_bytes=10)
    data = one.to_dict()
    assert {"label", "task", "method", "density", "seed", "metric", "value", "seconds", "peak_bytes"} <= set(data)
    assert {"start", "dynamic", "densities", "inference_flops", "parent", "structure", "epochs", "examples"} <= set(
        data
    )
    assert rows.Row.from_dict(json.loads(json.dumps(data))) == rows.Row.from_dict(data)
    with pytest.raises(BudgetError, match="no field"):
        rows.Row.from_dict({**data, "speed": 1})


def test_dense_rows_carry_everything_too():
    record = row("dense", 1.0).record
    assert (record.start, record.when, record.kept, record.parent) == ("dense", "never", 192, 212)
    assert set(record.densities.values()) == {1.0} and record.inference_flops == 384


def test_a_run_that_was_cut_off_makes_no_row_twice(tmp_path, capsys):
    setting, made = {"steps": 3}, []

    def make(key):
        made.append(key)
        return row(seed=len(made))

    first = rows.Rows("x", setting, folder=tmp_path)
    first.add("a", lambda: make("a"))
    with pytest.raises(ZeroDivisionError):
        first.add("b", lambda: 1 / 0)
    again = rows.Rows("x", setting, folder=tmp_path)
    assert again.add("a", lambda: make("a"))[0].record.seed == 1
    again.add("b", lambda: [make("b"), make("b")])
    assert made == ["a", "b", "b"] and len(again.rows) == 3
    assert all(r.seconds is not None for r in again.rows)
    with pytest.raises(CheckpointError, match="other settings"):
        rows.Rows("x", {"steps": 4}, folder=tmp_path)
    target = again.store(tmp_path / "stored" / "x")
    head, read = rows.read(target)
    assert head["setting"] == setting and head["benchmark"] == "x" and head["machine"]
    assert [r.to_dict() for r in read] == [r.to_dict() for r in again.rows]
    assert not (tmp_path / "x.json").exists(), "a stored run begins anew"
    assert len([line for line in target.read_text().splitlines() if '"label"' in line]) == 3


def test_a_quick_run_keeps_nothing(tmp_path, capsys):
    quick = rows.Rows("x", {}, quick=True, folder=tmp_path)
    quick.add("a", row)
    assert not list(tmp_path.iterdir()) and quick.store(None) is None


def test_what_is_no_row_file_is_refused(tmp_path):
    path = tmp_path / "x.json"
    path.write_text('{"rows": [], "schema": 0}')
    with pytest.raises(CheckpointError, match="schema 0"):
        rows.read(path)
    path.write_text("[]")
    with pytest.raises(CheckpointError, match="holds no rows"):
        rows.read(path)


def test_tables_hold_like_rows(capsys):
    listed = [
        row("dense", 1.0),
        row(seed=0, value=90.0),
        row(seed=1, value=92.0),
        row("SET", 0.1, method="set", value=80.0),
    ]
    (group,) = rows.groups(listed)
    assert rows.layout(group) == (
        ["method", "dense", "90 %"],
        [["dense", "90.00", ""], ["rigl", "", "91.00 ± 1.41"], ["SET", "", "80.00"]],
    )
    assert len(rows.groups([*listed, row(task="MNIST")])) == 2
    pruned = row("magnitude", method="magnitude", data="")
    with pytest.raises(ModelError, match="it is not said what data each saw"):
        rows.groups([*listed, pruned])
    said = replace(pruned, record=replace(pruned.record, data="no data after its dense parent's 4 epochs"))
    assert len(rows.groups([*listed, said])) == 1


def test_the_peak_of_memory_is_that_of_the_row():
    import torch

    start = rows.reset_peak()
    if start is None:
        pytest.skip("this system does not tell")
    # Above 32 MiB malloc always maps memory anew, whatever was freed before.
    found = rows._timed(lambda: (torch.ones(40_000_000).sum(), row())[1])[0]
    again = rows._timed(row)[0]
    assert found.peak_bytes > 1e8 > again.peak_bytes


def test_a_script_runs_from_its_arguments_to_stored_rows(tmp_path, monkeypatch, capsys):
    dynamic, target = script("dynamic"), tmp_path / "dynamic.json"
    monkeypatch.setattr(sys, "argv", ["dynamic.py", "--quick", "--threads", "1", "--json", str(target)])
    dynamic.main()
    _, read = rows.read(target)
    assert [r.label for r in read] == ["dense", *dynamic.METHODS]
    assert {r.record.task for r in read} == {"digits"} and all(r.record.data for r in read)
    assert read[0].record.value > 20
