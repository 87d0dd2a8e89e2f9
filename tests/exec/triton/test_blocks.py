from __future__ import annotations

import pytest
import torch

from sparseworks.core.errors import DtypeError, KernelError, ShapeError
from sparseworks.exec.triton.blocks import Layout, block_linear, block_linear_dw, block_linear_dx


class Case:
    """A weight of kept blocks, dense and packed."""

    def __init__(self, block: int, kept: torch.Tensor, dtype: torch.dtype, device: str):
        out, width = (s * block for s in kept.shape)
        self.mask = kept.repeat_interleave(block, 0).repeat_interleave(block, 1)
        self.dense = (torch.randn(out, width).to(dtype) * self.mask).to(device)
        tiles = self.dense.reshape(kept.shape[0], block, kept.shape[1], block).transpose(1, 2)
        self.blocks = tiles[kept.to(device)].contiguous()
        counts = torch.cat([torch.zeros(1, dtype=torch.long), kept.sum(1).cumsum(0)])
        self.layout = Layout.of((out, width), block, counts.to(device), kept.nonzero()[:, 1].to(device))


def kept(rows: int, cols: int, density: float) -> torch.Tensor:
    mask = torch.rand(rows, cols) < density
    mask[rows // 2] = False  # an empty line of blocks
    return mask


CASES = [(16, 5, 3, 0.5), (32, 3, 2, 0.6), (64, 2, 3, 0.6), (128, 2, 2, 0.8), (16, 3, 3, 0.0)]


@pytest.mark.parametrize("block, r, c, density", CASES)
def test_product_and_gradients_equal_dense(block, r, c, density, dtype, device, close):
    case = Case(block, kept(r, c, density), dtype, device)
    weight, (out, width) = case.dense.double(), case.layout.shape
    for rows in (0, 1, 37):
        x, dy = (torch.randn(rows, n, device=device).to(dtype) for n in (width, out))
        bias = torch.randn(out, device=device).to(dtype)
        close(block_linear(x, case.blocks, case.layout), (x.double() @ weight.T).to(dtype))
        close(block_linear(x, case.blocks, case.layout, bias), (x.double() @ weight.T + bias.double()).to(dtype))
        close(block_linear_dx(dy, case.blocks, case.layout), (dy.double() @ weight).to(dtype))
        full = (dy.double().T @ x.double()).reshape(r, block, c, block).transpose(1, 2)
        lines, columns = case.layout.lines.long(), case.layout.columns.long()
        close(block_linear_dw(dy, x, case.layout), full[lines, columns].to(dtype))


def test_all_blocks_kept_is_the_dense_product(device, close):
    case = Case(32, torch.ones(4, 3, dtype=torch.bool), torch.float32, device)
    x = torch.randn(150, 96, device=device)
    close(block_linear(x, case.blocks, case.layout), x @ case.dense.T)


@pytest.mark.filterwarnings("ignore:Attempting to run cuBLAS:UserWarning")  # torch's thread of the backward pass
def test_gradients_agree_with_autograd(device, close):
    case = Case(16, kept(4, 3, 0.5), torch.float32, device)
    x, w = torch.randn(10, 48, device=device, requires_grad=True), case.dense.clone().requires_grad_()
    dy = torch.randn(10, 64, device=device)
    (x @ (w * case.mask.to(device)).T).backward(dy)
    close(block_linear_dx(dy, case.blocks, case.layout), x.grad)
    tiles = w.grad.reshape(4, 16, 3, 16).transpose(1, 2)
    close(block_linear_dw(dy, x.detach(), case.layout), tiles[case.layout.lines.long(), case.layout.columns.long()])


@pytest.mark.filterwarnings("ignore:Attempting to run cuBLAS:UserWarning")
def test_a_product_trains_its_blocks(device, close):
    case = Case(16, kept(4, 3, 0.5), torch.float32, device)
    x, bias = torch.randn(10, 48, device=device, requires_grad=True), torch.randn(64, device=device, requires_grad=True)
    blocks, dense = case.blocks.clone().requires_grad_(), case.dense.clone().requires_grad_()
    dy = torch.randn(10, 64, device=device)
    block_linear(x, blocks, case.layout, bias).backward(dy)
    dx, db = x.grad, bias.grad
    x.grad = bias.grad = None
    (x @ (dense * case.mask.to(device)).T + bias).backward(dy)
    tiles = dense.grad.reshape(4, 16, 3, 16).transpose(1, 2)[case.layout.lines.long(), case.layout.columns.long()]
    close(blocks.grad, tiles)
    close(dx, x.grad)
    close(db, bias.grad)


def test_float32_inputs_of_half_precision_blocks_are_not_rounded(device, close):
    case = Case(16, kept(4, 3, 0.5), torch.bfloat16, device)
    x = torch.randn(5, 48, device=device)
    close(block_linear(x, case.blocks, case.layout), (x.double() @ case.dense.double().T).float())


def test_refusals(device):
    case = Case(16, kept(2, 2, 0.5), torch.float32, device)
    x = torch.zeros(3, 32, device=device)
    with pytest.raises(ShapeError, match="do not fit"):
        block_linear(x[:, :16].contiguous(), case.blocks, case.layout)
    with pytest.raises(ShapeError, match="divide"):
        Layout.of((24, 32), 16, case.layout.ptr, case.layout.columns)
    with pytest.raises(ShapeError, match="multiplied"):
        Layout.of((24, 24), 8, case.layout.ptr, case.layout.columns)
    with pytest.raises(KernelError, match="contiguous"):
        block_linear(x.T.contiguous().T, case.blocks, case.layout)
    with pytest.raises(DtypeError, match="one type"):
        block_linear_dw(x.half(), x, case.layout)
    with pytest.raises(ShapeError, match="do not fit"):
        block_linear_dw(x, x[:2], case.layout)
