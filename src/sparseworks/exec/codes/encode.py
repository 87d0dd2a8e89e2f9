"""Encoder products of which only the k largest of each row are kept: no more than a tile of them ever exists."""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from sparseworks.core.ahead import is_ahead
from sparseworks.core.codes import Codes
from sparseworks.core.errors import BudgetError, DtypeError, NonFiniteError, ShapeError
from sparseworks.exec.format import FLOATS
from sparseworks.exec.native import native
from sparseworks.exec.triton import on_gpu

_ROWS, _LATENTS = 256, 2048  # a tile of 2 MiB
MOST_ON_GPU = 512


def encode_topk(
    x: Float[Tensor, "rows features"],
    weight: Float[Tensor, "latents features"],
    bias: Float[Tensor, " latents"] | None,
    k: int,
    relu: bool = True,
) -> Codes:
    """The k largest of relu(x W^T + b) in each row, best first, ties to the lower latent; differentiable in x, W and b.

    Products are made tile by tile, so memory does not grow with the number of latents; on a GPU for some rows at a time (up to 256 MiB).

    Raises:
        ShapeError: sizes that do not fit together.
        DtypeError: operands of different types or devices.
        BudgetError: k is not in 0..latents.
        NonFiniteError: NaN among the products, or infinity among those kept.

    Source: Makhzani and Frey, 2013 (arXiv 1312.5663); Gao et al., 2024 (arXiv 2406.04093).
    """
    _check(x, weight, bias, k)
    values, indices = _Encode.apply(x, weight, bias, k, relu)
    return Codes.unchecked(values, indices, len(weight))


class _Encode(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, k: int, relu: bool) -> tuple[Tensor, Tensor]:
        values, indices = _encode(x, weight, bias, k, relu)
        ctx.save_for_backward(x, weight, values, indices)
        ctx.relu = relu
        ctx.mark_non_differentiable(indices)
        return values, indices

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor, _: Tensor | None) -> tuple[Tensor | None, ...]:
        x, weight, values, indices = ctx.saved_tensors
        if ctx.relu:
            grad = grad * (values > 0)
        grad = grad.contiguous()
        dx = dw = db = None
        if ctx.needs_input_grad[0]:
            dx = torch.ops.sparseworks.decode(grad, indices, weight.contiguous(), None)
        if ctx.needs_input_grad[1]:
            dw = torch.ops.sparseworks.decode_dictionary(x.contiguous(), grad, indices, len(weight))
        if ctx.needs_input_grad[2]:
            db = grad.new_zeros(len(weight)).index_add(0, indices.flatten(), grad.flatten())
        return dx, dw, db, None, None


def _encode(
    x: Tensor, weight: Tensor, bias: Tensor | None, k: int, relu: bool
) -> tuple[Float[Tensor, "rows k"], Int[Tensor, "rows k"]]:
    if on_gpu(x) and x.dtype in FLOATS and k <= MOST_ON_GPU:
        from sparseworks.exec.triton.topk import topk_encode

        values, indices = topk_encode(
            x.contiguous(), weight.contiguous(), None if bias is None else bias.contiguous(), k, relu
        )
        return _finite(values), indices
    values = x.new_empty(len(x), k)
    indices = torch.empty(len(x), k, dtype=torch.long, device=x.device)
    if k and len(x):
        module = native()
        fast = module is not None and x.is_cpu and x.dtype is torch.float32
        for first in range(0, len(x), _ROWS):
            rows = slice(first, first + _ROWS)
            if fast:
                _fast(module, x[rows], weight, bias, relu, values[rows], indices[rows])
            else:
                _reference(x[rows], weight, bias, relu, values[rows], indices[rows])
    return _finite(values), indices


def _finite(values: Tensor) -> Tensor:
    if not is_ahead() and not bool(torch.isfinite(values).all()):
        raise NonFiniteError("Products of the encoder hold NaN or infinity: check the input, the weight and the bias.")
    return values


def _fast(
    module: Any, x: Tensor, weight: Tensor, bias: Tensor | None, relu: bool, values: Tensor, indices: Tensor
) -> None:
    bad = torch.zeros(1, dtype=torch.int32)
    rows, (latents, k) = len(x), (len(weight), values.shape[1])
    room = x.new_empty(rows * min(_LATENTS, latents))
    for first in range(0, latents, _LATENTS):
        part = weight[first : first + _LATENTS]
        tile = room[: rows * len(part)].view(rows, len(part))
        if bias is None:
            torch.mm(x, part.T, out=tile)
        else:
            torch.addmm(bias[first : first + _LATENTS], x, part.T, out=tile)
        last = first + _LATENTS >= latents
        module.codes_offer(
            tile.data_ptr(), rows, len(part), first, k, min(first, k), relu, last, values.data_ptr(), indices.data_ptr(),
            bad.data_ptr(), torch.get_num_threads(),
        )  # fmt: skip
    if int(bad):
        values.fill_(torch.nan)
        indices.zero_()


def _reference(x: Tensor, weight: Tensor, bias: Tensor | None, relu: bool, values: Tensor, indices: Tensor) -> None:
    """Merges each tile into the best so far; a stable sort keeps the lower latent first."""
    k = values.shape[1]
    best, at = x.new_empty(len(x), 0), indices.new_empty(len(x), 0)
    for first in range(0, len(weight), _LATENTS):
        tile = torch.nn.functional.linear(
            x, weight[first : first + _LATENTS], None if bias is None else bias[first : first + _LATENTS]
        )
        tile = tile.relu() if relu else tile
        if not is_ahead() and bool(tile.isnan().any()):
            values.fill_(torch.nan)
            indices.zero_()
            return
        ids = torch.arange(first, first + tile.shape[1], device=x.device).expand_as(tile)
        best, at = torch.cat([best, tile], 1), torch.cat([at, ids], 1)
        order = best.argsort(dim=1, descending=True, stable=True)[:, :k]
        best, at = best.gather(1, order), at.gather(1, order)
    values.copy_(best)
    indices.copy_(at)


def _check(x: Tensor, weight: Tensor, bias: Tensor | None, k: int) -> None:
    if x.dim() != 2 or weight.dim() != 2 or x.shape[1] != weight.shape[1]:
        raise ShapeError(
            f"Inputs {tuple(x.shape)} and weight {tuple(weight.shape)} must be matrices that share the last axis."
        )
    if bias is not None and bias.shape != (len(weight),):
        raise ShapeError(f"The bias must have shape ({len(weight)},), not {tuple(bias.shape)}.")
    for t in (weight,) if bias is None else (weight, bias):
        if t.dtype != x.dtype or t.device != x.device or not t.is_floating_point():
            raise DtypeError(f"Operands differ: {x.dtype} on {x.device}, {t.dtype} on {t.device}.")
    if not 0 <= k <= len(weight):
        raise BudgetError(f"Cannot keep {k} of {len(weight)} latents.")
