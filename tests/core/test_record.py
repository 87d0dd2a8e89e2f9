"""Records carry what a comparison needs, and unlike rows are refused in a sentence."""

from __future__ import annotations

from dataclasses import replace

import pytest
from torch import nn

import sparseworks as sw
from sparseworks.core.errors import BudgetError, ModelError
from sparseworks.evaluate import Record, compare, describe
from sparseworks.stream import sites


def record(name="random_erk", **changes):
    model = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 4))
    method = sw.method(name, density=0.25)
    supports = sw.prune(model, sw.method("magnitude", density=0.25), progress=False).supports
    facts = describe(method, supports, sites(model))
    given = {
        "task": "digits",
        "metric": "accuracy",
        "value": 90.0,
        "parent": 192,
        "epochs": 10,
        "examples": 600,
        "hardware": "CPU",
    }
    return Record(**{**facts, **given, **changes})


def test_a_method_and_its_supports_fill_in_their_part():
    found = record("rigl")
    assert (found.start, found.dynamic, found.when) == ("sparse-to-sparse", True, "during")
    assert found.kept == 48 and found.densities["0"] == 0.25 and found.inference_flops == 96
    dense = ("imp", "gmp", "granet", "dynst", "sr_ste", "feddip", "edge_popup", "gpusq")
    sparse = ("srigl", "set", "cl_dst", "sparcl", "sharp")
    starts = {name: describe(sw.method(name), {}, [])["start"] for name in (*dense, *sparse, "magnitude")}
    assert starts == {
        **dict.fromkeys(dense, "dense-to-sparse"), **dict.fromkeys(sparse, "sparse-to-sparse"), "magnitude": "post-training",
    }  # fmt: skip
    held = describe(sw.method("snip"), {}, [], fresh=True), describe(sw.method("gpusq"), {}, [])
    assert [(h["start"], h["dynamic"], h["when"]) for h in held] == [
        ("sparse-to-sparse", False, "before"), ("dense-to-sparse", False, "after")
    ]  # fmt: skip
    assert Record.from_dict(found.to_dict()) == found
    with pytest.raises(BudgetError, match="no field"):
        Record.from_dict({**found.to_dict(), "flops": 1})
    with pytest.raises(BudgetError, match="incomplete"):
        Record.from_dict({"method": "x"})
    with pytest.raises(BudgetError, match="every layer"):
        replace(found, densities={})


def test_like_rows_are_ordered():
    a, b = record(value=90.0), record(value=91.0)
    assert compare([a, b]) == [b, a]
    low = [replace(r, higher_is_better=False) for r in (a, b)]
    assert compare(low)[0].value == 90.0


@pytest.mark.parametrize(
    "changes, reason, allow",
    [
        ({"task": "MNIST"}, "different tasks", "task"),
        ({"parent": 384, "kept": 96}, "parents differ", "parent"),
        ({"structure": "2:4"}, "patterns differ", "structure"),
        ({"epochs": 100}, "their epochs differ", "epochs"),
        ({"kept": 96}, "their densities differ", "density"),
        ({"examples": 50_000}, "their examples differ", "examples"),
        ({"start": "dense-to-sparse"}, "only pruned .* it is not said what data each saw", "start"),
    ],
)
def test_unlike_rows_are_refused_until_the_difference_is_allowed(changes, reason, allow):
    rows = [record(), record(method="other", **changes)]
    with pytest.raises(ModelError, match=reason):
        compare(rows)
    assert len(compare(rows, allow=[allow])) == 2


def test_pruning_stands_beside_training_if_both_say_what_they_saw():
    pruned = record(data="a trained model, 128 calibration examples", examples=128, epochs=0)
    trained = record("rigl", data="10 epochs from random weights")
    assert pruned.start == "post-training" and trained.start == "sparse-to-sparse"
    assert len(compare([pruned, trained])) == 2
    for said, silent in ((pruned, trained), (trained, pruned)):
        with pytest.raises(ModelError, match="not said what data"):
            compare([said, replace(silent, data="")])
    with pytest.raises(ModelError, match="different tasks"):
        compare([pruned, replace(trained, task="MNIST")])


def test_a_dense_model_stands_beside_both_and_hides_no_difference():
    dense = record(start="dense", when="never", dynamic=False, method="dense")
    pruned, trained = record(), record("rigl")
    assert len(compare([dense, trained])) == len(compare([pruned, dense])) == 2
    with pytest.raises(ModelError, match="only pruned"):
        compare([dense, pruned, trained])
