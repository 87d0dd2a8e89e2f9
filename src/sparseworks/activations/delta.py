"""Deltas: only what changed by enough is sent on, against a reference that follows what was sent, so that errors do not add up."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn import functional as F

from sparseworks.activations.trained.activation import ACTIVATIONS, Activation
from sparseworks.activations.trained.topk import straight_through
from sparseworks.core.errors import BudgetError, ModelError, ShapeError


@ACTIVATIONS.register("delta")
@dataclass(frozen=True)
class Delta(Activation):
    """delta = step round((x - ref) / step) where |x - ref| > threshold, else 0; ref <- ref + delta. step = None: not rounded.

    What is not sent stays in x - ref and is sent once it exceeds the threshold, so |x - ref| <= max(threshold, step / 2) at all times.
    The gradient with respect to x is that of x itself (straight-through).

    Source: Yousefzadeh et al., 2021, arXiv 2107.07305 (Delta Activation Layer). Whether the step is learned is not known; ours is fixed.
    """

    built_with: ClassVar[str] = "DeltaLayer"

    threshold: float = 0.1
    step: float | None = None

    def __post_init__(self):
        if not self.threshold >= 0 or (self.step is not None and not self.step > 0):
            raise BudgetError(f"The threshold is at least 0 and a step above 0, got {self.threshold} and {self.step}.")

    def change(self, x: Float[Tensor, "*s"], reference: Float[Tensor, "*s"]) -> Float[Tensor, "*s"]:
        """delta of one step in time."""
        moved = x - reference
        sent = moved if self.step is None else (moved / self.step).round() * self.step
        return sent.where(~(moved.abs() <= self.threshold), 0.0)

    def __call__(self, x: Float[Tensor, "time *s"]) -> Float[Tensor, "time *s"]:
        """The deltas of a sequence, the first against zero; their sum up to t is the reference at t."""
        deltas, _ = self.run(x)
        return deltas

    def run(self, x: Float[Tensor, "time *s"]) -> tuple[Float[Tensor, "time *s"], Float[Tensor, "time *s"]]:
        """Deltas and references of a sequence. References carry the gradient of x, deltas that of x_t - x_{t-1}."""
        reference, references = torch.zeros_like(x[0]), []
        for now in x.detach():
            reference = reference + self.change(now, reference)
            references.append(reference)
        held = straight_through(x, torch.stack(references)) if references else x
        return held.diff(dim=0, prepend=torch.zeros_like(held[:1])), held


class DeltaLayer(nn.Module):
    """y_t = y_{t-1} + W delta_t, y_{-1} = b: a linear or convolutional layer on a stream, which reads W only for what changed.

    `forward` takes whole clips (time first) for training, `stream` one step at a time for inference; both give the same. Put the
    nonlinearity after it.

    Attributes:
        layer: `nn.Linear` or `nn.Conv2d`.
        delta: threshold and step.
        penalty: mean |delta| of the last `forward`, with a gradient: add it to the loss to make changes rare.
        sent: share of deltas that were not zero, in the last call.
    """

    penalty: Tensor
    sent: float

    def __init__(self, layer: nn.Linear | nn.Conv2d, delta: Delta):
        """Raises: ModelError: a convolution that pads with anything but zeros."""
        super().__init__()
        if isinstance(layer, nn.Conv2d) and layer.padding_mode != "zeros":
            raise ModelError(f"Changes are padded with zeros, and {layer} is not; leave it dense.")
        self.layer, self.delta = layer, delta
        self.penalty, self.sent = torch.zeros(()), 1.0
        self._reference: Tensor | None = None
        self._sum: Tensor | None = None

    def forward(self, x: Float[Tensor, "time batch *s"]) -> Float[Tensor, "time batch *out"]:
        """The outputs of a clip: W times the references, since the sum of W delta is W times the sum."""
        deltas, references = self.delta.run(x)
        self.penalty = deltas.abs().mean()
        self.sent = _share(deltas)
        return self.layer(references.flatten(0, 1)).unflatten(0, x.shape[:2])

    def reset(self) -> None:
        """Forget the stream: the next step is sent whole."""
        self._reference = self._sum = None

    @torch.no_grad()
    def stream(self, x: Float[Tensor, "batch *s"]) -> Float[Tensor, "batch *out"]:
        """The next step of a stream.

        Raises:
            ShapeError: another shape than that of the steps before; call `reset` between streams.
        """
        if self._reference is not None and self._reference.shape != x.shape:
            raise ShapeError(
                f"The stream had steps of shape {tuple(self._reference.shape)}, now {tuple(x.shape)}; call `reset` between streams."
            )
        first = self._reference is None
        reference = torch.zeros_like(x) if self._reference is None else self._reference
        delta = self.delta.change(x, reference)
        self.sent = _share(delta)
        product = self._product(delta)
        before = self._bias(product) if first or self._sum is None else self._sum
        self._reference, self._sum = reference + delta, before + product
        return self._sum

    def _product(self, delta: Tensor) -> Tensor:
        """W delta, from the columns of W that are sent where the layer is linear and the stream a single one."""
        layer = self.layer
        if isinstance(layer, nn.Conv2d):
            return F.conv2d(delta, layer.weight, None, layer.stride, layer.padding, layer.dilation, layer.groups)
        if delta.dim() == 2 and delta.shape[0] == 1:
            at = delta[0].nonzero().squeeze(1)
            return (layer.weight[:, at] @ delta[0, at])[None]
        return F.linear(delta, layer.weight)

    def _bias(self, like: Tensor) -> Tensor:
        bias = self.layer.bias
        if bias is None:
            return torch.zeros_like(like)
        return (bias[:, None, None] if isinstance(self.layer, nn.Conv2d) else bias).expand_as(like)


@ACTIVATIONS.register("delta_keys")
@dataclass(frozen=True)
class DeltaKeys(Activation):
    """Logits q khat_j = q khat_{j-1} + q delta_j, delta_j = k_j - khat_{j-1} where that exceeds the threshold; exact in window and sink.

    Called on keys it gives their deltas; attention with them is `delta_attention`.

    Source: Qi et al., 2025, arXiv 2507.19608 (DeltaLLM).
    """

    built_with: ClassVar[str] = "delta_attention"
    free: ClassVar[bool] = True

    threshold: float = 0.3
    window: int = 64
    sink: int = 4

    def __call__(self, x: Float[Tensor, "*batch keys dim"]) -> Float[Tensor, "*batch keys dim"]:
        """Deltas along the keys."""
        return Delta(self.threshold)(x.movedim(-2, 0)).movedim(0, -2)


def delta_attention(
    q: Float[Tensor, "*batch queries dim"],
    k: Float[Tensor, "*batch keys dim"],
    v: Float[Tensor, "*batch keys value"],
    *,
    threshold: float,
    window: int = 64,
    sink: int = 4,
) -> tuple[Float[Tensor, "*batch queries value"], Float[Tensor, "*batch keys dim"]]:
    """Causal attention whose logits come from key deltas, q khat_j = q khat_{j-1} + q delta_j; exact for the last `window` and first `sink` keys.

    Multiplications of a logit outside window and sink are those of the nonzeros of its delta. Keys and values have as many heads
    as queries (repeat those of a group). The last query sees the last key. Returns the outputs and the deltas.

    Source: Qi et al., 2025, arXiv 2507.19608 (DeltaLLM); that values are dense and the threshold is one for all is the reading taken here.

    Raises:
        ShapeError: sizes that do not fit, or more queries than keys.
        BudgetError: a negative threshold, window or sink.
    """
    queries, keys = q.shape[-2], k.shape[-2]
    if q.shape[-1] != k.shape[-1] or k.shape[:-1] != v.shape[:-1] or queries > keys:
        raise ShapeError(f"Queries {tuple(q.shape)}, keys {tuple(k.shape)} and values {tuple(v.shape)} do not fit.")
    if window < 0 or sink < 0:
        raise BudgetError(f"Window and sink hold 0 or more keys, got {window} and {sink}.")
    deltas = DeltaKeys(threshold)(k)
    approximate = accumulated_logits(q, deltas)
    at = torch.arange(keys, device=q.device)
    own = at[keys - queries :, None]
    logits = (q @ k.mT).where(_exact(own, at, window, sink), approximate) / math.sqrt(q.shape[-1])
    return logits.masked_fill(at > own, -math.inf).softmax(dim=-1) @ v, deltas


def accumulated_logits(
    q: Float[Tensor, "*batch queries dim"], deltas: Float[Tensor, "*batch keys dim"]
) -> Float[Tensor, "*batch queries keys"]:
    """sum_{i <= j} q delta_i: the logits of reference keys, one accumulation a key."""
    return (q @ deltas.mT).cumsum(dim=-1)


def _exact(own: Tensor, at: Tensor, window: int, sink: int) -> Bool[Tensor, "queries keys"]:
    """Keys in window or sink, and the query's own."""
    return (own - at < max(window, 1)) | (at < sink)


def _share(x: Tensor) -> float:
    return int(x.count_nonzero()) / max(x.numel(), 1)
