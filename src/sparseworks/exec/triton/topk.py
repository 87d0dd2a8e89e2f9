"""The k largest latents of every row, values and indices, of x W^T + b; the latents exist for some rows at a time only.

Shapes: x (rows, d), W (latents, d), b (latents); values and indices (rows, k), largest first, equal values by ascending index.

The product is cuBLAS's, the selection `select`'s, which costs less than half of it. A kernel that keeps the largest of each row in registers while it
multiplies would never write latents, but it multiplies at a fraction of cuBLAS's rate: on an H200 it took 1240 microseconds for
4096 rows of 768 and 24576 latents, this way 360. So few rows at a time that their latents stay in the L2 cache were slower, too (540).
"""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F

from sparseworks.core.errors import KernelError, ShapeError
from sparseworks.exec.triton.launch import floats, together
from sparseworks.exec.triton.select import MOST, largest

_BYTES = 256 << 20
"""Latents at a time."""


def topk_encode(
    x: Float[Tensor, "rows d"],
    weight: Float[Tensor, "latents d"],
    bias: Float[Tensor, " latents"] | None,
    k: int,
    relu: bool = False,
) -> tuple[Float[Tensor, "rows k"], Int[Tensor, "rows k"]]:
    """The k largest of x W^T + b, or of its relu, per row: values in the type of x, indices int64; largest first, equal ones by
    ascending index.

    Latents are rounded to the type of x before they are compared, as a dense layer rounds them. A row with a NaN gives NaN throughout.

    Raises:
        ShapeError: a weight or bias that does not fit, or k beyond the latents.
        DtypeError: x, weight and bias of different or other types.
        KernelError: k above 512, or tensors that are not contiguous on one GPU.
    """
    what = "Top-k encoding"
    device = together(what, x, weight, bias)
    dtype = floats(what, x, weight, *([] if bias is None else [bias]))
    (rows, width), latents = x.shape, weight.shape[0]
    if weight.shape != (latents, width) or (bias is not None and bias.shape != (latents,)):
        raise ShapeError(f"{what} takes a weight (latents, {width}) and a bias (latents), got {tuple(weight.shape)}.")
    if not 0 <= k <= latents:
        raise ShapeError(f"{what} keeps between 0 and all {latents} latents, not {k}.")
    if k > MOST:
        raise KernelError(f"{what} keeps at most {MOST} of a row, not {k}; use torch.topk on the product.")
    values = torch.empty((rows, k), dtype=dtype, device=device)
    indices = torch.empty((rows, k), dtype=torch.int64, device=device)
    step = max(128, _BYTES // max(latents * dtype.itemsize, 1) // 128 * 128)
    for first in range(0, rows if k else 0, step):
        some = slice(first, first + step)
        latent = F.linear(x[some], weight, bias)
        values[some], indices[some] = largest(latent.relu_() if relu else latent, k)
    return values, indices
