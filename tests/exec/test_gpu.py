"""What a GPU changes in formats, ladders, measuring and planning, as far as it shows without one."""

from __future__ import annotations

import subprocess
import sys
from functools import partial

import pytest
import torch
from torch import nn
from torch.sparse import _semi_structured_conversions as torch_semi

from sparseworks.core.support import Support
from sparseworks.exec import FORMATS, KERNELS, Call, SparseLinear, measure, ops, plan
from sparseworks.exec import ceilings as ceilings_module
from sparseworks.exec.ceilings import Ceilings, ceilings
from sparseworks.exec.kernels import gpu
from sparseworks.exec.layers import layer_of, pack_for
from sparseworks.exec.race import candidates, race_key

GPU = [name for name, kernel in KERNELS.items() if isinstance(kernel, gpu.GpuKernel)]
FAKE = "Some GPU 80GB"


@pytest.fixture
def fake_gpu(monkeypatch):
    """Weights are said to lie on a GPU; kernels that need Triton or sparse tensor cores say they could run."""
    monkeypatch.setattr(measure, "device_name", lambda device: FAKE if device == "cuda" else device)
    monkeypatch.setattr("sparseworks.exec.layers.Call", lambda *a: Call(*a[:5], device="cuda"))
    monkeypatch.setattr(gpu, "why_missing", lambda: None)
    monkeypatch.setattr(gpu, "_no_sparse_tensor_cores", lambda: None)


def blocks(out: int, width: int, block: int, density: float = 0.5) -> Support:
    kept = torch.rand(out // block, width // block) < density
    return Support.from_mask(kept.repeat_interleave(block, 0).repeat_interleave(block, 1))


def two_of_four(out: int, width: int) -> Support:
    return Support.from_mask((torch.rand(out, width // 4, 4).argsort(-1) < 2).reshape(out, width))


# -- formats ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("block", [16, 32, 64, 128])
def test_blocks_are_as_large_as_the_support_allows(block):
    support = blocks(256, 384, block)
    support = support if support.count else Support.full((256, 384))
    while FORMATS.get("bsr").pack(torch.zeros(256, 384), support).meta["block"] > block:  # drawn together by chance
        support = blocks(256, 384, block)
    weight = torch.randn(256, 384)
    packed = FORMATS.get("bsr").pack(weight, support)
    assert packed.meta["block"] == block and packed.nbytes == FORMATS.get("bsr").nbytes(support)
    unpacked, again = FORMATS.get("bsr").unpack(packed)
    assert again == support and torch.equal(unpacked, weight * support.mask())


def test_blocks_refuse_what_they_would_have_to_fill():
    mask = blocks(64, 64, 16, 1.0).mask()
    mask[3, 5] = False
    assert "whole aligned blocks" in (FORMATS.get("bsr").refuses(Support.from_mask(mask)) or "")
    assert "whole aligned blocks" in (FORMATS.get("bsr").refuses(Support.full((24, 64))) or "")


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_semi_is_what_torch_compresses(dtype):
    """The values are those of torch's own compression, and its meta data give back the weight."""
    support, weight = two_of_four(64, 128), torch.randn(64, 128)
    packed = FORMATS.get("semi").pack(weight, support, dtype=dtype)
    dense, again = FORMATS.get("semi").unpack(packed)
    values, meta = torch_semi.sparse_semi_structured_from_dense_cutlass(dense)
    assert again == support
    assert torch.equal(packed.parts["values"][: 64 * 64].reshape(64, 64), values)
    assert torch.equal(
        torch_semi.sparse_semi_structured_to_dense_cutlass(values, meta), (weight * support.mask()).to(dtype)
    )


def test_semi_refuses_in_sentences():
    semi = FORMATS.get("semi")
    assert "multiples of 32 outputs" in (semi.refuses(two_of_four(16, 64)) or "")
    assert "do not all keep 2" in (semi.refuses(Support.full((32, 64))) or "")
    assert "float16" in (semi.refuses(two_of_four(32, 64), torch.float32) or "")


# -- kernels ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", GPU)
def test_refusals_are_sentences(name, monkeypatch):
    kernel = KERNELS.get(name)
    call = Call(4, (64, 64), 0.5, kernel.value_dtype)
    assert kernel.refuses(call) == "it runs on a GPU, not on the CPU"
    assert "not on mps" in kernel.refuses(Call(4, (64, 64), 0.5, kernel.value_dtype, device="mps"))
    there = partial(Call, 4, (64, 64), 0.5, device="cuda")
    assert "the input float64" in kernel.refuses(there(torch.float64))
    monkeypatch.setattr(gpu, "why_missing", lambda: "Triton is not installed")
    monkeypatch.setattr(gpu, "_no_sparse_tensor_cores", lambda: "torch sees no GPU")
    assert kernel.refuses(there(kernel.value_dtype)) in ("Triton is not installed", "torch sees no GPU")


def test_sparse_tensor_cores_need_ampere(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    for found, refused in (((7, 5), True), ((8, 0), False), ((9, 0), False)):
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda found=found: found)
        said = gpu._no_sparse_tensor_cores.__wrapped__()
        assert (said is not None) == refused
        assert said is None or "7.5" in said
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert gpu._no_sparse_tensor_cores.__wrapped__() == "torch sees no GPU"


def test_neither_importing_nor_a_sparse_layer_on_the_cpu_imports_triton():
    code = """
import sys, torch, sparseworks as sw
from torch import nn
from sparseworks.exec import KERNELS, SparseLinear
layer = SparseLinear.from_linear(nn.Linear(64, 32), sw.Support.full((32, 64)), kernel="csr16-fp32")
layer(torch.ones(2, 64))
assert "bsr-gpu-bf16" in KERNELS
assert "triton" not in sys.modules and "sparseworks.exec.triton.blocks" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", code], check=True)


# -- ladder and layers ------------------------------------------------------------------------------------------------


def test_a_layer_on_the_meta_device_has_shapes():
    layer = SparseLinear.from_linear(nn.Linear(24, 16), Support.full((16, 24)), kernel="csr16-fp32")
    x = torch.randn(5, 24)
    expected = layer(x)
    assert layer.to("meta")(x.to("meta")).shape == (5, 16)
    again = SparseLinear.from_linear(nn.Linear(24, 16), Support.full((16, 24)), kernel="csr16-fp32")
    assert again(x).device == expected.device  # the route of one device is not taken on another


def test_a_packed_layer_lies_where_its_weight_lay(monkeypatch):
    linear, moved = nn.Linear(24, 16), []
    to = SparseLinear.to
    monkeypatch.setattr(SparseLinear, "to", lambda self, device: moved.append(device) or to(self, device))
    pack_for(layer_of(linear), Support.full((16, 24)), [(0, "dense")])
    assert moved == [linear.weight.device]


def test_autocast_on_a_gpu_multiplies_in_the_short_type():
    layer = SparseLinear.from_linear(nn.Linear(24, 16), Support.full((16, 24)), kernel="dense")
    form, x = layer.forms[0], torch.randn(3, 24)
    arguments = (layer.bias, list(form.parts.values()), layer._spec, 16, 24)
    short = torch.get_autocast_dtype("cuda")
    assert ops._autocast("cuda")(x, *arguments).dtype is short
    assert ops._autocast("cuda")(x.double(), *arguments).dtype is torch.float64


# -- measuring and planning -------------------------------------------------------------------------------------------


def test_blocks_of_calls_begin_and_end_with_an_idle_gpu(monkeypatch):
    events = []
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: events.append("wait"))
    measure.compare({"it": lambda: events.append("call")}, rounds=2, warmup=1, block_us=0.0, device="cuda")
    assert events[::3] == events[2::3] == ["wait"] * (len(events) // 3) and events[1::3] == ["call"] * (
        len(events) // 3
    )
    events.clear()
    measure.compare({"it": lambda: events.append("call")}, rounds=2, warmup=1, block_us=0.0)
    assert set(events) == {"call"}


def test_ceilings_are_kept_per_gpu_and_type(monkeypatch):
    asked = []

    def measured(size, dtype):
        asked.append(dtype)
        return Ceilings(3e12, 1e15, 1, size)

    monkeypatch.setattr(ceilings_module, "gpu_ceilings", measured)
    for name in ("A", "B"):
        monkeypatch.setattr(measure, "device_name", lambda device, name=name: f"{FAKE} {name}")
        for dtype in (torch.bfloat16, torch.float32, torch.bfloat16):
            assert ceilings(working_set=1 << 22, device="cuda", dtype=dtype).bandwidth == 3e12
    assert asked == [torch.bfloat16, torch.float32] * 2


def test_candidates_on_a_gpu(fake_gpu):
    call = Call(8, (64, 128), 0.5, torch.bfloat16, device="cuda")
    taken, refused = candidates(blocks(64, 128, 16), call, (torch.bfloat16,))
    assert taken == ["bitmask-gpu-bf16", "csr16-gpu-bf16", "inmajor-gpu-bf16", "bsr-gpu-bf16"]
    assert refused["csr16-bf16"] == "it runs on the CPU, not on cuda" and "4 consecutive" in refused["semi-gpu-bf16"]
    assert "semi-gpu-bf16" in candidates(two_of_four(64, 128), call, (torch.bfloat16,))[0]
    on_cpu, _ = candidates(blocks(64, 128, 16), Call(8, (64, 128), 0.5, torch.bfloat16), (torch.bfloat16,))
    assert not set(on_cpu) & set(GPU)


def test_a_race_on_one_gpu_says_nothing_about_another(monkeypatch):
    layer, support = layer_of(nn.Linear(32, 16)), Support.full((16, 32))
    keys = set()
    for name in ("A", "B", "A"):
        monkeypatch.setattr(measure, "device_name", lambda device, name=name: name)
        call = Call(1, (16, 32), 1.0, device="cuda")
        keys.add(race_key(layer, support, ["dense-bf16"], call, working_set=1 << 20, rounds=5))
    assert len(keys) == 2


@pytest.mark.parametrize("fastest", ["bsr-gpu-bf16", "bitmask-gpu-bf16", "dense"])
def test_the_planner_takes_what_was_fastest_on_the_gpu(fastest, fake_gpu, monkeypatch):
    limits = []
    monkeypatch.setattr(
        "sparseworks.exec.draw.ceilings", lambda **o: limits.append(o) or Ceilings(3e12, 1e15, 1, 1 << 22)
    )

    def compare(contenders, **_):
        for run in contenders.values():
            assert run().shape == (4, 64)
        us = {"dense": 10.0, fastest: 5.0}
        return measure.Comparison({name: measure.Timing.of([us.get(name, 50.0)] * 5) for name in contenders})

    monkeypatch.setattr(measure, "compare", compare)
    model = nn.Sequential(nn.Linear(128, 64, dtype=torch.bfloat16))
    drawn = plan(model, {"0": blocks(64, 128, 16)}, batch=4, cache=False)
    assert drawn.rows[0].kernel == fastest
    assert limits == [
        {"working_set": limits[0]["working_set"], "cache": False, "device": "cuda", "dtype": torch.bfloat16}
    ]
