"""The kernel of convolutions as the planner sees it, and plans of convolutions: raced at the maps that examples show."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

import sparseworks as sw
from sparseworks.core.errors import KernelError
from sparseworks.core.support import Support
from sparseworks.exec import FORMATS, KERNELS, Plan, SparseConv1x1, SparseConv2d, SparseLinear, plan
from sparseworks.exec.kernel import Call, Maps
from sparseworks.exec.native import native
from sparseworks.exec.window import Window
from sparseworks.io import save


def close(a, b):
    torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("window", [Window((1, 1)), Window((3, 3), (2, 1), (1, 0)), Window((2, 3), dilation=(2, 1))])
@torch.no_grad()
def test_equals_its_reference(every_isa, window):
    taps = window.kernel[0] * window.kernel[1]
    support = Support.from_mask(torch.rand(7, taps * 5) < 0.4)
    packed = FORMATS.get("taps").pack(torch.randn(7, taps * 5), support, window=window)
    kernel, bias = KERNELS.get("taps-fp32"), torch.randn(7)
    weight = packed.unpack()[0].view(7, *window.kernel, 5).movedim(-1, 1)
    for shape in ((3, 5, 9, 11), (1, 5, 4, 4)):
        x = torch.randn(shape)
        expected = torch.nn.functional.conv2d(x, weight, bias, window.stride, window.padding, window.dilation)
        close(kernel(x, packed, bias), expected)
        close(kernel.reference(x, packed, bias), expected)


def test_refusals_are_sentences(monkeypatch):
    kernel, maps = KERNELS.get("taps-fp32"), Maps(1, (9, 9), Window((3, 3)))
    assert "of a size that examples tell" in kernel.refuses(Call(4, (8, 72)))
    assert "not float32 on cuda" in kernel.refuses(Call(49, (8, 72), device="cuda", maps=maps))
    assert "not bfloat16 on cpu" in kernel.refuses(Call(49, (8, 72), dtype=torch.bfloat16, maps=maps))
    monkeypatch.setattr("sparseworks.exec.conv.kernel.why_missing", lambda: "no extension")
    assert kernel.refuses(Call(49, (8, 72), maps=maps)) == "no extension"


@pytest.mark.parametrize("window", [None, [[3, 3]], [[0, 3], [1, 1], [0, 0], [1, 1]], [[5, 1], [1, 1], [0, 0], [1, 1]]])
def test_a_damaged_window_is_refused(window):
    packed = FORMATS.get("taps").pack(torch.ones(4, 18), Support.full((4, 18)), window=Window((3, 3)))
    damaged = type(packed)(packed.format, packed.shape, packed.dtype, packed.parts, {"window": window})
    with pytest.raises(KernelError, match=r"window|Window"):
        damaged.unpack()
    with pytest.raises(KernelError, match=r"window|Window"):
        SparseConv2d.from_packed(damaged, None)


# -- plans ----------------------------------------------------------------------------------------------------------------


class Net(nn.Module):
    """A stem, a block with a shortcut through a strided 1x1 convolution, and a head."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.wide = nn.Conv2d(8, 16, 3, stride=2, padding=1, bias=False)
        self.short = nn.Conv2d(8, 16, 1, stride=2)
        self.head = nn.Linear(16, 4)

    def forward(self, x):
        x = torch.relu(self.stem(x))
        return self.head(torch.relu(self.wide(x) + self.short(x)).mean((2, 3)))


SITES = {"stem": (8, 27), "wide": (16, 72), "short": (16, 8), "head": (4, 16)}
CHANNELS_LAST = "dense, channels last"


@pytest.fixture
def net(random_support, monkeypatch):
    monkeypatch.setattr("sparseworks.exec.conv.kernel.why_missing", lambda: None)
    return Net().eval(), {name: random_support(*shape, 0.25) for name, shape in SITES.items()}


def examples(*images):
    return [torch.randn(n, 3, 10, 8) for n in images]


def test_every_layer_is_timed_for_what_it_receives(clock, net, masked):
    model, supports = net
    clock.us |= {"taps-fp32": 25.0, "toy-any": 50.0}
    drawn = plan(model, supports, examples=examples(1, 16))
    assert [(r.site, r.rows, r.kernel, r.us) for r in drawn.rows] == [
        ("stem", 80, "taps-fp32", 25.0),
        ("wide", 20, "taps-fp32", 25.0),
        ("short", 20, "taps-fp32", 25.0),
        ("head", 1, "toy-any", 50.0),
    ]
    assert drawn.batches == (80, 16 * 80)
    assert drawn.summary.splitlines()[1].startswith(
        "For an input of 16x3x10x8 4 of 4 sites run sparse: 0.40 -> 0.12 ms"
    )
    assert [r.rows for r in drawn.table if r.site == "wide"] == [20, 320]
    assert drawn.rows[1].reason == "taps-fp32 is 4.00x faster than dense at 1 image of 10x8"
    assert "16 images of 10x8" in next(r for r in drawn.table if r.site == "wide" and r.batch != 80).reason
    assert all(r.ceiling_us is not None and r.format == "taps" for r in drawn.rows[:3])
    fast = drawn.apply(model)
    assert [type(m) for m in fast.children()] == [SparseConv2d, SparseConv2d, SparseConv2d, SparseLinear]
    assert type(model.stem) is nn.Conv2d
    for x in examples(1, 5):
        close(fast(x), masked(model, supports)(x))


def test_dense_has_the_faster_of_both_memory_formats(clock, net):
    model, supports = net
    clock.us |= {"taps-fp32": 50.0, CHANNELS_LAST: 45.0}
    row = plan(model, supports, examples=examples(1)).rows[0]
    assert (row.kernel, row.us, row.dense_us) == ("dense", 45.0, 45.0)
    clock.us |= {"taps-fp32": 30.0}
    row = plan(model, supports, examples=examples(1), cache=False).rows[0]
    assert (row.kernel, row.us, row.dense_us) == ("taps-fp32", 30.0, 45.0)


def test_a_kernel_of_rows_takes_a_1x1_convolution_where_it_is_faster(clock, net, masked):
    model, supports = net
    clock.us |= {"taps-fp32": 50.0, "toy-any": 40.0}
    drawn = plan(model, supports, examples=examples(2))
    kernels = {r.site: r.kernel for r in drawn.rows}
    assert kernels == {"stem": "taps-fp32", "wide": "taps-fp32", "short": "toy-any", "head": "toy-any"}
    assert {name for row in drawn.rows[:2] for name, _ in (*row.alternatives, *row.refusals)} == set()
    fast = drawn.apply(model)
    assert isinstance(fast.short, SparseConv1x1)
    (x,) = examples(2)
    close(fast(x), masked(model, supports)(x))


def test_forms_of_maps_and_of_rows_do_not_meet_in_one_layer(clock, net, masked):
    """At one image rows are faster, at sixteen maps: the layer takes the one that is better over both."""
    model, supports = net
    short = {"short": supports["short"]}
    clock.us |= {(1, "toy-any"): 20.0, (1, "taps-fp32"): 40.0, (16, "toy-any"): 80.0, (16, "taps-fp32"): 25.0}
    drawn = plan(model, short, examples=examples(1, 16))
    assert [r.kernel for r in drawn.table] == ["taps-fp32", "taps-fp32"]
    assert isinstance(drawn.apply(model).short, SparseConv2d)


def test_dense_serves_the_maps_where_it_is_faster(clock, net, masked):
    model, supports = net
    clock.us |= {(1, "taps-fp32"): 10.0}
    drawn = plan(model, {"wide": supports["wide"]}, examples=examples(1, 16))
    assert drawn.rungs("wide") == [(0, "taps-fp32"), (81, "dense")]  # geometric mean of 20 and 320 positions
    assert [r.min_rows for r in drawn.table] == [0, 81]
    fast = drawn.apply(model)
    for x in examples(1, 16):
        close(fast(x), masked(model, {"wide": supports["wide"]})(x))


@pytest.mark.parametrize("batch", [None, 1])
def test_without_examples_larger_kernels_stay_dense(clock, net, batch):
    model, supports = net
    clock.us |= {"taps-fp32": 1.0, "toy-any": 50.0}
    rows = {r.site: r for r in plan(model, supports, batch=batch).rows}
    assert {name: r.kernel for name, r in rows.items()} == {
        "stem": "dense", "wide": "dense", "short": "toy-any", "head": "toy-any",
    }  # fmt: skip
    assert "the size of its maps is not known" in rows["stem"].reason and rows["stem"].us is None


def test_what_the_examples_do_not_reach_stays_dense(clock, net):
    model, supports = net
    clock.us |= {"taps-fp32": 1.0}
    model.forward = lambda x: model.stem(x)
    rows = {r.site: r for r in plan(model, supports, examples=examples(1)).rows}
    assert rows["stem"].kernel == "taps-fp32" and "inputs of the model that reach it" in rows["wide"].reason


def test_rows_and_examples_exclude_one_another(clock, net):
    model, supports = net
    with pytest.raises(KernelError, match="not both"):
        plan(model, supports, batch=1, examples=examples(1))
    with pytest.raises(KernelError, match="at least one"):
        plan(model, supports, examples=[])


def test_examples_of_one_size_are_one_case(clock, net):
    model, supports = net
    drawn = plan(model, supports, examples=examples(2, 2, 1))
    assert drawn.batches == (160, 80)


def test_the_size_of_the_maps_and_the_stride_are_part_of_what_is_remembered(clock, net):
    model, supports = net
    first = plan(model, {"wide": supports["wide"]}, examples=examples(1))
    heats = len(clock.calls)
    assert plan(model, {"wide": supports["wide"]}, examples=examples(1)) == first and len(clock.calls) == heats
    plan(model, {"wide": supports["wide"]}, examples=[torch.randn(1, 3, 8, 10)])
    assert len(clock.calls) > heats
    heats = len(clock.calls)
    model.wide.stride = (1, 1)
    model.forward = lambda x: model.wide(model.stem(x))
    plan(model, {"wide": supports["wide"]}, examples=examples(1))
    assert len(clock.calls) > heats


def test_the_pass_over_the_examples_leaves_no_trace(clock, net):
    model, supports = net
    model.train().head.eval()
    before = copy.deepcopy(model.state_dict())
    plan(model, supports, examples=examples(1))
    assert model.training and model.stem.training and not model.head.training
    assert not any(m._forward_pre_hooks for m in model.modules())
    assert all(torch.equal(v, model.state_dict()[k]) for k, v in before.items())


def test_a_prediction_times_no_convolution(clock, net):
    model, supports = net
    drawn = plan(model, supports, examples=examples(1), measure=False)
    assert not clock.calls and drawn.rows[0].kernel == "dense"
    assert "taps-fp32: its time is known only by measuring" in drawn.rows[0].reason


def test_plans_of_convolutions_are_saved_and_loaded(clock, net, masked, tmp_path):
    model, supports = net
    clock.us |= {(1, "taps-fp32"): 10.0, "toy-any": 50.0}
    drawn = plan(model, supports, examples=examples(1, 16))
    again = Plan.from_json(drawn.to_json())
    assert again == drawn
    student = masked(model, supports)
    fast = again.apply(model, supports)
    save(tmp_path / "plain", student, supports, plan=drawn)
    save(tmp_path / "packed", fast, supports, layout="packed", plan=drawn)
    (x,) = examples(3)
    for folder in ("plain", "packed"):
        loaded = sw.load(tmp_path / folder, model=Net(), planned=True)
        assert type(loaded.wide) is SparseConv2d and loaded.wide.rungs == [(0, "taps-fp32"), (81, "dense")]
        close(loaded(x), student(x))
    assert native() is None or sw.load(tmp_path / "packed", model=Net()).wide.support() == supports["wide"]
