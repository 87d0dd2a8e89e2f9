"""The registered kernels around the Triton functions: equal to their reference, damaged buffers refused, sparse layers on top."""

from __future__ import annotations

import gc
import weakref

import pytest
import torch
from torch import nn

from sparseworks.core.errors import KernelError
from sparseworks.core.support import Support
from sparseworks.exec import FORMATS, KERNELS, SparseLinear
from sparseworks.exec.format import Packed
from sparseworks.exec.kernels.gpu import GpuKernel
from sparseworks.exec.triton import bitmap, blocks, launch  # noqa: F401  kernels are decorated once, before a test changes anything

NAMES = [n for n, k in KERNELS.items() if isinstance(k, GpuKernel) and k.format != "semi"]


def support_for(name: str, rows: int = 2, cols: int = 3, density: float = 0.5) -> Support:
    """Whole blocks of 16: every format takes them."""
    kept = torch.rand(rows, cols, generator=torch.Generator().manual_seed(3)) < density
    return Support.from_mask(kept.repeat_interleave(16, 0).repeat_interleave(16, 1))


def packed_for(name: str, support: Support, device: str) -> Packed:
    kernel, weight = KERNELS.get(name), torch.randn(support.shape)
    weight = weight.where(support.mask(), torch.tensor(float("nan")))
    return FORMATS.get(kernel.format).pack(weight, support, dtype=kernel.value_dtype).to(device)


@pytest.mark.parametrize("name", NAMES)
def test_equals_its_reference(name, device, close):
    kernel, packed = KERNELS.get(name), packed_for(name, support_for(name), device)
    bias = torch.randn(32, device=device).to(kernel.value_dtype)
    for rows, b in ((0, None), (0, bias), (1, None), (8, bias)):
        x = torch.randn(rows, 48, device=device).to(kernel.value_dtype)
        close(kernel(x, packed, b), kernel.reference(x, packed, b))


@pytest.mark.parametrize("name", NAMES)
def test_computes_by_itself(name, device, close, monkeypatch):
    kernel, packed = KERNELS.get(name), packed_for(name, support_for(name), device)
    x = torch.randn(3, 48, device=device).to(kernel.value_dtype)
    expected = kernel.reference(x, packed, None)

    def forbidden(*_, **__):
        raise AssertionError(f"{name} does not multiply with the packed form")

    monkeypatch.setattr(type(kernel), "reference", forbidden)
    monkeypatch.setattr(type(FORMATS.get(kernel.format)), "unpack", forbidden)
    close(kernel(x, packed, None), expected)


def damages(packed: Packed):
    for name, t in packed.parts.items():
        if name == "bits" and packed.format == "inmajor":  # never followed
            continue
        yield {**packed.parts, name: t.reshape(-1)[:-1].clone()}
        yield {**packed.parts, name: t.double()}
        if name in ("ptr", "columns", "bits"):
            for wrong in (-1, 100):
                wild = t.clone()
                wild.view(-1)[-1] = wrong if t.dtype is not torch.uint8 else 255
                yield {**packed.parts, name: wild}


@pytest.mark.parametrize("name", [n for n in NAMES if n.endswith("bf16")])
def test_damaged_buffers_are_never_followed(name, device):
    kernel, packed = KERNELS.get(name), packed_for(name, support_for(name, density=0.3), device)
    x = torch.zeros(2, 48, device=device).to(kernel.value_dtype)
    kernel(x, packed, None)
    for parts in damages(packed):
        with pytest.raises(KernelError, match="damaged"):
            kernel(x, Packed(packed.format, packed.shape, packed.dtype, parts, packed.meta), None)
    if "block" in packed.meta:
        with pytest.raises(KernelError, match="damaged"):
            kernel(
                x,
                Packed(
                    packed.format,
                    packed.shape,
                    packed.dtype,
                    packed_for(name, support_for(name), device).parts,
                    {"block": 24},
                ),
                None,
            )


@pytest.mark.parametrize("name", NAMES)
def test_wrong_inputs_raise(name, device):
    kernel, packed = KERNELS.get(name), packed_for(name, support_for(name), device)
    good = torch.zeros(2, 48, device=device).to(kernel.value_dtype)
    for x, bias in [(good[:, :40].contiguous(), None), (good[0], None), (good.double(), None), (good, good[0])]:
        with pytest.raises(KernelError, match="takes a contiguous"):
            kernel(x, packed, bias)


def test_outside_the_interpreter_addresses_on_the_cpu_are_not_followed(monkeypatch):
    packed = packed_for("bitmask-gpu-fp32", support_for("bitmask-gpu-fp32"), "cpu")
    monkeypatch.setattr(launch, "INTERPRETED", False)
    with pytest.raises(KernelError, match="runs on a GPU"):
        KERNELS.get("bitmask-gpu-fp32")(torch.zeros(1, 48), packed, None)


def test_a_layer_on_blocks_trains_its_input_and_bias(device, close):
    linear, support = nn.Linear(48, 32), support_for("bsr-gpu-fp32")
    layer = SparseLinear.from_linear(linear, support, kernel="bsr-gpu-fp32").to(device)
    weight = (linear.weight.detach() * support.mask()).to(device)
    x = torch.randn(4, 48, device=device, requires_grad=True)
    y = layer(x)
    y.square().sum().backward()
    close(y.detach(), (x @ weight.T + linear.bias.to(device)).detach())
    close(x.grad, (2 * y @ weight).detach())
    assert torch.equal(layer.dense_weight(), weight) and layer.support() == support


def test_weights_go_when_their_layer_goes(device):
    """One collection for all kernels: it takes longer than all of their calls."""
    parts = {}
    for name in NAMES:
        kernel, packed = KERNELS.get(name), packed_for(name, support_for(name), device)
        kernel(torch.zeros(1, 48, device=device).to(kernel.value_dtype), packed, None)
        parts[name] = [weakref.ref(t) for t in packed.parts.values()]
        del packed
    gc.collect()
    assert not [name for name, refs in parts.items() if any(part() is not None for part in refs)]
