"""A sparse layer in one pass over tiles of tokens, with the LayerNorm before it and the residual after it: y = W norm(x) + b + add.

A tile of 64 tokens stays in the cache from its packing to its gradient, where product by product the packed activations, the norm
and the sum would each be written to memory and read again.
"""

from __future__ import annotations

from dataclasses import dataclass
from types import ModuleType
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.modules.module import _has_any_global_hook

from sparseworks.core.errors import ModelError, ShapeError
from sparseworks.exec.native import native
from sparseworks.exec.training.index import SparseIndex

_TILES_A_THREAD = 4
"""With fewer tiles for each thread, products that share out rows keep all threads busier."""

_LEAST_EPS = 1e-30
"""Kernels take eps in float32, where a smaller one could become 0 and a constant token NaN."""

CHANGED = (
    "The support (or type) of a sparse layer changed between forward and backward; change it after the backward pass."
)


class Norm(NamedTuple):
    """A LayerNorm over the features (Ba et al. 2016, arXiv 1607.06450)."""

    weight: Float[Tensor, " features"]
    bias: Float[Tensor, " features"]
    eps: float

    @property
    def addresses(self) -> list[int]:
        """What kernels take."""
        return [self.weight.data_ptr(), self.bias.data_ptr()]


@dataclass(frozen=True)
class Kept:
    """What the gradient needs of a forward pass: the packed inputs, normalised if there is a norm, and the factors of the norm."""

    tiles: Float[Tensor, " floats"]
    scale: Float[Tensor, " lanes"]


def tile_floats(tokens: int, width: int) -> int:
    """Floats of `tokens` tokens in tiles: full tiles of eight vectors, and a last one of eight, four, two or one."""
    module = native()
    lanes = 8 if module is None else module.lanes()
    rest = tokens % (8 * lanes)
    last = next((v * lanes for v in (1, 2, 4, 8) if rest <= v * lanes), 0) if rest else 0
    return (tokens - rest + last) * width


def suits(module: ModuleType, tokens: int, index: SparseIndex) -> bool:
    """Whether tiles keep all threads busy, and the gradients that each thread adds up are smaller than the activations."""
    threads, tiles = torch.get_num_threads(), tokens / (8 * module.lanes())
    return (threads == 1 or tiles >= _TILES_A_THREAD * threads) and threads * index.count <= tokens * index.shape[0]


def runs_in_one_pass(module: nn.Module, x: Tensor, features: int) -> bool:
    """Whether `x` and all parameters are float32 on the CPU, `x` of the right size, and the parts are sparse layers and LayerNorms
    without hooks or changes of their own, which one pass would not call."""
    tensors = (x, *module.parameters())
    if not all(_is_float32(t) for t in tensors) or torch.is_autocast_enabled("cpu"):
        return False
    return x.shape[-1:] == (features,) and not _has_any_global_hook() and all(_is_plain(m) for m in module.children())


def _is_float32(t: Tensor) -> bool:
    return t.dtype is torch.float32 and t.is_cpu


def _is_plain(part: nn.Module) -> bool:
    from sparseworks.exec.training.linear import TrainableSparseLinear  # which imports this file

    hooks = part._forward_hooks, part._forward_pre_hooks, part._backward_hooks, part._backward_pre_hooks
    if any(hooks) or "forward" in part.__dict__:
        return False
    if type(part) is nn.LayerNorm:
        return part.weight is not None and part.bias is not None and part.eps >= _LEAST_EPS
    return type(part) is TrainableSparseLinear


def fits(index: SparseIndex, values: Tensor, bias: Tensor | None, norm: Norm | None = None) -> bool:
    """Whether the parameters are what kernels read: contiguous float32 on the CPU, of the sizes of the index."""
    out, width = index.shape
    sized = [(values, index.count), (bias, out), *((t, width) for t in (() if norm is None else norm[:2]))]
    return all(t is None or (t.shape == (n,) and _is_float32(t) and t.is_contiguous()) for t, n in sized)


def norm_of(module: nn.Module, features: int) -> Norm:
    """The norm of an `nn.LayerNorm` over `features`.

    Raises:
        ModelError: no LayerNorm, or one without weight or bias.
        ShapeError: it is over other features.
    """
    if type(module) is not nn.LayerNorm or module.weight is None or module.bias is None:
        raise ModelError(f"A norm is an nn.LayerNorm with weight and bias; got {module}.")
    if tuple(module.normalized_shape) != (features,):
        raise ShapeError(f"A norm over {tuple(module.normalized_shape)} does not fit {features} features.")
    return Norm(module.weight.contiguous(), module.bias.contiguous(), module.eps)


def room(x: Float[Tensor, "tokens in"], norm: Norm | None, *, keep: bool) -> Kept:
    """Memory for what a forward pass keeps of `x`."""
    scale = tile_floats(x.shape[0], 1) if keep and norm is not None else 0
    return Kept(x.new_empty(tile_floats(*x.shape) if keep else 0), x.new_empty(scale))


def forward(
    module: ModuleType,
    x: Float[Tensor, "tokens in"],
    values: Tensor,
    bias: Tensor | None,
    index: SparseIndex,
    norm: Norm | None = None,
    add: Float[Tensor, "tokens out"] | None = None,
    *,
    keep: bool,
) -> tuple[Float[Tensor, "tokens out"], Kept]:
    """W norm(x) + b + add, and what its gradient needs if `keep`. `x` and `add` are contiguous float32 on the CPU.

    Raises:
        ShapeError: sizes do not fit, or parameters are not float32 on the CPU.
    """
    (out, width), tokens = index.shape, x.shape[0]
    values, bias = values.contiguous(), None if bias is None else bias.contiguous()
    if x.shape[1:] != (width,) or not fits(index, values, bias, norm) or (add is not None and add.shape[1:] != (out,)):
        raise ShapeError(
            f"A sparse layer of {out} outputs, {width} inputs and {index.count} entries in float32 does not fit "
            f"{tuple(x.shape)} inputs, {tuple(values.shape)} values, or its bias, norm or residual."
        )
    y, kept = x.new_empty(tokens, out), room(x, norm, keep=keep)
    data = [x.data_ptr(), address(add), y.data_ptr(), address(kept.tiles) if keep else 0, kept.scale.data_ptr()]
    norms, eps = ([], 0.0) if norm is None else (norm.addresses, norm.eps)
    weights = [values.data_ptr(), address(bias)]
    module.layer(data, index.forward.addresses, weights, norms, eps, tokens, torch.get_num_threads())
    return y, kept


def backward(
    module: ModuleType,
    dy: Float[Tensor, "tokens out"],
    kept: Kept,
    values: Tensor,
    index: SparseIndex,
    norm: Norm | None = None,
    add: Float[Tensor, "tokens in"] | None = None,
    *,
    needs: tuple[bool, bool, bool] = (True, True, True),
) -> tuple[Float[Tensor, "tokens in"], list[Tensor]]:
    """Gradients of x (plus `add`), and of values, bias, norm weight and norm bias.

    Args:
        needs: whether the gradients of x, values and bias are wanted; what is not holds no sense.

    Raises:
        ShapeError: the parameters changed since the forward pass.
    """
    values = values.contiguous()
    if not fits(index, values, None, norm):
        raise ShapeError(CHANGED)
    (out, width), tokens, threads = index.shape, dy.shape[0], torch.get_num_threads()
    wants_x = needs[0] or norm is not None
    dx = dy.new_empty(tokens, width) if wants_x else dy.new_empty(0)
    parts = [index.count, out, *([] if norm is None else [width, width])]
    gradients = dy.new_zeros(threads, sum(parts))  # every thread adds up its own
    moved = transposed(module, values, index) if wants_x else values
    data = [dy.data_ptr(), address(add), kept.tiles.data_ptr(), kept.scale.data_ptr(), address(dx) if wants_x else 0]
    norms, eps = ([], 0.0) if norm is None else (norm.addresses, norm.eps)
    cuts = [*index.forward.addresses, *index.backward.addresses]
    module.layer_gradient(
        [*data, gradients.data_ptr()], cuts, moved.data_ptr(), norms, eps, tokens, needs[1], needs[2], threads
    )
    return dx, parted(gradients, parts)


def parted(gradients: Float[Tensor, "threads all"], parts: list[int]) -> list[Tensor]:
    """The sum over threads, cut into the gradients of the parameters."""
    total = gradients[0] if len(gradients) == 1 else gradients.sum(dim=0)
    return [g.clone() for g in total.split(parts)]


def transposed(module: ModuleType, values: Tensor, index: SparseIndex) -> Tensor:
    """The values in the order of the transpose."""
    moved = torch.empty_like(values)
    at = (values.data_ptr(), index.order.data_ptr(), moved.data_ptr())
    module.reorder(*at, moved.numel(), torch.get_num_threads())
    return moved


def address(tensor: Tensor | None) -> int:
    """Where a tensor begins; 0 for none."""
    return 0 if tensor is None else tensor.data_ptr()
