"""SeerAttention: a small gate on pooled queries and keys learns, by distillation, which blocks a frozen model attends to."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor, nn

from sparseworks.attention.heads import Heads, pooled
from sparseworks.attention.method import AttentionMethod, blocks
from sparseworks.attention.score import ATTENTION_SCORES, AttentionScore
from sparseworks.attention.trained.gate import Gate, attend_biased, gate_of
from sparseworks.attention.trained.method import add_trained
from sparseworks.attention.trained.rotary import rotate
from sparseworks.attention.trained.trainable import TRAINABLES, Sizes, Trainable
from sparseworks.core.budget import Budget, Threshold
from sparseworks.core.errors import ModelError
from sparseworks.core.pattern import Pattern, Tile
from sparseworks.core.published import Source

SOURCE = Source("Gao et al.", 2024, "2410.13276", "SeerAttention: Learning Intrinsic Sparse Attention in Your LLMs")
Cuts = list[tuple[int, int]]


@TRAINABLES.register("seer")
@dataclass(frozen=True)
class Seer(Trainable):
    """Gate logits q_g . k_g / sqrt(width): q_g from mean-pooled queries, k_g from max-, min- and mean-pooled keys, before rotation.

    Attributes:
        block: tokens of a block.
        width: of the gate.
        threshold: blocks of at least this probability are kept (5e-4 to 5e-3 in the paper).
        skip: share of the rows of blocks, the first ones, that teach nothing.
    """

    block: int = 64
    width: int = 128
    threshold: float = 2e-3
    skip: float = 0.25

    @classmethod
    def example(cls) -> Seer:
        """For a hundred tokens."""
        return cls(block=16, width=16, threshold=0.1)

    @property
    def pattern(self) -> Pattern:
        """Blocks of a row of blocks."""
        return blocks(self.block)

    @property
    def budget(self) -> Budget:
        """Of the gate's probabilities."""
        return Threshold(self.threshold)

    def build(self, sizes: Sizes) -> SeerGate:
        """A fresh gate."""
        return SeerGate(self, sizes)

    def export(self) -> tuple[AttentionMethod]:
        """Prefill by the blocks the gate names."""
        return (
            AttentionMethod("seer_blocks", SeerScore(), self.pattern, self.budget, source=SOURCE, phases=("prefill",)),
        )


class SeerGate(Gate):
    """While training the layer attends densely; `loss` = KL(target || softmax of the gate), mean over rows of blocks.

    The target is the largest probability of every block, rows summing to 1 (`max_pooled`). Only the gate has gradients from it.
    """

    watches: ClassVar[tuple[str, ...]] = ("q_proj", "k_proj")

    def __init__(self, spec: Seer, sizes: Sizes):
        super().__init__()
        self.spec, self.sizes = spec, sizes
        self.q = nn.Parameter(torch.randn(sizes.heads, sizes.d, spec.width) * sizes.d**-0.5)
        self.k = nn.Parameter(torch.randn(sizes.kv_heads, 3 * sizes.d, spec.width) * (3 * sizes.d) ** -0.5)

    def logits(self, heads: Heads, unit: Tile) -> Float[Tensor, "batch heads rows columns"]:
        """Of every block, those of the future included.

        Raises:
            ModelError: the projections of this call were not seen, or a call that continues a sequence.
        """
        rows, columns = heads.rows_of(unit.rows), heads.columns_of(unit.cols)
        q, k = (self._seen(name, heads, n) for name, n in zip(self.watches, (heads.heads, heads.kv_heads), strict=True))
        at = [torch.tensor([a for a, _ in cuts], device=q.device) for cuts in (rows, columns)]
        ends = torch.cat([pooled(k, columns, how) for how in ("max", "min", "mean")], -1)
        q, k = rotate(pooled(q, rows) @ self.q, at[0]), rotate(ends @ self.k, at[1])
        return q @ heads.shared(k).mT * self.spec.width**-0.5

    def forward(self, heads: Heads) -> Float[Tensor, "batch heads queries d"]:
        """Dense attention; the gate is compared with it."""
        unit = self.spec.pattern.unit
        with torch.no_grad():
            _, target = max_pooled(heads, unit)
        allowed = heads.allowed(unit).to(target.device)
        found = self.logits(heads, unit).masked_fill(~allowed, -torch.inf).log_softmax(-1)
        first = int(self.spec.skip * target.shape[-2])
        target, found = target[..., first:, :], found[..., first:, :].masked_fill(~allowed[first:], 0.0)
        self.loss = (torch.xlogy(target, target) - target * found).sum(-1).mean()
        return attend_biased(heads, heads.q.new_zeros(1, 1, 1, 1))

    def _seen(self, name: str, heads: Heads, n: int) -> Tensor:
        found = self.outputs.get(name)
        if found is None or found.shape[:2] != (heads.batch, heads.keys):
            raise ModelError(
                f"The gate needs what {name} of its module makes of all {heads.keys} tokens of the call, without padding."
            )
        return found.detach().unflatten(-1, (n, -1)).transpose(1, 2).to(self.q.dtype)


@ATTENTION_SCORES.register("seer_gate")
@dataclass(frozen=True)
class SeerScore(AttentionScore):
    """The probability softmax_J(q_g . k_g / sqrt(width)) of a trained gate; heads that share keys take the largest."""

    probability: ClassVar[bool] = True
    shared: str | None = "max"

    def __call__(self, heads: Heads, unit: Tile) -> Float[Tensor, "batch heads rows columns"]:
        """Probabilities of blocks."""
        found = gate_of(heads.module, SeerGate).logits(heads, unit)
        return found.masked_fill(~heads.allowed(unit).to(found.device), -torch.inf).softmax(-1)


def max_pooled(
    heads: Heads, unit: Tile
) -> tuple[Float[Tensor, "batch heads queries d"], Float[Tensor, "batch heads rows columns"]]:
    """Attention, and max over a block of softmax(scale q k'), rows summing to 1: one pass over columns of blocks.

    Each column leaves the maxima of its rows; at the end they are brought to the final log-sum-exp, e^(max_ij - lse_i), so that
    no more than a column of the map is held at a time.
    """
    rows, columns = heads.rows_of(unit.rows), heads.columns_of(unit.cols)
    q, k, v = heads.q.float(), heads.shared(heads.k.float()), heads.shared(heads.v.float())
    at = torch.arange(heads.offset, heads.offset + heads.queries, device=q.device)[:, None]
    top, total, out = q.new_full((*q.shape[:3], 1), -torch.inf), q.new_zeros(*q.shape[:3], 1), torch.zeros_like(q)
    tops = []
    for first, last in columns:
        scores = q @ k[:, :, first:last].mT * heads.factor
        if heads.causal:
            scores = scores.masked_fill(torch.arange(first, last, device=q.device) > at, -torch.inf)
        most = scores.amax(-1, keepdim=True)
        tops.append(most)
        new = torch.maximum(top, most)
        weights, old = (scores - new).exp(), (top - new).exp()
        total, out, top = total * old + weights.sum(-1, keepdim=True), out * old + weights @ v[:, :, first:last], new
    lse = top + total.log()
    found = pooled((torch.cat(tops, -1) - lse).exp(), rows, "max")
    return (out / total).to(heads.q.dtype), found / found.sum(-1, keepdim=True)


add_trained(
    "seer_attention", Seer(), SOURCE,
    "A small gate on pooled queries and keys learns the block map of a frozen model from the model's own attention.",
    catalog=(141,),
    when="Long prompts are read often enough that a short training of the gates alone, with the model frozen, pays.",
    when_not="No training is possible, or neighbouring tokens are so alike that the product of their means ranks blocks as well.",
)  # fmt: skip
