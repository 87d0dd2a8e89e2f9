"""The cost model: the prior says what was measured, this machine's races correct it, and it decides what is worth timing."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sparseworks.exec import KERNELS, Call, Plan, plan
from sparseworks.exec.cost import PRIOR, WITHIN, Cost, CostModel, Known

MODEL = CostModel()
WIDE = Call(64, (4096, 4096), 0.1)


def ratio(kernel: str, call: Call, model: CostModel = MODEL) -> float:
    dense, us = model.us("dense", call), model.us(kernel, call)
    assert dense is not None
    assert us is not None
    return dense / us


@pytest.mark.parametrize(
    ("kernel", "rows", "density", "measured"),
    [
        ("csr16-fp32", 1, 0.1, 4.5),
        ("bitmask-bf16", 1, 0.5, 1.84),
        ("tile-fp32", 16, 0.1, 10.0),
        ("tile-fp32", 64, 0.1, 8.0),
        ("tile-fp32", 256, 0.2, 3.4),
        ("panel-bf16", 1, 0.1, 16.0),
        ("panel-fp32", 64, 0.05, 19.5),
    ],
)
def test_the_prior_gives_what_was_measured(kernel, rows, density, measured):
    assert ratio(kernel, replace(WIDE, rows=rows, density=density)) == pytest.approx(measured, rel=0.3)


@given(st.sampled_from(sorted(PRIOR)), st.integers(1, 5000), st.floats(0.001, 1.0), st.integers(1, 2))
def test_more_work_never_costs_less(kernel, rows, density, threads):
    call = Call(rows, (96, 64), density, threads=threads)
    us = PRIOR[kernel].us(call)
    assert us > 0
    assert PRIOR[kernel].us(replace(call, shape=(192, 64))) >= us


def test_what_was_measured_near_by_corrects_and_fades_with_distance():
    usual = PRIOR["tile-fp32"].us(WIDE)
    model = CostModel([Known("tile-fp32", WIDE, 3 * usual)])
    assert model.us("tile-fp32", WIDE) == pytest.approx(3 * usual)
    near, far = (
        model.us("tile-fp32", c) / PRIOR["tile-fp32"].us(c) for c in (replace(WIDE, rows=128), replace(WIDE, rows=4096))
    )
    assert 3 > near > far > 1
    assert model.us("csr16-fp32", WIDE) == MODEL.us("csr16-fp32", WIDE)


def test_only_what_may_win_is_timed():
    kernels = ["tile-fp32", "csr16-fp32", "unheard-of"]
    assert MODEL.promising(kernels, WIDE) == ["tile-fp32", "unheard-of"]
    assert MODEL.promising(kernels, WIDE, always=["csr16-fp32"]) == kernels
    slow = Known("tile-fp32", WIDE, 100 * WITHIN * PRIOR["dense"].us(WIDE))
    assert "tile-fp32" not in CostModel([slow]).promising(kernels, WIDE)


def test_other_types_are_not_judged():
    half = replace(WIDE, dtype=torch.bfloat16)
    assert MODEL.us("tile-fp32", half) is None
    assert MODEL.promising(["csr16-fp32"], half) == ["csr16-fp32"]


def test_crossover_is_later_for_one_row_in_float32():
    one, many = (MODEL.crossover(["csr16-fp32", "tile-fp32"], replace(WIDE, rows=rows)) for rows in (1, 64))
    assert one is not None
    assert many is not None
    assert 0.45 <= one <= 0.65
    assert many <= 0.3 < one
    assert MODEL.crossover([], WIDE) is None


def test_a_kernel_brings_its_own_cost(clock, chain, monkeypatch):
    """Expected to be hopeless, it is not run, and the reason is in the row; one without a cost is."""
    model, supports, _ = chain
    monkeypatch.setattr(KERNELS.get("toy-any"), "cost", Cost(6, 0, {1: (1e-6,)}, (1.0,)), raising=False)
    drawn = plan(model, supports, batch=1)
    assert all("toy-any" not in names and "toy-few" in names for names in clock.calls)
    assert "not timed: expected to take" in dict(drawn.rows[0].refusals)["toy-any"]


def test_a_second_plan_times_nothing_although_more_is_known(clock, chain, monkeypatch):
    model, supports, _ = chain
    monkeypatch.setattr(KERNELS.get("toy-any"), "cost", Cost(6, 0, {1: (1.0,)}, (1.0,)), raising=False)
    first = plan(model, supports, batch=[1, 16])
    before = len(clock.calls)
    again = plan(model, supports, batch=[1, 16])
    assert [(r.kernel, r.us, r.alternatives) for r in again.table] == [
        (r.kernel, r.us, r.alternatives) for r in first.table
    ]
    assert len(clock.calls) == before


def test_an_unmeasured_plan_says_so(clock, chain, monkeypatch):
    model, supports, _ = chain
    monkeypatch.setattr(KERNELS.get("toy-any"), "cost", Cost(0.001, 0, {1: (1e6,)}, (1.0,)), raising=False)
    monkeypatch.setattr("sparseworks.exec.cost.CALL_US", 0.0)
    drawn = plan(model, supports, batch=1, measure=False)
    assert not clock.calls
    assert drawn.predicted
    assert all(row.kernel == "toy-any" and row.reason.startswith("predicted: ") for row in drawn.rows)
    assert all(row.ceiling_us is None for row in drawn.rows)
    assert "predicted, not measured" in drawn.summary
    assert Plan.from_dict(json.loads(drawn.to_json()), supports) == drawn
