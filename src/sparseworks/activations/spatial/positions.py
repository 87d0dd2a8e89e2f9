"""The same positions of a map are zero in all channels of all images, so that their rows vanish from the product of a convolution."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from sparseworks.activations.trained.activation import ACTIVATIONS, Activation
from sparseworks.core.errors import BudgetError, ModelError, ShapeError
from sparseworks.core.select import top
from sparseworks.exec.window import Window


@ACTIVATIONS.register("shared_positions")
@dataclass(frozen=True)
class SharedPositions(Activation):
    """The positions of the lowest `sparsity` of a score map are zero in every channel and image; the map is average-pooled to the layer's size.

    Source: Grimaldi et al., 2023, arXiv 2309.06626 (the map is random, one for the whole network).
    """

    built_with: ClassVar[str] = "SharedMasks"

    sparsity: float = 0.2
    seed: int = 0

    def __post_init__(self):
        if not 0.0 <= self.sparsity < 1.0:
            raise BudgetError(f"The share of positions left out lies in [0, 1), got {self.sparsity}.")

    @classmethod
    def example(cls) -> SharedPositions:
        """Half."""
        return cls(sparsity=0.5)

    def __call__(self, x: Float[Tensor, "*lead high wide"]) -> Float[Tensor, "*lead high wide"]:
        """x, zero where a random map of its own size is lowest."""
        g = torch.Generator().manual_seed(self.seed)
        scores = torch.rand(x.shape[-2:], generator=g)
        return x * positions(scores, (x.shape[-2], x.shape[-1]), self.sparsity).to(x.device)


def positions(
    scores: Float[Tensor, "high wide"], size: tuple[int, int], sparsity: float
) -> Bool[Tensor, "high_out wide_out"]:
    """True where the pooled map is not among its lowest round(sparsity h w) entries; ties to the lower index stay.

    Raises:
        ShapeError: the layer's map is larger than the score map.
    """
    if size[0] > scores.shape[0] or size[1] > scores.shape[1]:
        raise ShapeError(f"A score map of {tuple(scores.shape)} cannot be pooled to the larger {size}.")
    pooled = F.adaptive_avg_pool2d(scores[None, None], size).flatten()
    kept = pooled.numel() - round(sparsity * pooled.numel())
    return top(pooled[None], kept)[0].reshape(size)


class PositionConv2d(nn.Module):
    """y = (W * x + b) at kept positions of the output, 0 elsewhere. In training a masked dense convolution; `export` drops the rows.

    Attributes:
        conv: the dense layer.
        mask: kept positions of the output, None = all.
    """

    mask: Tensor | None

    def __init__(self, conv: nn.Conv2d):
        super().__init__()
        Window.of(conv)
        self.conv = conv
        self.register_buffer("mask", None)

    def forward(self, x: Float[Tensor, "batch in high wide"]) -> Float[Tensor, "batch out high_out wide_out"]:
        """The masked convolution.

        Raises:
            ShapeError: the mask is for maps of another size.
        """
        y = self.conv(x)
        if self.mask is None:
            return y
        if tuple(y.shape[-2:]) != tuple(self.mask.shape):
            raise ShapeError(
                f"The mask is for maps of {tuple(self.mask.shape)}, this output has {tuple(y.shape[-2:])}."
            )
        return y * self.mask

    def export(self) -> ReducedConv2d:
        """The inference form.

        Raises:
            ModelError: no mask was set.
        """
        if self.mask is None:
            raise ModelError("No positions were chosen for this convolution; train it with a `SharedMasks` first.")
        return ReducedConv2d(self.conv, self.mask)


class ReducedConv2d(nn.Module):
    """The convolution at kept positions only: the patches of those, one product, written between zeros. y lies channels last.

    Faster than a dense convolution where that is itself a product with patches; libraries that convolve directly may win (measure).

    Attributes:
        rows: kept positions, the rows of the product per image.
    """

    def __init__(self, conv: nn.Conv2d, mask: Bool[Tensor, "high wide"]):
        super().__init__()
        self.window = Window.of(conv)
        self.size = int(mask.shape[0]), int(mask.shape[1])
        self.register_buffer("weight", conv.weight.detach().movedim(1, -1).flatten(1).contiguous())
        self.register_buffer("bias", None if conv.bias is None else conv.bias.detach().clone())
        self.register_buffer("kept", mask.flatten().nonzero().squeeze(1))
        self._known: dict[tuple[int, int], Tensor] = {}

    @property
    def rows(self) -> int:
        """Rows of the product per image."""
        return self.get_buffer("kept").numel()

    def forward(self, x: Float[Tensor, "batch in high wide"]) -> Float[Tensor, "batch out high_out wide_out"]:
        """Exact at kept positions, zero elsewhere.

        Raises:
            ShapeError: maps of another size than the mask was made for.
        """
        size = x.shape[-2], x.shape[-1]
        if self.window.outputs(size) != self.size:
            raise ShapeError(
                f"The positions are for outputs of {self.size}, these maps give {self.window.outputs(size)}."
            )
        (up, left), weight, kept = self.window.padding, self.get_buffer("weight"), self.get_buffer("kept")
        padded = F.pad(x.permute(0, 2, 3, 1), (0, 0, left, left, up, up)).flatten(
            1, 2
        )  # channels last: a tap is one run
        patches = padded.index_select(1, self._patches(size)).reshape(-1, weight.shape[1])
        found = F.linear(patches, weight, self._buffers["bias"]).reshape(x.shape[0], -1, weight.shape[0])
        y = x.new_zeros(x.shape[0], self.size[0] * self.size[1], weight.shape[0])
        return y.index_copy(1, kept, found).unflatten(1, self.size).permute(0, 3, 1, 2)

    def _patches(self, size: tuple[int, int]) -> Int[Tensor, " taps_of_rows"]:
        """Places of the taps of every kept position in the padded map, row by row; found once for a size."""
        if size not in self._known:
            w, kept = self.window, self.get_buffer("kept")
            wide = size[1] + 2 * w.padding[1]
            corner = (kept // self.size[1]) * w.stride[0] * wide + (kept % self.size[1]) * w.stride[1]
            down = torch.arange(w.kernel[0], device=kept.device) * w.dilation[0] * wide
            along = torch.arange(w.kernel[1], device=kept.device) * w.dilation[1]
            self._known[size] = (corner[:, None] + (down[:, None] + along).flatten()).flatten()
        return self._known[size]


def sizes_of(model: nn.Module, example: Tensor) -> Mapping[str, tuple[int, int]]:
    """Output size of every `PositionConv2d`, from one pass."""
    found: dict[str, tuple[int, int]] = {}

    def note(name: str) -> Callable[[nn.Module, Any, Tensor], None]:
        return lambda module, inputs, y: found.update({name: (y.shape[-2], y.shape[-1])})

    layers = {name: m for name, m in model.named_modules() if isinstance(m, PositionConv2d)}
    handles = [m.conv.register_forward_hook(note(name)) for name, m in layers.items()]
    try:
        with torch.no_grad():
            model(example)
    finally:
        for handle in handles:
            handle.remove()
    return found
