"""Rows of benchmarks: one form for all, kept while a run goes on, and tables of like rows only."""

from __future__ import annotations

import importlib.util
import json
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

import sparseworks as sw
from sparseworks.core.errors import BudgetError, CheckpointError, ModelError
from sparseworks.core.schedule import Harmonic
from sparseworks.core.site import Site
from sparseworks.core.stats import Gram, InputMoments, Stats

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


def test_what_else_was_counted_stands_beside_the_metric():
    spent = {"training_flops": 100.0, "more": {"forgetting": 0.5}}
    listed = [
        row("dense", 1.0, training_flops=400.0),
        row("dense, longer", 1.0, training_flops=800.0),
        row("rigl", 0.1, seed=0, **spent),
        row("rigl", 0.1, seed=1, **{**spent, "training_flops": 140.0}),
        row("rigl", 0.05, training_flops=50.0, more={"forgetting": 2500, "units": [1, 2]}),
        row("set", 0.1, method="set", more={"forgetting": 0.5}),
    ]
    found = rows.beside(listed)
    assert found == {
        "training, x dense": {"dense": "1", "dense, longer": "2", "rigl": "0.3 / 0.125"},
        "forgetting": {"rigl": "0.5 / 2,500", "set": "0.5"},
    }
    head, body = rows.layout(listed)
    assert head == ["method", "dense", "90 %", "95 %", "training, x dense", "forgetting"]
    assert body[3] == ["set", "", "90.00", "", "", "0.5"]
    assert list(rows.beside(listed[2:])) == ["training FLOPs", "forgetting"]


def test_the_peak_of_memory_is_that_of_the_row():
    start = rows.reset_peak()
    if start is None:
        pytest.skip("this system does not tell")
    torch.ones(40_000_000).sum()  # freed, and kept by a process that called `reuse_memory`
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


def test_continual_rows_carry_forgetting_and_flops():
    rehearsal, replaying = script("rehearsal"), script("replaying")
    stream = script("task_streams").digits()
    told = script("told_tasks").task_incremental(stream, "erk", "random", 0.2, 0, 4)
    assert told.record.more["forgetting"] == 0.0 and told.density < told.record.more["used"] < 1
    found = [
        rehearsal.class_incremental(stream, name, how, 1.0 if name == "dense" else 0.25, 0, 2)
        for name, how in rehearsal.rehearsals(0.25, 10).items()
        if name in ("dense", "sparcl", "rigl", "snip")
    ]
    (group,) = rows.groups(found)
    spent = {row.label: row.record.training_flops for row in group}
    assert spent["sparcl"] < spent["snip"] < spent["rigl"] < 0.5 * spent["dense"]
    assert next(r for r in group if r.label == "snip").record.start == "sparse-to-sparse"
    matured = replaying.maturing(stream, 0, 0, 10)
    replay = replaying.replaying(stream, matured.record.more["memory_bytes"], 0, 4)
    assert replay.record.more["memory_bytes"] <= matured.record.more["memory_bytes"]
    assert len(rows.groups([matured, replay])) == 1
    flow = [script("megabatches").anytime(stream, name, 0, 2, 8, 20) for name in ("dense", "snip", "app")]
    assert len(rows.groups(flow)) == 1
    assert [round(row.record.kept / 82944, 2) for row in flow[1:]] == [0.37, 0.37]


def test_factors_stand_at_their_bytes_beside_masks():
    factors = script("factors")
    torch.manual_seed(0)
    weight, x = torch.randn(64, 64), torch.randn(256, 64) * torch.linspace(0.1, 2, 64)
    stats = Stats.collecting(frozenset({Gram, InputMoments}), (64, 64), site="a")
    stats.feed("input", x)
    known = {"task": "a", "metric": "relative output error", "higher_is_better": False, "epochs": 0, "examples": 1}
    layer = factors.Layer(Site("a", "linear", "a.weight", (64, 64)), weight, lambda: stats, {**known, "data": "noise"})
    found = [
        layer.factorised("SVD", "svd", 0.5),
        layer.factorised("whitened SVD", "svd_llm", None),
        layer.masked("2:4", "wanda"),
    ]
    assert len(rows.groups(found)) == 1
    svd, whitened, masked = (row.record for row in found)
    assert 0.45 < svd.densities["a"] <= 0.5 and svd.structure == "low_rank"
    assert svd.kept == round(0.5 * svd.inference_flops)
    assert found[1].density == pytest.approx(whitened.densities["a"], abs=1e-4) and found[1].density <= 0.5
    assert masked.kept == 2048 and found[2].density == 0.5625
    assert 0 < whitened.value < svd.value < 1 and 0 < masked.value < 1


def test_actors_have_a_row_a_seed_and_pay_for_what_they_keep():
    reinforcement = script("reinforcement")
    dense = reinforcement.access("dense", None, 1.0, 2, 10)
    sparse = reinforcement.access("harmonic", Harmonic(), 0.1, 2, 10)
    assert [r.record.seed for r in sparse] == [0, 1] and len(rows.groups([*dense, *sparse])) == 1
    assert sparse[0].record.kept == pytest.approx(0.1 * dense[0].record.kept, rel=0.02)
    assert 0.1 < sparse[0].record.training_flops / dense[0].record.training_flops < 1
    single = reinforcement.Single(reinforcement.network(0), 0.05, 100)
    assert single.flops() == 64 * 8 * (4 * 64 + 64 * 64 + 64 * 2), "one network and its target, both dense at first"


def test_a_detector_pays_for_its_dense_net_and_its_teacher():
    detector = script("detector")
    bench = detector.Bench(detector.Size(64, 32, 16, 4, 2, 2, (0.3,)))
    cells = [("one threshold", repair, 0.3) for repair in ("", "none", "channel-wise")]
    found = [bench.row("whole", 1.0, 0, bench.whole(0), None, 0, False), bench.thin(0)]
    found += [bench.after(name, repair, share, 0) for name, repair, share in cells]
    assert [row.label for row in found[2:]] == ["one threshold", "one threshold, tuned", "one threshold, channel-wise"]
    assert len(rows.groups(found)) == 1
    parameters = [row.record.more["parameters"] for row in found]
    assert parameters[0] == parameters[1] == found[0].record.parent and parameters[2] <= 0.3 * parameters[0]
    one = rows.forward_flops(bench.whole(0), bench.data.images[:1])
    spent = [row.record.training_flops for row in found]
    assert spent[0] == 3 * 32 * 4 * one and spent[1] == spent[2] == 3 * 32 * 6 * one
    assert spent[4] - spent[3] == 16 * 2 * one


def test_dense_passes_are_counted_without_touching_the_model():
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4 * 36, 2)).eval()
    mean = model[1].running_mean.clone()
    assert rows.forward_flops(model, torch.ones(2, 1, 8, 8)) == 2 * 2 * (36 * 9 * 4 + 4 * 36 * 2)
    assert torch.equal(model[1].running_mean, mean) and not model.training


def test_a_planted_law_predicts_the_cells_that_it_has_not_seen():
    scaling = script("scaling")
    sizes, lengths = (8e3, 3e4, 9e4), (6e4, 2e5, 6e5)
    grid = {
        (i, j, k): [(s, p * (1 - s), d, (6 * (1 - s) ** 0.8 + 9) * (p * (1 - s)) ** -0.35 + (3e3 / d) ** 0.5 + 1.2)]
        for i, p in enumerate(sizes)
        for j, d in enumerate(lengths)
        for k, s in enumerate(scaling.SPARSITIES)
    }
    law, added, alone = scaling.held_out(grid, starts=4)
    assert law["held out, %"] < 0.3 * added["held out, %"] < 0.3 * alone["held out, %"]
    assert law["held out, %"] < 0.1
