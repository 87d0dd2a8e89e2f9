"""Window: how the kernel of a convolution moves over a map."""

from __future__ import annotations

from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from sparseworks.core.errors import ModelError


@dataclass(frozen=True)
class Window:
    """How a kernel moves: sizes along height and width."""

    kernel: tuple[int, int]
    stride: tuple[int, int] = (1, 1)
    padding: tuple[int, int] = (0, 0)
    dilation: tuple[int, int] = (1, 1)

    @classmethod
    def of(cls, conv: nn.Module) -> Window:
        """How the kernel of an `nn.Conv2d` moves.

        Raises:
            ModelError: not a plain `nn.Conv2d` (groups, padding that is not zeros or not the same on both sides).
        """
        if type(conv) is not nn.Conv2d or conv.groups != 1 or conv.padding_mode != "zeros":
            raise ModelError(
                f"{conv} is not a 2-d convolution with zeros as padding and without groups; leave it dense."
            )
        (kh, kw), (dh, dw) = conv.kernel_size, conv.dilation
        reach = dh * (kh - 1), dw * (kw - 1)
        padding = conv.padding
        if isinstance(padding, str):
            padding = (0, 0) if padding == "valid" else (reach[0] // 2, reach[1] // 2)
            if conv.padding == "same" and any(r % 2 for r in reach):
                raise ModelError(f"{conv} pads one side more than the other; leave it dense.")
        sizes = (conv.kernel_size, conv.stride, padding, conv.dilation)
        return cls(*((s[0], s[1]) for s in sizes))

    def outputs(self, size: tuple[int, int]) -> tuple[int, int]:
        """Height and width of the output for an input of this size."""
        h, w = (
            (n + 2 * p - d * (k - 1) - 1) // s + 1
            for n, k, s, p, d in zip(size, self.kernel, self.stride, self.padding, self.dilation, strict=True)
        )
        return h, w

    def patches(self, maps: Float[Tensor, "n in height width"]) -> Float[Tensor, "n taps*in positions"]:
        """What the kernel sees at every position, channels last as in sites: tap after tap, all channels of each."""
        (kh, kw), (sh, sw), (dh, dw) = self.kernel, self.stride, self.dilation
        padded = F.pad(maps, (self.padding[1], self.padding[1], self.padding[0], self.padding[0])).contiguous()
        n, c, h, w = padded.shape
        high, wide = self.outputs((maps.shape[2], maps.shape[3]))
        strides = (c * h * w, dh * w, dw, h * w, sh * w, sw)
        return padded.as_strided((n, kh, kw, c, high, wide), strides).reshape(n, kh * kw * c, high * wide)

    def overlap(
        self, patches: Float[Tensor, "n taps*in positions"], size: tuple[int, int]
    ) -> Float[Tensor, "n in height width"]:
        """The transpose of `patches`: what lies on one another is added up."""
        (kh, kw), (sh, sw), (dh, dw), (ph, pw) = self.kernel, self.stride, self.dilation, self.padding
        high, wide = self.outputs(size)
        taps = patches.reshape(patches.shape[0], kh * kw, -1, high, wide)
        padded = patches.new_zeros(patches.shape[0], taps.shape[2], size[0] + 2 * ph, size[1] + 2 * pw)
        for i in range(kh * kw):
            top, left = i // kw * dh, i % kw * dw
            padded[:, :, top : top + sh * high : sh, left : left + sw * wide : sw].add_(taps[:, i])
        return padded[:, :, ph : ph + size[0], pw : pw + size[1]]

    @property
    def plain(self) -> bool:
        """Whether patches are the positions themselves."""
        return self.kernel == (1, 1) and self.stride == (1, 1) and self.padding == (0, 0)
