"""TrainableSparseConv2d: a convolution trained on its kept weights, a few images at a time through their patches."""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from sparseworks.core.errors import ShapeError
from sparseworks.core.support import Support
from sparseworks.exec.training.index import SparseIndex
from sparseworks.exec.training.module import SparseWeight, fresh
from sparseworks.exec.training.products import differentiate, multiply, sddmm, spmm
from sparseworks.exec.window import Window

_PATCH_BYTES = 1 << 24
"""Patches that exist at once: they are nine times their image for a 3x3 kernel, so a batch goes through in parts."""


class TrainableSparseConv2d(SparseWeight):
    """A convolution of whose kernel only the kept values exist.

    The kernel is a matrix (out, taps * in), channels last, as in `sparseworks.sites`.
    """

    def __init__(self, index: SparseIndex, values: Tensor, bias: Tensor | None, window: Window):
        super().__init__(index, values, bias)
        taps = window.kernel[0] * window.kernel[1]
        if index.shape[1] % taps:
            raise ShapeError(f"A kernel of {taps} taps does not divide {index.shape[1]} columns of the support.")
        self.window = window

    @classmethod
    def from_conv(cls, conv: nn.Module, support: Support) -> TrainableSparseConv2d:
        """The kept weights of an `nn.Conv2d`, whose support covers the site (out, taps * in).

        Raises:
            ModelError: not a plain `nn.Conv2d` (groups, padding that is not zeros).
            ShapeError: support and weight differ in shape.
        """
        window = Window.of(conv)
        assert isinstance(conv, nn.Conv2d)
        matrix = conv.weight.detach().permute(0, 2, 3, 1).flatten(1)
        if tuple(matrix.shape) != tuple(support.shape):
            raise ShapeError(f"The kernel matrix is {tuple(matrix.shape)}, its support {tuple(support.shape)}.")
        index = SparseIndex.of(support)
        return cls(index, index.gather(matrix), conv.bias, window).train(conv.training)

    @classmethod
    def from_support(cls, support: Support, window: Window, *, bias: bool = True) -> TrainableSparseConv2d:
        """A new layer with random values."""
        return cls(*fresh(support, bias=bias), window)

    @property
    def in_channels(self) -> int:
        """Input channels."""
        return self.index.shape[1] // (self.window.kernel[0] * self.window.kernel[1])

    @property
    def out_channels(self) -> int:
        """Output channels."""
        return self.index.shape[0]

    def dense_weight(self) -> Float[Tensor, "out in height width"]:
        """The kernel with zeros outside the support; differentiable."""
        return self.dense_matrix().reshape(self.out_channels, *self.window.kernel, self.in_channels).permute(0, 3, 1, 2)

    def forward(self, x: Float[Tensor, "*n in height width"]) -> Float[Tensor, "*n out high wide"]:
        """The convolution.

        Raises:
            ShapeError: another number of channels, or maps smaller than the kernel.
        """
        size = (x.shape[-2], x.shape[-1])
        out = self.window.outputs(size)
        if x.dim() not in (3, 4) or x.shape[-3] != self.in_channels or min(out) < 1:
            raise ShapeError(
                f"This convolution takes {self.in_channels} channels and maps of its kernel's size or more, got {tuple(x.shape)}."
            )
        maps = x if x.dim() == 4 else x[None]
        if self.window.plain:
            y = spmm(maps.flatten(2), self.values, self.bias, self.index)
        else:
            y = _eager_patches(maps, self.values, self.bias, self.index, self.window)
        y = y.reshape(-1, self.out_channels, *out)
        return y if x.dim() == 4 else y[0]

    def extra_repr(self) -> str:
        """Channels, window and kept entries."""
        return (
            f"{self.in_channels}, {self.out_channels}, kernel={self.window.kernel}, stride={self.window.stride}, "
            f"padding={self.window.padding}, kept={self.index.count} ({self.density:.4g})"
        )


class _Patches(torch.autograd.Function):
    """Only the maps are saved; their patches are made again for the gradient, a few images at a time."""

    @staticmethod
    def forward(ctx, maps, values, bias, index, window):  # type: ignore[override]
        ctx.save_for_backward(maps, values)
        ctx.index, ctx.window, ctx.bias = index, window, bias is not None
        parts = [multiply(window.patches(m), values, bias, index, keep=False)[0] for m in _parts(maps, index, window)]
        return torch.cat(parts) if len(parts) != 1 else parts[0]

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, dy):  # type: ignore[override]
        maps, values = ctx.saved_tensors
        size, index, window = maps.shape[2:], ctx.index, ctx.window
        parts = _parts(maps, index, window)
        dmaps, dvalues, dbias = [], None, None
        for part, d in zip(parts, dy.split([len(p) for p in parts]), strict=True):
            if ctx.needs_input_grad[0]:
                dmaps.append(window.overlap(differentiate(d, d, values, index, (True, False, False))[0], size))
            if ctx.needs_input_grad[1]:
                here = sddmm(d, window.patches(part), index)
                dvalues = here if dvalues is None else dvalues.add_(here)
        if ctx.bias and ctx.needs_input_grad[2]:
            dbias = dy.sum(dim=(0, 2))
        return torch.cat(dmaps) if dmaps else None, dvalues, dbias, None, None


def _parts(maps: Tensor, index: SparseIndex, window: Window) -> tuple[Tensor, ...]:
    high, wide = window.outputs((maps.shape[2], maps.shape[3]))
    each = index.shape[1] * high * wide * maps.element_size()
    return maps.split(max(1, _PATCH_BYTES // max(each, 1)))


def _through_patches(maps: Tensor, values: Tensor, bias: Tensor | None, index: SparseIndex, window: Window) -> Tensor:
    """Under autocast as `spmm`: in the type of the values, returned in the autocast type."""
    device = maps.device.type
    if not torch.is_autocast_enabled(device):
        return _Patches.apply(maps, values, bias, index, window)
    return _Patches.apply(maps.to(values.dtype), values, bias, index, window).to(torch.get_autocast_dtype(device))


# The patches of a few images at a time are no graph: a compiled caller breaks its graph here.
_eager_patches: Any = torch.compiler.disable(_through_patches)
