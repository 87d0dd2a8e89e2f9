"""The ladder: one string that says which kernel reads which form from how many rows on, and what happens when it cannot."""

from __future__ import annotations

import json

import pytest
import torch

from sparseworks.core.errors import KernelError, UnknownNameError
from sparseworks.exec import FORMATS, KERNELS, Call
from sparseworks.exec import ladder as ladder_module
from sparseworks.exec.ladder import Ladder, Rung, ladder, refusal, write_spec

pytestmark = pytest.mark.usefixtures("toys")


@pytest.fixture
def weight():
    return torch.randn(8, 12)


@pytest.fixture
def support(random_support):
    return random_support(8, 12, 0.5)


@pytest.fixture
def forms(weight, support):
    return {name: FORMATS.get(name).pack(weight, support) for name in ("toy", "wide", "dense")}


def parts_of(packed):
    return [t for form in packed for t in form.parts.values()]


def test_spec_carries_everything(forms, weight, support):
    spec, packed = write_spec([Rung(0, "toy-few", forms["toy"]), Rung(65, "dense", forms["dense"])], 0.5)
    assert packed == [forms["toy"], forms["dense"]]
    parsed = Ladder(spec)
    assert [(least, kernel.name, form.format) for least, kernel, form in parsed.rungs] == [
        (0, "toy-few", "toy"),
        (65, "dense", "dense"),
    ]
    assert (parsed.shape, parsed.density) == ((8, 12), 0.5)
    assert ladder(spec) is ladder(spec)
    expected = weight * support.mask()
    for rows in (1, 64, 65, 1000):
        grad = torch.eye(8).repeat(125, 1)[:rows]
        assert torch.equal(parsed.input_gradient(grad, parts_of(packed)), (grad @ expected))
        assert parsed.rung(rows)[1].format == ("toy" if rows < 65 else "dense")


def test_one_form_read_by_two_kernels_is_stored_once(forms):
    spec, packed = write_spec([Rung(0, "toy-few", forms["toy"]), Rung(9, "toy-any", forms["toy"])], 0.5)
    assert len(packed) == 1 and [form for _, _, form in json.loads(spec)["rungs"]] == [0, 0]


@pytest.mark.parametrize("shape", [(12,), (1, 12), (5, 12), (2, 3, 12), (0, 12), (2, 0, 12)])
def test_any_leading_dimensions(forms, weight, support, shape):
    spec, packed = write_spec([Rung(0, "toy-few", forms["toy"]), Rung(4, "wide-any", forms["wide"])], 0.5)
    x, bias = torch.randn(shape), torch.randn(8)
    expected = torch.nn.functional.linear(x, weight * support.mask(), bias)
    torch.testing.assert_close(Ladder(spec)(x, bias, parts_of(packed)), expected)


def counted(monkeypatch, *names):
    """Which kernels ran."""
    ran = []
    for name in names:
        kernel = KERNELS.get(name)
        monkeypatch.setattr(
            kernel, "__class__", type("Spy", (type(kernel),), {"__call__": _spy(ran, name, type(kernel))})
        )
    return ran


def _spy(ran, name, kind):
    def run(self, x, packed, bias):
        ran.append(name)
        return kind.__call__(self, x, packed, bias)

    return run


def test_the_rows_choose_the_rung(forms, monkeypatch):
    ran = counted(monkeypatch, "toy-few", "wide-any")
    spec, packed = write_spec([Rung(0, "toy-few", forms["toy"]), Rung(4, "wide-any", forms["wide"])], 0.5)
    run = Ladder(spec)
    for rows in (1, 3, 4, 50):
        run(torch.randn(rows, 12), None, parts_of(packed))
    assert ran == ["toy-few", "toy-few", "wide-any", "wide-any"]


def test_a_refused_call_goes_to_another_rung(forms, weight, support, monkeypatch):
    ran = counted(monkeypatch, "toy-few", "wide-any")
    spec, packed = write_spec([Rung(0, "wide-any", forms["wide"]), Rung(4, "toy-few", forms["toy"])], 0.5)
    x = torch.randn(100, 12)  # toy-few takes up to 64 rows
    torch.testing.assert_close(Ladder(spec)(x, None, parts_of(packed)), x @ (weight * support.mask()).T)
    assert ran == ["wide-any"]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
def test_types_no_kernel_takes_are_still_multiplied(forms, weight, support, dtype):
    spec, packed = write_spec([Rung(0, "toy-few", forms["toy"])], 0.5)
    x, bias = torch.randn(100, 12).to(dtype), torch.randn(8)
    y = Ladder(spec)(x, bias, parts_of(packed))
    wide = torch.promote_types(dtype, torch.float32)
    expected = torch.nn.functional.linear(x.to(wide), (weight * support.mask()).to(wide), bias.to(wide))
    assert y.dtype == dtype
    torch.testing.assert_close(y, expected.to(dtype))


def test_half_precision_inputs_are_widened_for_a_float32_kernel(forms, monkeypatch):
    ran = counted(monkeypatch, "toy-any")
    kernel = KERNELS.get("toy-any")
    call = Call(1, (8, 12), dtype=torch.bfloat16)
    assert kernel.refuses(call) and refusal(kernel, call) is None
    assert "float64" in str(refusal(kernel, Call(1, (8, 12), dtype=torch.float64)))
    spec, packed = write_spec([Rung(0, "toy-any", forms["toy"])], 0.5)
    assert Ladder(spec)(torch.randn(3, 12).bfloat16(), None, parts_of(packed)).dtype == torch.bfloat16
    assert ran == ["toy-any"]


def test_non_contiguous_inputs(forms, weight, support):
    spec, packed = write_spec([Rung(0, "toy-any", forms["toy"])], 0.5)
    x = torch.randn(12, 5).T
    torch.testing.assert_close(Ladder(spec)(x, None, parts_of(packed)), x @ (weight * support.mask()).T)


def test_memory_of_routes_is_bounded(forms, monkeypatch):
    monkeypatch.setattr(ladder_module, "_MAX_ROUTES", 4)
    spec, packed = write_spec([Rung(0, "toy-any", forms["toy"])], 0.5)
    run = Ladder(spec)
    for rows in range(1, 12):
        assert run(torch.randn(rows, 12), None, parts_of(packed)).shape == (rows, 8)
    assert len(run._routes) <= 4


def test_bad_ladders_are_refused(forms, random_support):
    toy = forms["toy"]
    other = FORMATS.get("toy").pack(torch.randn(8, 16), random_support(8, 16, 0.5))
    for rungs, message in (
        ([], "ascending order"),
        ([Rung(2, "toy-any", toy)], "the first at 0 or 1"),
        ([Rung(0, "toy-any", toy), Rung(0, "toy-few", toy)], "ascending order"),
        ([Rung(0, "wide-any", toy)], "reads 'wide', not 'toy'"),
        ([Rung(0, "toy-any", toy), Rung(4, "toy-any", other)], "differ in shape"),
    ):
        with pytest.raises(KernelError, match=message):
            write_spec(rungs, 0.5)
    with pytest.raises(UnknownNameError, match="Did you mean 'toy-any'"):
        write_spec([Rung(0, "toy-an", toy)], 0.5)


@pytest.mark.parametrize(
    "damage",
    [
        lambda s: "",
        lambda s: s[: len(s) // 2],
        lambda s: "[]",
        lambda s: s.replace('"shape":[8,12]', '"shape":[8]'),
        lambda s: s.replace("float32", "float31"),
        lambda s: s.replace('"rungs":[[0,"toy-any",0]]', '"rungs":[[0,"toy-any",7]]'),
        lambda s: s.replace('"rungs":[[0,"toy-any",0]]', '"rungs":[[0,"toy-any",-1]]'),
        lambda s: s.replace('"rungs":[[0,"toy-any",0]]', '"rungs":[]'),
        lambda s: s.replace('"forms"', '"form"'),
    ],
)
def test_damaged_spec(forms, damage):
    spec, _ = write_spec([Rung(0, "toy-any", forms["toy"])], 0.5)
    assert damage(spec) != spec
    with pytest.raises(KernelError, match="Not a kernel ladder"):
        ladder(damage(spec))


def test_unknown_kernel_in_a_spec(forms):
    spec, _ = write_spec([Rung(0, "toy-any", forms["toy"])], 0.5)
    with pytest.raises(UnknownNameError, match="kernel 'toy-fast'"):
        ladder(spec.replace("toy-any", "toy-fast"))
