"""Dynamic mask attention: a bias made of the values both chooses the keys and enters their logits."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from sparseworks.attention.heads import Heads
from sparseworks.attention.method import AttentionMethod
from sparseworks.attention.score import ATTENTION_SCORES, AttentionScore
from sparseworks.attention.trained.gate import KeyBiasGate, gate_of
from sparseworks.attention.trained.method import add_trained
from sparseworks.attention.trained.trainable import TRAINABLES, Sizes, Trainable
from sparseworks.core.budget import Budget, Count
from sparseworks.core.pattern import ELEMENT, ROW, Pattern, Tile
from sparseworks.core.published import Source

SOURCE = Source("Shi, Wu, Shi, Zhao, Wang and Luo", 2025, "2508.02124", "Trainable Dynamic Mask Sparse Attention")


@TRAINABLES.register("dma")
@dataclass(frozen=True)
class DMA(Trainable):
    """delta_j = A_h softplus(v_j W); of the keys before a query the `keep` with the largest delta stay, logits s_ij + delta_j.

    Attributes:
        keep: keys of a query (2048 in the paper); all where there are no more.
    """

    keep: int = 2048

    @classmethod
    def example(cls) -> DMA:
        """For a hundred tokens."""
        return cls(keep=16)

    @property
    def pattern(self) -> Pattern:
        """Keys of a query."""
        return Pattern(ELEMENT, ROW)

    @property
    def budget(self) -> Budget:
        """`keep` keys."""
        return Count(self.keep)

    def build(self, sizes: Sizes) -> DMAGate:
        """A fresh gate: A = 0, attention as it was as long as all keys are kept."""
        return DMAGate(self, sizes)

    def export(self) -> tuple[AttentionMethod]:
        """Keys chosen by delta, which is also added to their logits."""
        return (
            AttentionMethod(
                "dma_keys", DMAScore(), self.pattern, self.budget, source=SOURCE, phases=("prefill", "decode")
            ),
        )


class DMAGate(KeyBiasGate):
    """delta_j = A_h softplus(v_j W), the values of all key heads read together."""

    def __init__(self, spec: DMA, sizes: Sizes):
        super().__init__(spec, nn.Linear(sizes.kv_heads * sizes.d, sizes.kv_heads, bias=False), sizes)

    def of_keys(self, v: Float[Tensor, "batch kv_heads keys d"]) -> Float[Tensor, "batch kv_heads keys"]:
        """delta_j."""
        return self.a[:, None] * F.softplus(self.w(v.transpose(1, 2).flatten(2))).transpose(1, 2)


@ATTENTION_SCORES.register("value_bias")
@dataclass(frozen=True)
class DMAScore(AttentionScore):
    """delta_j = A_h softplus(v_j W) of a trained gate, the same for every query; where it ties, the more recent key is first."""

    def __call__(self, heads: Heads, unit: Tile) -> Float[Tensor, "batch heads rows columns"]:
        """Largest delta of the keys of a unit."""
        delta = gate_of(heads.module, DMAGate).of_keys(heads.v)
        delta = heads.pooled(delta.unsqueeze(-1), heads.columns_of(unit.cols), "max")[..., 0].double()
        recent = torch.linspace(0, 1e-9, delta.shape[-1], device=delta.device, dtype=torch.float64)
        rows = len(heads.rows_of(unit.rows))
        return heads.shared(delta + recent).unsqueeze(2).expand(-1, -1, rows, -1)

    def bias(self, heads: Heads) -> Float[Tensor, "batch kv_heads keys"]:
        """delta."""
        return gate_of(heads.module, DMAGate).of_keys(heads.v)


add_trained(
    "dma", DMA(), SOURCE,
    "Every key head learns from its values which tokens are worth keeping; the same bias enters the logits, which trains it.",
    catalog=(93,),
    when="A model is trained from the start, or fine-tuned, for long contexts in which some tokens matter to all that follow.",
    when_not="What is needed depends on the question: the choice does not look at the query.",
)  # fmt: skip
