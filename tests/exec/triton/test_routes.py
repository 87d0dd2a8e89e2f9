"""What users call reaches these kernels where tensors lie on a GPU. Without one, the question is answered as a GPU would."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import sparseworks as sw
from sparseworks.core.errors import NonFiniteError
from sparseworks.core.support import Support
from sparseworks.exec import FORMATS, KERNELS
from sparseworks.exec.attention import blocks
from sparseworks.exec.codes import encode
from sparseworks.exec.kernels.gpu import GpuKernel
from sparseworks.exec.skipping import SkippingLinear


@pytest.fixture
def as_on_gpu(monkeypatch):
    """The CPU's tensors are taken for a GPU's, and the CPU's ways are closed."""
    for place in ("attention.blocks", "codes.encode", "skipping"):
        monkeypatch.setattr(f"sparseworks.exec.{place}.on_gpu", lambda x: True)
    monkeypatch.setattr("sparseworks.exec.attention.blocks._runs", lambda *_: False)
    monkeypatch.setattr(GpuKernel, "refuses", lambda self, call: None)


def forbid(monkeypatch, owner, name: str) -> None:
    def forbidden(*_, **__):
        raise AssertionError(f"{name} was asked")

    monkeypatch.setattr(owner, name, forbidden)


@pytest.mark.parametrize("causal", [False, True])
def test_attend(causal, device, close, monkeypatch, as_on_gpu):
    q, k, v = torch.randn(2, 4, 70, 32), torch.randn(2, 2, 90, 32), torch.randn(2, 2, 90, 32)
    support = Support.from_mask(torch.rand(2, 4, 5, 6) < 0.5)
    lists = blocks.block_lists(support, 2, 4, 5, 6, causal)
    expected = blocks.attend_rows(q, k, v, *lists, 16, causal, 32**-0.5)
    forbid(monkeypatch, blocks, "attend_rows")
    q, k, v = (t.to(device).requires_grad_() for t in (q, k, v))
    out, lse = sw.attend(q, k, v, support, block=16, causal=causal, return_lse=True)
    close(out.detach(), expected[0])
    close(lse.detach().cpu().nan_to_num(neginf=0.0), expected[1].nan_to_num(neginf=0.0))
    out.sum().backward()  # the backward takes the kernel's log sums
    assert torch.isfinite(q.grad).all() and bool(q.grad.any())


def test_topk_encoder(device, monkeypatch, as_on_gpu):
    x, weight, bias = (
        torch.randn(5, 12, device=device),
        torch.randn(40, 12, device=device),
        torch.randn(40, device=device),
    )
    expected = (x @ weight.T + bias).relu().sort(dim=1, descending=True, stable=True)
    forbid(monkeypatch, encode, "_reference")
    forbid(monkeypatch, encode, "_fast")
    codes = encode.encode_topk(x, weight, bias, 6)
    assert torch.equal(codes.indices, expected.indices[:, :6])
    torch.testing.assert_close(codes.values, expected.values[:, :6])
    with pytest.raises(NonFiniteError, match="NaN"):
        encode.encode_topk(x.where(x < 1, float("nan")), weight, bias, 6)


@pytest.mark.parametrize("rule", [{"threshold": 0.5}, {"keep": 9}, {"keep": 9, "exact": False}])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("kept", [1.0, 0.4])
def test_skipping_layer(kept, rule, dtype, device, monkeypatch, as_on_gpu):
    """Also one whose dropped weights the CPU would not read: it is packed anew when it comes to the GPU."""
    support = Support.from_mask(torch.rand(24, 40) < kept)
    layer = SkippingLinear.from_linear(nn.Linear(40, 24), support, dtype=dtype, **rule)
    assert layer.packed.format == ("inmajor" if kept == 1 or dtype is torch.float16 else "inbits")
    layer = layer.to(device)
    assert layer.packed.format == "inmajor" and layer.packed.unpack()[1] == support
    x = torch.randn(3, 40, device=device).to(dtype)
    weight = FORMATS.get("inmajor").unpack(layer.packed.to("cpu"))[0].to(device)
    expected = layer.kept(x).double() @ weight.double().T + layer.bias.double()
    forbid(monkeypatch, SkippingLinear, "_dense")
    with torch.no_grad():
        y = layer(x)
    assert y.dtype is dtype
    assert float((y.double() - expected).abs().max()) < {torch.float32: 1e-5}.get(dtype, 0.02) * float(
        expected.abs().max()
    )


def test_the_gradient_of_a_layer_of_blocks_comes_from_its_blocks(device, close, monkeypatch, as_on_gpu):
    kernel = KERNELS.get("bsr-gpu-fp32")
    support = Support.from_mask((torch.rand(2, 3) < 0.6).repeat_interleave(16, 0).repeat_interleave(16, 1))
    packed = FORMATS.get("bsr").pack(torch.randn(32, 48), support).to(device)
    grad = torch.randn(5, 32, device=device)
    expected = grad.double() @ packed.to("cpu").unpack()[0].double().to(device)
    forbid(monkeypatch, type(FORMATS.get("bsr")), "unpack")
    close(kernel.input_gradient(grad, packed), expected.float())
