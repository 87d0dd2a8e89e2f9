"""Mixture of sparse attention: each head picks its own tokens, and queries, keys and values all come from them."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from sparseworks.attention.dense import attend_dense
from sparseworks.attention.heads import Heads
from sparseworks.attention.trained.method import add_trained
from sparseworks.attention.trained.rotary import rotate
from sparseworks.attention.trained.trainable import TRAINABLES, Sizes, Trainable
from sparseworks.core.budget import Budget, Density
from sparseworks.core.errors import BudgetError, ModelError
from sparseworks.core.pattern import ELEMENT, ROW, Pattern
from sparseworks.core.published import Source

SOURCE = Source(
    "Piękos, Csordás and Schmidhuber", 2025, "2505.00315", "Mixture of Sparse Attention: Content-Based Learnable Sparse Attention via Expert-Choice Routing"
)  # fmt: skip


@TRAINABLES.register("mosa")
@dataclass(frozen=True)
class MoSA(Trainable):
    """r = sigmoid(X W_r); each sparse head attends among its k = max(2, floor(T / ratio)) best tokens, output rows times r.

    Attributes:
        heads: sparse heads of a layer.
        dense: dense heads beside them.
        ratio: tokens of the sequence to one token of a head.
        first: whether every head also takes token 0.
    """

    replaces: ClassVar[bool] = True
    heads: int = 12
    dense: int = 4
    ratio: float = 4.0
    first: bool = True

    def __post_init__(self):
        if self.ratio < 1 or self.heads < 0 or self.dense < 0 or self.heads + self.dense < 1:
            raise BudgetError(f"The ratio is at least 1, heads are not negative and one at least; got {self}.")

    @classmethod
    def example(cls) -> MoSA:
        """For a hundred tokens."""
        return cls(heads=3, dense=1)

    def everything(self, tokens: int) -> MoSA:
        """Every token to every head."""
        del tokens
        return replace(self, ratio=1.0)

    @property
    def pattern(self) -> Pattern:
        """Tokens compete within a head."""
        return Pattern(ELEMENT, ROW)

    @property
    def budget(self) -> Budget:
        """Of the tokens; of the pairs its square."""
        return Density(1 / self.ratio)

    def build(self, sizes: Sizes) -> MoSAttention:
        """A fresh module."""
        return MoSAttention(self, sizes)


class MoSAttention(nn.Module):
    """Compact, attend, scatter-add. Every head has projections of its own, applied to the tokens it took only.

    Expert choice looks at the whole sequence, so whether a token is taken depends on later ones. `fit_thresholds` replaces it by
    a rule that does not: a token is taken where its own r reaches the threshold of the head.

    Attributes:
        thresholds: of the causal rule, one a head; NaN before they are fitted: the best k.
        density: pairs over the causal pairs of as many dense heads, of the last call.
    """

    thresholds: Tensor

    def __init__(self, spec: MoSA, sizes: Sizes):
        super().__init__()
        self.spec, self.sizes = spec, sizes
        self.progress, self.density = 1.0, 1.0
        self.loss: Tensor = torch.zeros(())
        width, d = sizes.width, sizes.d
        self.router = nn.Linear(width, spec.heads, bias=False)
        self.qkv = nn.Parameter(torch.randn(spec.heads, width, 3 * d) * width**-0.5)
        self.out = nn.Parameter(torch.randn(spec.heads, d, width) * (d * (spec.heads + spec.dense)) ** -0.5)
        self.register_buffer("thresholds", torch.full((spec.heads,), torch.nan))
        if spec.dense:
            self.dense_qkv = nn.Linear(width, 3 * spec.dense * d, bias=False)
            self.dense_out = nn.Linear(spec.dense * d, width, bias=False)

    def forward(
        self, hidden_states: Float[Tensor, "batch tokens width"], *args: Any, **others: Any
    ) -> tuple[Float[Tensor, "batch tokens width"], None]:
        """As attention modules of transformers answer.

        Raises:
            ModelError: a cache of transformers.
        """
        del args
        if others.get("past_key_values") is not None or others.get("cache") is not None:
            raise ModelError("Expert choice looks at the whole sequence: call the model with use_cache=False.")
        batch, tokens, _ = hidden_states.shape
        out = torch.zeros_like(hidden_states)
        if self.spec.dense:
            out = out + self._dense(hidden_states)
        pairs = self.spec.dense * tokens * (tokens + 1) / 2
        if self.spec.heads:
            r = self.router(hidden_states).sigmoid().transpose(1, 2)
            at, real = self.taken(r)
            out = out + self._sparse(hidden_states, r.gather(2, at) * real, at, real)
            counts = real.sum(-1).double()
            pairs += float((counts * (counts + 1) / 2).sum() / batch)
        self.density = pairs / ((self.spec.heads + self.spec.dense) * tokens * (tokens + 1) / 2)
        return out, None

    def dense(self, x: Float[Tensor, "batch tokens width"]) -> Float[Tensor, "batch tokens width"]:
        """What it gives where every head takes every token: dense attention, rows of the sparse heads times r."""
        out = self._dense(x) if self.spec.dense else torch.zeros_like(x)
        at = torch.arange(x.shape[1], device=x.device)
        q, k, v = torch.einsum("btw,hwd->bhtd", x, self.qkv).chunk(3, -1)
        found = attend_dense(Heads(_half_rotated(q, at), _half_rotated(k, at), v))
        r = self.router(x).sigmoid().transpose(1, 2).unsqueeze(-1)
        return out + torch.einsum("bhtd,hdw->btw", found * r, self.out)

    def taken(
        self, r: Float[Tensor, "batch heads tokens"]
    ) -> tuple[Int[Tensor, "batch heads k"], Bool[Tensor, "batch heads k"]]:
        """Tokens of each head in order of the text, and which of the places hold one."""
        tokens = r.shape[2]
        best = r.detach()
        if self.spec.first:
            best = best.clone()
            best[:, :, 0] = torch.inf
        if bool(self.thresholds.isnan().any()):
            k = min(tokens, max(2, int(tokens / self.spec.ratio)))
            at = best.topk(k, -1).indices.sort(-1).values
            return at, torch.ones_like(at, dtype=torch.bool)
        mask = best >= self.thresholds[:, None]
        order = (~mask).long().sort(stable=True, dim=-1)
        k = max(1, int(mask.sum(-1).max()))
        return order.indices[..., :k], order.values[..., :k] == 0

    @torch.no_grad()
    def fit_thresholds(self, hidden: Float[Tensor, "batch tokens width"]) -> None:
        """Thresholds at which each head takes 1 / ratio of these tokens."""
        r = self.router(hidden).sigmoid().transpose(0, 2).flatten(1)
        self.thresholds.copy_(r.quantile(1 - 1 / self.spec.ratio, dim=1))

    def _sparse(self, x: Tensor, r: Tensor, at: Tensor, real: Tensor) -> Tensor:
        batch = len(at)
        rows = x[torch.arange(batch, device=x.device)[:, None, None], at]
        q, key, value = (rows @ self.qkv).chunk(3, -1)
        q, key = (_half_rotated(t, at) for t in (q, key))
        scores = (q @ key.mT) * self.sizes.d**-0.5
        seen = (at[..., None, :] <= at[..., :, None]) & real[..., None, :]
        weights = scores.masked_fill(~seen, -torch.inf).softmax(-1).nan_to_num(0.0)
        back = ((weights @ value) * r.unsqueeze(-1)) @ self.out
        flat = (at + torch.arange(batch, device=x.device)[:, None, None] * x.shape[1]).reshape(-1)
        return torch.zeros_like(x).flatten(0, 1).index_add(0, flat, back.reshape(-1, x.shape[2])).view_as(x)

    def _dense(self, x: Tensor) -> Tensor:
        q, k, v = self.dense_qkv(x).unflatten(-1, (3, self.spec.dense, -1)).permute(2, 0, 3, 1, 4)
        at = torch.arange(x.shape[1], device=x.device)
        out = attend_dense(Heads(_half_rotated(q, at), _half_rotated(k, at), v))
        return self.dense_out(out.transpose(1, 2).flatten(2))


def _half_rotated(x: Tensor, at: Tensor) -> Tensor:
    half = x.shape[-1] // 4 * 2
    return torch.cat([rotate(x[..., :half], at), x[..., half:]], -1)


def flops(spec: MoSA, sizes: Sizes, tokens: int) -> int:
    """Multiply-adds times two of a layer: projections of the tokens taken, the router, causal pairs counted whole as the paper does.

    A dense head: 8 T w d + 4 T^2 d; a sparse one: 8 k w d + 4 k^2 d + 2 T w + k d.
    """
    k, w, d = max(2, int(tokens / spec.ratio)), sizes.width, sizes.d
    dense = 8 * tokens * w * d + 4 * tokens**2 * d
    sparse = 8 * k * w * d + 4 * k**2 * d + 2 * tokens * w + k * d
    return spec.dense * dense + spec.heads * sparse


add_trained(
    "mosa", MoSA(), SOURCE,
    "Many heads that each attend among few tokens of their own choice, at the cost of few dense heads.",
    catalog=(147,),
    status="experimental",
    when="A model is trained from the start at a fixed cost, and what heads look for is rare in the text.",
    when_not="Text is generated token by token by the rule of training: expert choice looks ahead, see `fit_thresholds`. Only few rows have a loss: "
    "heads learn what to take by the rows that they write. At equal cost it was not better here: 8 interleaved streams of 64 tokens, each to name "
    "its last value, one dense and 27 sparse heads of 8 tokens: .64 nats after 300 steps (.60 by thresholds), four dense heads .55 (one seed).",
)  # fmt: skip
