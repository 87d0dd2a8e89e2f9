"""Sparsifiner: a low-rank predictor draws, for every image, which tokens of a vision transformer are connected."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor, nn

from sparseworks.attention.heads import Heads
from sparseworks.attention.method import AttentionMethod
from sparseworks.attention.score import ATTENTION_SCORES, AttentionScore
from sparseworks.attention.select import select
from sparseworks.attention.trained.gate import Gate, gate_of
from sparseworks.attention.trained.method import add_trained
from sparseworks.attention.trained.trainable import TRAINABLES, Sizes, Trainable
from sparseworks.core.budget import Budget, Density
from sparseworks.core.errors import ShapeError
from sparseworks.core.pattern import ELEMENT, ROW, Pattern, Tile
from sparseworks.core.published import Source

SOURCE = Source(
    "Wei, Duke, Jiang, Aarabi, Taylor and Shkurti", 2023, "2303.13755", "Sparsifiner: Learning Sparse Instance-Dependent Attention for Efficient Vision Transformers"
)  # fmt: skip


@TRAINABLES.register("sparsifiner")
@dataclass(frozen=True)
class Sparsifiner(Trainable):
    """S = softmax(scale Q (E K)') W_up with E (rank x n) and W_up (rank x n), small entries of W_up taken as 0; the best of S stay.

    Attributes:
        tokens: n, of every image.
        rank: of the predictor.
        density: pairs of a query that are kept.
        small: entries of W_up below this share of their row's largest are 0.
        weight: of the loss |S - A|^2 / |A|^2 against the attention A of the whole map.
        warm: share of the training before which the layer attends to all pairs and only the predictor learns to choose.
    """

    bidirectional: ClassVar[bool] = True
    tokens: int
    rank: int = 32
    density: float = 0.25
    small: float = 0.05
    weight: float = 1.0
    warm: float = 0.4

    @classmethod
    def example(cls) -> Sparsifiner:
        """For 65 tokens."""
        return cls(65)

    @property
    def pattern(self) -> Pattern:
        """Single pairs; those of a query compete, so that no query is left without keys."""
        return Pattern(ELEMENT, ROW)

    @property
    def budget(self) -> Budget:
        """Of the pairs."""
        return Density(self.density)

    def build(self, sizes: Sizes) -> SparsifinerGate:
        """A fresh gate: E takes means of neighbouring tokens."""
        return SparsifinerGate(self, sizes)

    def export(self) -> tuple[AttentionMethod]:
        """Attention over the best pairs of each query."""
        return (AttentionMethod("sparsifiner_pairs", Connectivity(), self.pattern, self.budget, source=SOURCE),)


class SparsifinerGate(Gate):
    """The layer attends over the chosen pairs; the predictor learns by `loss` alone, the low-rank map is not used for outputs."""

    def __init__(self, spec: Sparsifiner, sizes: Sizes):
        super().__init__()
        self.spec = spec
        segment = torch.arange(spec.tokens) * spec.rank // spec.tokens
        mean = (segment == torch.arange(spec.rank)[:, None]).float()
        self.down = nn.Parameter(mean / mean.sum(-1, keepdim=True).clamp(min=1))
        self.up = nn.Parameter((mean + 0.1 * torch.rand(spec.rank, spec.tokens)) / spec.tokens)

    def connectivity(self, heads: Heads) -> Float[Tensor, "batch heads queries keys"]:
        """S.

        Raises:
            ShapeError: another number of tokens than it is made for.
        """
        if heads.keys != self.spec.tokens:
            raise ShapeError(f"This predictor is for {self.spec.tokens} tokens, the call has {heads.keys}.")
        low = heads.shared(self.down @ heads.k.detach().to(self.down.dtype))
        weights = (heads.q.detach().to(low.dtype) @ low.mT * heads.factor).softmax(-1)
        large = self.up.abs() >= self.spec.small * self.up.abs().amax(-1, keepdim=True)
        return weights @ torch.where(large, self.up, 0.0)

    def bias(self, heads: Heads) -> Float[Tensor, "batch heads queries keys"]:
        """0 on the kept pairs, -inf elsewhere."""
        found = self.connectivity(heads)
        with torch.no_grad():
            full = heads.scores().softmax(-1)
            kept = select(heads, self.spec.export()[0]).mask
        self.loss = self.spec.weight * (found - full).square().sum() / full.square().sum()
        if self.progress < self.spec.warm:
            return torch.zeros_like(full)
        return torch.zeros_like(full).masked_fill(~kept, -torch.inf)


@ATTENTION_SCORES.register("connectivity")
@dataclass(frozen=True)
class Connectivity(AttentionScore):
    """S = softmax(scale Q (E K)') W_up of a trained predictor, on single pairs."""

    def __call__(self, heads: Heads, unit: Tile) -> Float[Tensor, "batch heads rows columns"]:
        """S."""
        del unit
        return gate_of(heads.module, SparsifinerGate).connectivity(heads)


add_trained(
    "sparsifiner", Sparsifiner(197), SOURCE,
    "A low-rank predictor draws the connections of every image; attention is computed over these pairs only. Where the partner of a token lies "
    "anywhere on the grid, a quarter of the pairs answered 83 to 92 % (three seeds), a window or random pairs of as many, tuned alike, 29 to 32 %.",
    catalog=(184,),
    when="A vision transformer with a fixed number of tokens is fine-tuned, and which patches belong together differs by image.",
    when_not="Nothing may be lost: the dense layer answered 89 to 98 %. Or near patches say enough, or any few do: on small digits at 10 % of the "
    "pairs, 60 steps of fine-tuning without a warm-up gave 58 % of right names, as many with a fixed window 71 % and with random pairs 77 %.",
)  # fmt: skip
