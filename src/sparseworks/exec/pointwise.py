"""Convolutions of one position: a sparse linear layer over the channels."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

from jaxtyping import Float
from torch import Tensor, nn

from sparseworks.core.errors import ShapeError
from sparseworks.core.support import Support
from sparseworks.exec.modules import SparseLinear


class SparseConv1x1(nn.Module):
    """A 1x1 (or width-1) convolution with packed weights: every position is a row of a sparse product.

    Input `(N, C, *positions)` or unbatched `(C, *positions)`; stride is applied by slicing before the product.
    """

    def __init__(self, linear: SparseLinear, *, stride: Sequence[int] = (1, 1)):
        """Args: the product over channels; `stride`, one number a spatial dimension.

        Raises:
            ShapeError: strides that are not whole numbers from 1 on.
        """
        super().__init__()
        if not all(isinstance(s, int) and s > 0 for s in stride):
            raise ShapeError(f"Strides are whole numbers from 1 on, not {list(stride)}.")
        self.linear = linear
        self.stride = tuple(stride)

    @classmethod
    def from_conv(cls, conv: nn.Module, support: Support, **options: Any) -> SparseConv1x1:
        """Pack the weight of a 1x1 convolution; options as in `SparseLinear.from_linear`.

        Raises:
            ShapeError: the convolution has a larger kernel, groups, or padding.
        """
        if not is_conv1x1(conv):
            raise ShapeError(f"{conv} is not a 1x1 convolution without groups and padding; leave it dense.")
        assert isinstance(conv, nn.Conv1d | nn.Conv2d)
        flat = nn.Linear(conv.in_channels, conv.out_channels, bias=False, device="meta")
        flat.weight = nn.Parameter(conv.weight.detach().flatten(1), requires_grad=False)
        flat.register_parameter("bias", cast("nn.Parameter | None", conv.bias))
        return cls(SparseLinear.from_linear(flat, support, **options), stride=conv.stride)

    def forward(self, x: Float[Tensor, "*batch c_in *positions"]) -> Float[Tensor, "*batch c_out *positions"]:
        """`conv(x, W) + b` for a kernel of one position."""
        if any(s != 1 for s in self.stride):
            x = x[(..., *(slice(None, None, s) for s in self.stride))]
        spatial = len(self.stride)
        channels = x.dim() - spatial - 1
        return self.linear(x.movedim(channels, -1)).movedim(-1, channels)

    def dense_weight(self) -> Float[Tensor, "out in"]:
        """The (out, in) weight with exact zeros."""
        return self.linear.dense_weight()

    def support(self) -> Support:
        """The kept entries of the (out, in) weight."""
        return self.linear.support()

    def extra_repr(self) -> str:
        """The stride; the rest is the inner layer's."""
        return f"stride={self.stride}"


def is_conv1x1(module: nn.Module) -> bool:
    """Whether a convolution is a plain matrix product: kernel 1, no padding, no groups."""
    return (
        isinstance(module, nn.Conv1d | nn.Conv2d)
        and set(module.kernel_size) == {1}
        and module.groups == 1
        and (module.padding == "valid" or set(module.padding) <= {0})
    )
