"""Dynamic context pruning: every new token may drop any earlier token, for good."""

from __future__ import annotations

from dataclasses import dataclass
from math import cos, pi
from typing import ClassVar

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from sparseworks.attention.cache.held import KV_SCORES, Held, KVScore
from sparseworks.attention.cache.method import HEAD, CacheMethod
from sparseworks.attention.heads import Heads
from sparseworks.attention.method import AttentionMethod
from sparseworks.attention.score import ATTENTION_SCORES, AttentionScore
from sparseworks.attention.trained.entmax import sparse_sigmoid
from sparseworks.attention.trained.gate import Gate, gate_of
from sparseworks.attention.trained.method import add_trained
from sparseworks.attention.trained.remembered import new_tokens, remember
from sparseworks.attention.trained.trainable import TRAINABLES, Decided, Sizes, Trainable
from sparseworks.core.pattern import Tile
from sparseworks.core.published import Source

SOURCE = Source(
    "Anagnostidis et al.", 2023, "2305.15805", "Dynamic Context Pruning for Efficient and Interpretable Autoregressive Transformers"
)  # fmt: skip


@TRAINABLES.register("context_pruning")
@dataclass(frozen=True)
class ContextPruning(Decided, Trainable):
    """z_ij = (x_i W_q) . (x_j W_k) / sqrt(width) + b; keep p_ij = alpha-sigmoid(z_ij), P_ij = prod over j < l <= i of p_lj.

    Attributes:
        width: of the interaction.
        bias: b at the start: positive, so that nothing is dropped at first.
        alpha: of the sigmoid at the end of training; it rises from 1 along a cosine.
        weight: gamma of the loss gamma mean P.
    """

    width: int = 64
    bias: float = 5.0
    alpha: float = 8.0
    weight: float = 0.3

    @classmethod
    def example(cls) -> ContextPruning:
        """For a hundred tokens."""
        return cls(width=16)

    def build(self, sizes: Sizes) -> PruningGate:
        """A fresh gate."""
        return PruningGate(self, sizes)

    def export(self) -> tuple[AttentionMethod, CacheMethod]:
        """The prompt attended to as after pruning, and the cache from which tokens really go."""
        return (
            AttentionMethod("pruned_prompt", PruningScore(), self.pattern, self.budget, source=SOURCE),
            CacheMethod("pruned_cache", PruningHeld(), HEAD, self.budget, source=SOURCE),
        )


class PruningGate(Gate):
    """log P_ij is added to the logits; `loss` is gamma times the mean P of the past. In `eval` mode p = 1 where z > 0, else 0."""

    def __init__(self, spec: ContextPruning, sizes: Sizes):
        super().__init__()
        self.spec = spec
        self.q, self.k = (nn.Linear(sizes.width, spec.width, bias=False) for _ in range(2))
        self.b = nn.Parameter(torch.tensor(spec.bias))

    @property
    def alpha(self) -> float:
        """Of the sigmoid now."""
        return 1 + (self.spec.alpha - 1) * (1 - cos(pi * self.progress)) / 2

    def logits(
        self, queries: Float[Tensor, "batch new width"], keys: Float[Tensor, "batch tokens inner"]
    ) -> Float[Tensor, "batch new tokens"]:
        """z of new tokens and the interaction keys (`k`) of all."""
        return self.q(queries) @ keys.mT * self.spec.width**-0.5 + self.b

    def stays(self, heads: Heads) -> Float[Tensor, "batch queries keys"]:
        """P: what is left of each token for each query; 1 for the query's own."""
        hidden = self.read(heads)
        z = self.logits(hidden, self.k(hidden))
        p = sparse_sigmoid(z, self.alpha) if self.training else (z > 0).to(z.dtype)
        past = torch.ones_like(z[0], dtype=torch.bool).tril(-1)
        return torch.where(past, p, 1.0).cumprod(-2)

    def bias(self, heads: Heads) -> Float[Tensor, "batch 1 queries keys"]:
        """log P."""
        stays = self.stays(heads)
        past = torch.ones_like(stays[0], dtype=torch.bool).tril(-1)
        self.loss = self.spec.weight * stays[:, past].mean()
        return torch.where(stays > 0, stays.clamp(min=1e-30).log(), -torch.inf).unsqueeze(1)

    def kept(self, heads: Heads) -> Bool[Tensor, "batch queries keys"]:
        """Pairs that hard decisions leave."""
        hidden = self.read(heads)
        keep = self.logits(hidden, self.k(hidden)) > 0
        return torch.where(torch.ones_like(keep[0]).tril(-1), keep, True).long().cumprod(-2).bool()


@ATTENTION_SCORES.register("context_pruning")
@dataclass(frozen=True)
class PruningScore(AttentionScore):
    """1 for pairs whose key a trained gate has not dropped by then, -1 for the others; all heads alike."""

    def __call__(self, heads: Heads, unit: Tile) -> Float[Tensor, "batch 1 queries keys"]:
        """On single pairs."""
        del unit
        return 2.0 * gate_of(heads.module, PruningGate).kept(heads).unsqueeze(1) - 1.0


@KV_SCORES.register("context_pruning")
@dataclass(frozen=True)
class PruningHeld(KVScore):
    """-1 for tokens that one of the new tokens drops, before it attends; else 1. What went does not come back."""

    before: ClassVar[bool] = True

    def __call__(self, held: Held) -> Float[Tensor, "batch kv_heads held"]:
        """Interaction keys of all tokens are remembered, width values a token and layer."""
        gate = gate_of(held.module, PruningGate)
        hidden = new_tokens(held, gate)
        keys = remember(held, "interaction", gate.k(hidden).mT).mT
        keep = gate.logits(hidden, keys) > 0
        at = torch.arange(keys.shape[1], device=keys.device)
        stays = (keep | (at >= at[len(at) - hidden.shape[1] :, None])).all(1, keepdim=True)
        found = stays.expand(-1, held.k.shape[1], -1).gather(2, held.positions.long().clamp(min=0))
        return 2.0 * found - 1.0


add_trained(
    "context_pruning", ContextPruning(), SOURCE,
    "Every new token may drop any earlier token of its layer, for good, by decisions that training makes sharp.",
    catalog=(116,),
    when="A model may be fine-tuned, and its text repeats itself or closes matters that no later token needs.",
    when_not="No training is possible, or every token may be asked for at the end.",
)  # fmt: skip
