"""The planner: choices follow measurements, dense wins unless beaten beyond noise, and every decision has its reason."""

from __future__ import annotations

import copy
import itertools
import json
import sys

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from sparseworks.core.errors import CheckpointError, KernelError, ShapeError, UnknownNameError
from sparseworks.core.support import Support
from sparseworks.exec import KERNELS, Plan, SparseConv1x1, SparseLinear, plan, verify
from sparseworks.exec.choose import choose, form_of, ladder_rungs, wins
from sparseworks.exec.layers import layer_of
from sparseworks.exec.race import Entry, Race


def test_names_of_function_and_module():
    import sparseworks as sw
    import sparseworks.exec
    from sparseworks.exec.plan import plan as same

    assert sparseworks.exec.plan is same is sw.plan is plan
    assert sys.modules["sparseworks.exec.plan"].Plan is Plan is sw.Plan


# -- choices follow timings ---------------------------------------------------------------------------------------------


def test_fastest_kernel_is_chosen(clock, chain):
    model, supports, _ = chain
    clock.us |= {"toy-few": 50.0, "toy-any": 40.0}
    drawn = plan(model, supports, batch=8)
    assert [(r.site, r.kernel, r.format, r.us, r.dense_us) for r in drawn.rows] == [
        ("0", "toy-any", "toy", 40.0, 100.0),
        ("2", "toy-any", "toy", 40.0, 100.0),
    ]
    assert drawn.rungs("0") == [(0, "toy-any")]
    assert drawn.rows[0].reason == "toy-any is 2.50x faster than dense at 8 rows"
    assert drawn.rows[0].alternatives == (("toy-few", 50.0), ("wide-any", 1000.0))
    assert drawn.rows[0].ceiling_us > 0


def test_dense_stays_when_nothing_is_faster(clock, chain):
    model, supports, _x = chain
    clock.us |= {"toy-any": 125.0}
    drawn = plan(model, supports, batch=8)
    assert all(r.kernel == r.format == "dense" and r.us == r.dense_us == 100.0 for r in drawn.rows)
    assert drawn.rungs("0") == []
    assert (
        drawn.rows[0].reason == "dense stays: the best sparse kernel (toy-any) reaches 0.80x at 8 rows and density 50%"
    )
    assert [type(m) for m in drawn.apply(model)] == [nn.Linear, nn.ReLU, nn.Linear]


@pytest.mark.parametrize("jitter", [(1.0,) * 5, (0.6, 0.7, 0.95, 1.05, 1.1)])
def test_a_lead_within_noise_is_no_lead(clock, chain, jitter):
    model, supports, _ = chain
    clock.us |= {"toy-any": 98.0}
    clock.jitter = jitter
    row = plan(model, supports, batch=8).rows[0]
    assert row.kernel == "dense" and "within noise" in row.reason and "3%" in row.reason


def test_the_ladder_changes_kernel_with_the_rows(clock, chain):
    model, supports, _ = chain
    clock.us |= {(1, "toy-few"): 10.0, (100, "toy-any"): 30.0}
    drawn = plan(model, supports, batch=[100, 1])
    assert drawn.rungs("0") == [(0, "toy-few"), (11, "toy-any")]  # geometric mean of 1 and 100
    assert [(r.batch, r.kernel) for r in drawn.table if r.site == "0"] == [(100, "toy-any"), (1, "toy-few")]
    assert [r.batch for r in drawn.rows] == [100, 100]  # the first batch is the headline
    assert drawn.apply(model)[0].rungs == [(0, "toy-few"), (11, "toy-any")]


def test_dense_form_serves_the_rows_where_dense_is_faster(clock, chain, masked):
    model, supports, x = chain
    clock.us |= {(1, "toy-few"): 10.0}
    drawn = plan(model, supports, batch=[1, 256])
    assert drawn.rungs("0") == [(0, "toy-few"), (17, "dense")]
    assert [r.kernel for r in drawn.table if r.site == "0"] == ["toy-few", "dense"]
    fast = drawn.apply(model)
    many = torch.randn(20, 24)
    for inputs in (x[:1], many):
        torch.testing.assert_close(fast(inputs), masked(model, supports)(inputs))


def test_a_layer_holds_at_most_two_forms(clock, chain):
    model, supports, _ = chain
    clock.us |= {(1, "toy-any"): 50.0, (1, "wide-any"): 60.0, (16, "wide-any"): 50.0}
    drawn = plan(model, {"0": supports["0"]}, batch=[1, 16, 256])  # wanted: toy, wide, dense
    assert [r.kernel for r in drawn.table] == ["wide-any", "wide-any", "dense"]
    assert drawn.table[0].reason.endswith("; toy-any would reach 2.00x but needs one more form in memory")
    clock.us |= {(1, "wide-any"): 1000.0, (16, "wide-any"): 90.0}
    drawn = plan(model, {"0": supports["0"]}, batch=[1, 16, 256], cache=False)
    assert [r.kernel for r in drawn.table] == ["toy-any", "dense", "dense"]
    assert "wide-any is 1.11x faster at 16 rows, but a layer holds at most two forms" in drawn.table[1].reason


def test_refusals_are_kept_in_words(clock, chain):
    model, supports, _ = chain
    row = plan(model, supports, batch=100).rows[0]
    assert dict(row.refusals) == {"toy-few": "it takes up to 64 rows", "picky-any": "it wants 3 of every 5 inputs"}
    assert "toy-few" not in {name for name, _ in row.alternatives}


def test_no_kernel_at_all(clock, chain, monkeypatch):
    model, supports, _ = chain
    monkeypatch.setattr(KERNELS, "_items", {n: KERNELS.get(n) for n in ("dense", "picky-any")})
    row = plan(model, supports).rows[0]
    assert row.reason == "dense stays: no kernel takes it (picky-any: it wants 3 of every 5 inputs)"
    assert row.us == row.dense_us == 100.0


def test_value_types_are_the_callers_choice(clock, chain):
    model, supports, _x = chain
    clock.us |= {"toy-bf16": 10.0}
    assert plan(model, supports).rows[0].kernel == "dense"
    drawn = plan(model, supports, dtypes=(torch.float32, torch.bfloat16))
    assert drawn.rows[0].kernel == "toy-bf16"
    half = plan(copy.deepcopy(model).bfloat16(), supports)  # its own type rounds nothing
    assert half.rows[0].kernel == "toy-bf16"


def test_bytes_objective_takes_the_smallest_form_that_wins(clock, chain):
    model, supports, _ = chain
    clock.us |= {"toy-any": 40.0, "toy-bf16": 80.0}
    both = (torch.float32, torch.bfloat16)
    assert plan(model, supports, dtypes=both).rows[0].kernel == "toy-any"
    assert plan(model, supports, dtypes=both, objective="bytes").rows[0].kernel == "toy-bf16"
    with pytest.raises(UnknownNameError, match="objective 'byte'"):
        plan(model, supports, objective="byte")


ratios = st.dictionaries(
    st.sampled_from(["toy-few", "toy-any", "toy-bf16", "wide-any"]), st.floats(0.2, 5.0), min_size=1
)


@pytest.mark.usefixtures("toys")
def test_never_slower_than_dense():
    @settings(deadline=None, max_examples=50)
    @given(st.dictionaries(st.sampled_from([1, 8, 64, 512]), ratios, min_size=1))
    def check(by_rows):
        races = {
            rows: Race(100.0, {k: Entry(100 / r, r, r * 0.97, r * 1.03, True) for k, r in kernels.items()})
            for rows, kernels in by_rows.items()
        }
        for objective in ("latency", "bytes"):
            choice = choose(races, size=lambda form: 0.5, objective=objective)
            assert len({form_of(name) for _, name in choice.rungs}) <= 2
            for rows, kernel in choice.kernels.items():
                assert kernel == "dense" or wins(races[rows].entries[kernel])
            anything = any(r * 0.97 > 1.03 for kernels in by_rows.values() for r in kernels.values())
            assert bool(choice.rungs) == anything

    check()


@given(st.dictionaries(st.integers(1, 5000), st.sampled_from("abc"), min_size=1))
def test_rungs_serve_every_planned_number_of_rows(kernels):
    rungs = ladder_rungs(kernels)
    assert rungs[0][0] == 0 and all(a[0] < b[0] for a, b in itertools.pairwise(rungs))
    for rows, kernel in kernels.items():
        assert [name for least, name in rungs if least <= rows][-1] == kernel


# -- sharing and caching ------------------------------------------------------------------------------------------------


def test_alike_layers_share_a_measurement(clock, random_support):
    model = nn.Sequential(*(nn.Linear(32, 32) for _ in range(12)))
    supports = {str(i): random_support(32, 32, 0.5) for i in range(12)}
    plan(model, supports, cache=False)
    assert len(clock.calls) == 1
    supports["3"] = random_support(32, 32, 0.25)
    plan(model, supports, cache=False)
    assert len(clock.calls) == 3


def test_second_plan_reads_the_cache(clock, chain, tmp_path, monkeypatch):
    monkeypatch.setenv("SPARSEWORKS_CACHE", str(tmp_path))
    model, supports, _ = chain
    clock.us |= {"toy-any": 40.0}
    first = plan(model, supports)
    heats = len(clock.calls)
    assert plan(model, supports) == first and len(clock.calls) == heats
    plan(model, supports, cache=False)
    assert len(clock.calls) > heats
    heats = len(clock.calls)
    plan(model, supports, batch=2)
    assert len(clock.calls) > heats


@pytest.mark.parametrize("damage", ["{", "[]", '{"KEY": 3}', '{"KEY": {"dense_us": "fast", "entries": {}}}'])
def test_damaged_cache_only_means_measuring_again(clock, chain, tmp_path, monkeypatch, damage):
    monkeypatch.setenv("SPARSEWORKS_CACHE", str(tmp_path))
    model, supports, _ = chain
    first = plan(model, supports)
    heats = len(clock.calls)
    (file,) = tmp_path.glob("plans-*.json")
    keys = json.loads(file.read_text())
    file.write_text(damage if "KEY" not in damage else json.dumps({k: json.loads(damage)["KEY"] for k in keys}))
    assert plan(model, supports) == first and len(clock.calls) == 2 * heats
    assert json.loads(file.read_text()) == keys


def test_an_unwritable_cache_is_no_error(clock, chain, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("SPARSEWORKS_CACHE", str(tmp_path / "file"))
    model, supports, _ = chain
    assert len(plan(model, supports).rows) == 2


def test_senseless_kernels_are_not_run_at_many_rows(clock, chain):
    """A glance at 256 rows leaves out what is several times slower than dense there; its time is scaled up."""
    model, supports, _ = chain
    clock.us |= {"toy-any": 90.0, (256, "wide-any"): 500.0, (4096, "dense"): 1600.0, (4096, "toy-any"): 800.0}
    row = plan(model, {"0": supports["0"]}, batch=4096).rows[0]
    assert clock.calls == [["dense", "toy-any", "wide-any"], ["dense", "toy-any"], ["dense", "toy-any"]]
    assert (row.kernel, row.us, row.dense_us) == ("toy-any", 800.0, 1600.0)
    assert row.alternatives == (("wide-any", 8000.0),)


# -- models -------------------------------------------------------------------------------------------------------------


def test_apply_leaves_the_model_alone_and_equals_it_masked(clock, chain, masked):
    model, supports, x = chain
    clock.us |= {"toy-any": 40.0}
    before = copy.deepcopy(model.state_dict())
    fast = plan(model, supports).apply(model)
    assert isinstance(fast[0], SparseLinear) and isinstance(model[0], nn.Linear)
    assert all(torch.equal(v, model.state_dict()[k]) for k, v in before.items())
    torch.testing.assert_close(fast(x), masked(model, supports)(x))
    assert fast[0].support() == supports["0"]
    with torch.no_grad():
        fast[0].bias.zero_()
    assert torch.equal(model[0].bias, before["0.bias"])


def test_what_stays_dense_is_masked_too(clock, chain, masked):
    model, supports, x = chain
    fast = plan(model, supports).apply(model)
    assert isinstance(fast[0], nn.Linear)
    torch.testing.assert_close(fast(x), masked(model, supports)(x), rtol=0, atol=0)


def test_apply_takes_newer_weights(clock, chain, masked):
    model, supports, x = chain
    clock.us |= {"toy-any": 40.0}
    drawn = plan(model, supports)
    trained = nn.Sequential(nn.Linear(24, 16), nn.ReLU(), nn.Linear(16, 8))
    torch.testing.assert_close(drawn.apply(trained)(x), masked(trained, supports)(x))


def test_convolutions(clock, random_support, masked):
    clock.us |= {"toy-any": 40.0}
    model = nn.Sequential(nn.Conv2d(6, 8, 1, stride=2), nn.Conv2d(8, 4, 3))
    supports = {"0": random_support(8, 6, 0.5), "1": random_support(4, 72, 0.5)}
    drawn = plan(model, supports, batch=10)
    assert drawn.rows[1].reason == (
        "dense stays: the size of its maps is not known: plan with `examples`, inputs of the model that reach it"
    )
    fast = drawn.apply(model)
    assert isinstance(fast[0], SparseConv1x1)
    image = torch.randn(2, 6, 9, 9)
    torch.testing.assert_close(fast(image), masked(model, supports)(image))


class Attention(nn.Module):
    """A fused projection, as in many decoders."""

    def __init__(self):
        super().__init__()
        self.qkv = nn.Linear(8, 24)

    def forward(self, x):
        return self.qkv(x)


def test_fused_slices_are_planned_as_one_matrix(clock, random_support, masked):
    clock.us |= {"toy-any": 50.0}
    model = nn.Sequential(Attention())
    supports = {f"0.qkv[{s}]": random_support(8, 8, d) for s, d in (("v", 0.5), ("k", 0.25), ("q", 0.25))}
    drawn = plan(model, supports)
    assert [(r.site, r.us) for r in drawn.rows] == [("0.qkv[v]", 25.0), ("0.qkv[k]", 12.5), ("0.qkv[q]", 12.5)]
    assert sum(r.dense_us for r in drawn.rows) == pytest.approx(100.0)
    assert "share of the fused matrix 0.qkv" in drawn.rows[0].reason
    x = torch.randn(3, 8)
    torch.testing.assert_close(drawn.apply(model)(x), masked(model, supports)(x))
    two = {k: v for k, v in supports.items() if "[v]" not in k}
    torch.testing.assert_close(plan(model, two).apply(model)(x), masked(model, two)(x))


def _tied():
    model = nn.ModuleDict({"a": nn.Linear(8, 8), "b": nn.Linear(8, 8)})
    model["b"].weight = model["a"].weight
    return model, "a", "tied to b.weight"


def _hooked():
    model = nn.ModuleDict({"a": nn.Linear(8, 8)})
    model["a"].register_forward_hook(lambda *_: None)
    return model, "a", "forward hooks"


def _inside_attention():
    return nn.ModuleDict({"a": nn.MultiheadAttention(8, 2)}), "a.out_proj", "NonDynamicallyQuantizableLinear"


def _read_by_attention():
    return nn.ModuleDict({"a": nn.MultiheadAttention(8, 2)}), "a.in_proj_weight[q]", "not the weight of a module"


def _embedding():
    return nn.ModuleDict({"a": nn.Embedding(8, 8)}), "a", "Embedding has no packed counterpart"


@pytest.mark.parametrize("build", [_tied, _hooked, _inside_attention, _read_by_attention, _embedding])
def test_what_cannot_be_replaced_stays_dense_and_says_why(clock, random_support, build):
    clock.us |= {"toy-any": 40.0}
    model, site, why = build()
    drawn = plan(model, {site: random_support(8, 8, 0.5)})
    (row,) = drawn.rows
    assert row.kernel == "dense" and row.us is None and why in row.reason
    assert drawn.rungs(site) == [] and not clock.calls
    twin = drawn.apply(model)
    assert [type(m) for m in twin.modules()] == [type(m) for m in model.modules()]


def test_tied_weights_stay_tied(clock, random_support):
    model, _, _ = _tied()
    twin = plan(model, {"a": random_support(8, 8, 0.5)}).apply(model)
    assert twin["a"].weight is twin["b"].weight and twin["a"].weight is not model["a"].weight


def test_a_module_hooked_after_planning_is_refused(clock, chain):
    model, supports, _ = chain
    clock.us |= {"toy-any": 40.0}
    drawn = plan(model, supports)
    model[0].register_forward_pre_hook(lambda *_: None)
    with pytest.raises(KernelError, match="replaces '0', but it carries forward hooks"):
        drawn.apply(model)


def test_bad_arguments(clock, chain, random_support):
    model, supports, _ = chain
    with pytest.raises(UnknownNameError, match="site 'o'"):
        plan(model, {"o": supports["0"]})
    with pytest.raises(ShapeError, match=r"'0' is \(16, 24\)"):
        plan(model, {"0": random_support(24, 16, 0.5)})
    with pytest.raises(KernelError, match="at least one number of rows"):
        plan(model, supports, batch=[])
    with pytest.raises(KernelError, match="at least 1"):
        plan(model, supports, batch=0)
    with pytest.raises(UnknownNameError, match="site"):
        plan(model, supports).rungs("nowhere")
    assert plan(model, {}).rows == []


def test_extreme_supports(clock, chain, masked):

    model, _, x = chain
    clock.us |= {"toy-any": 40.0}
    supports = {"0": Support.empty((16, 24)), "2": Support.full((8, 16))}
    drawn = plan(model, supports)
    torch.testing.assert_close(drawn.apply(model)(x), masked(model, supports)(x))


# -- text and data ------------------------------------------------------------------------------------------------------


def test_json_round_trip(clock, chain):
    model, supports, x = chain
    clock.us |= {(1, "toy-few"): 10.0 / 3, (100, "toy-any"): 30.0}
    drawn = plan(model, supports, batch=[1, 100])
    again = Plan.from_json(drawn.to_json())
    assert again == drawn and again.to_json() == drawn.to_json()
    assert Plan.from_json(json.loads(drawn.to_json())) == drawn
    assert json.loads(drawn.to_json())["schema"] == 1
    with pytest.raises(UnknownNameError, match="support '0'"):
        again.apply(model)
    torch.testing.assert_close(again.apply(model, supports)(x), drawn.apply(model)(x))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d: d | {"schema": 99}, "schema 99"),
        (lambda d: {}, "Not a plan"),
        (lambda d: d | {"table": [{}]}, "Not a plan"),
        (lambda d: d | {"table": [d["table"][0] | {"extra": 1}]}, "extra"),
        (lambda d: d | {"ladders": {"0": [3]}}, "Not a plan"),
    ],
)
def test_damaged_json_is_refused(clock, chain, change, message):
    model, supports, _ = chain
    data = plan(model, supports).to_dict()
    with pytest.raises(CheckpointError, match=message):
        Plan.from_json(json.dumps(change(data)))
    with pytest.raises(CheckpointError, match="damaged"):
        Plan.from_json(json.dumps(data)[:-20])


def test_table_and_summary_for_people(clock, chain):
    model, supports, _ = chain
    clock.us |= {"toy-any": 40.0}
    drawn = plan(model, supports, batch=[8, 100])
    text = str(drawn)
    for word in ("site", "density", "kernel", "dense us", "bound us", "reason", "toy-any is 2.50x faster than dense"):
        assert word in text
    assert "At 8 rows 2 of 2 sites run sparse: 0.20 -> 0.08 ms, 2.50x" in drawn.summary
    assert len(drawn.summary.splitlines()) == 2


# -- with the clock of this machine -------------------------------------------------------------------------------------


def test_a_real_plan_runs_and_agrees(chain, masked):
    model, supports, x = chain
    drawn = plan(model, supports, batch=[1, 32], rounds=3, progress=True)
    fast = drawn.apply(model)
    check = verify(masked(model, supports), fast, x, rounds=3)
    assert check.error < 1e-5 and check.speed.median > 0
    assert "outputs differ by" in str(check)
    assert all(row.dense_us > 0 and row.ceiling_us > 0 and row.reason for row in drawn.table)


def test_few_rows_rotate_over_copies(chain, toys, monkeypatch):
    """A layer of a large model is timed over as many weights as do not fit a cache; a lone small layer over one."""
    from sparseworks.exec import race as module

    model, supports, _ = chain
    seen = []
    monkeypatch.setattr(module.copy, "deepcopy", lambda m: seen.append(m) or m)
    layer = layer_of(model[0])
    for working_set, rows, copies in ((1536, 1, 0), (15360, 1, 9), (15360, 100, 0), (10**9, 1, 63)):
        seen.clear()
        call = layer.call(supports["0"], rows, None)
        module.race(layer, supports["0"], ["toy-any"], call, working_set=working_set, rounds=1)
        assert sum(isinstance(m, nn.Linear) for m in seen) == copies
        assert sum(isinstance(m, SparseLinear) for m in seen) == copies


def test_examples_that_cannot_be_told_apart_are_refused():
    model = nn.Sequential(nn.Conv2d(4, 4, 3, padding=1))
    support = Support.from_mask(torch.rand(4, 36) < 0.5)
    with pytest.raises(KernelError, match="16x4x4x4 and 1x4x16x16"):
        plan(model, {"0": support}, examples=[torch.randn(16, 4, 4, 4), torch.randn(1, 4, 16, 16)], cache=False)
