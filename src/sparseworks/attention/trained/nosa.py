"""NOSA: most of the blocks are chosen independently of the query, so that few have to be fetched at each step."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from sparseworks.attention.heads import Heads
from sparseworks.attention.masks import Sink, Window
from sparseworks.attention.method import AttentionMethod
from sparseworks.attention.score import ATTENTION_SCORES, AttentionScore
from sparseworks.attention.trained.gate import KeyBiasGate, gate_of
from sparseworks.attention.trained.method import add_trained
from sparseworks.attention.trained.trainable import TRAINABLES, PagesOfKeys, Sizes, Trainable
from sparseworks.attention.trained.windows import overlaps, visible
from sparseworks.core.pattern import Tile
from sparseworks.core.published import Source

SOURCE = Source("Huang et al.", 2025, "2510.13602", "NOSA: Native and Offloadable Sparse Attention")


@TRAINABLES.register("nosa")
@dataclass(frozen=True)
class NOSA(PagesOfKeys, Trainable):
    """c_j = A_h softplus(v_j W) is added to logits; blocks: the first, local ones, `aware` by the query, the rest by c.

    Attributes:
        block: tokens of a block.
        keep: blocks of a query in all.
        aware: of them chosen by the query, beside the forced ones.
        local: the most recent blocks, always kept.
        span, stride: windows of pooled keys that the query is compared with.
    """

    block: int = 64
    keep: int = 64
    aware: int = 16
    local: int = 16
    span: int = 32
    stride: int = 16

    @classmethod
    def example(cls) -> NOSA:
        """For a hundred tokens."""
        return cls(block=8, keep=6, aware=2, local=2, span=8, stride=4)

    def build(self, sizes: Sizes) -> NOSAGate:
        """A fresh gate: A = 0."""
        return NOSAGate(self, sizes)

    def export(self) -> tuple[AttentionMethod]:
        """Blocks by query and by token, the bias added to logits."""
        always = Sink(1) | Window((self.local - 1) * self.block + 1)
        return (
            AttentionMethod(
                "nosa_blocks", NOSAScore(self.aware, self.local, self.span, self.stride), self.pattern, self.budget, always,
                source=SOURCE, phases=("prefill", "decode"),
            ),
        )  # fmt: skip


class NOSAGate(KeyBiasGate):
    """c_j = A_h softplus(v_j W), every key head by its own values."""

    def __init__(self, spec: NOSA, sizes: Sizes):
        super().__init__(spec, nn.Linear(sizes.d, 1, bias=False), sizes)

    def of_keys(self, v: Float[Tensor, "batch kv_heads keys d"]) -> Float[Tensor, "batch kv_heads keys"]:
        """c_j."""
        return self.a[:, None] * F.softplus(self.w(v)[..., 0])


@ATTENTION_SCORES.register("query_and_token")
@dataclass(frozen=True)
class NOSAScore(AttentionScore):
    """The `aware` best blocks by softmax(scale q . mean k) come first, above all others; those are ranked by c_j of a trained gate.

    Attributes:
        aware: blocks by the query, taken among those that are not kept anyway (the first, the `local` last ones).
        span, stride: pooled windows; a block takes the largest of the windows that touch it.
    """

    aware: int = 16
    local: int = 16
    span: int = 32
    stride: int = 16

    def __call__(self, heads: Heads, unit: Tile) -> Float[Tensor, "batch heads rows columns"]:
        """Query heads that share keys are summed; the rank by tokens is the same for all queries."""
        near, token = self.by_query(heads, unit), self.by_token(heads, unit)
        own = (torch.arange(heads.queries, device=near.device) + heads.offset)[:, None] // (unit.cols or 1)
        block = torch.arange(near.shape[-1], device=near.device)
        free = (block > 0) & (block <= own - self.local)
        # A window may be the largest of two blocks: the later one is then first, however many blocks there are.
        near = (near.double() + 1e-12 * block).masked_fill(~free, -1.0)
        best = near.topk(min(self.aware, near.shape[-1]), -1)
        first = torch.zeros_like(near, dtype=torch.bool).scatter(-1, best.indices, best.values >= 0)
        ranked = token.double().sigmoid() + 1e-12 * block
        return heads.shared(ranked.unsqueeze(2) + 2.0 * first)

    def by_query(self, heads: Heads, unit: Tile) -> Float[Tensor, "batch kv_heads queries blocks"]:
        """Largest share of the windows that touch a block, summed over the heads that share keys."""
        share, touch = self._windows(heads, unit)
        if not len(touch):
            return heads.q.new_zeros(heads.batch, heads.kv_heads, heads.queries, touch.shape[1])
        mean = heads.k.float().unfold(2, self.span, self.stride).mean(-1)
        scores = (heads.q.float() @ heads.shared(mean).mT * heads.factor).masked_fill(~share, -torch.inf)
        found = heads.grouped(scores.softmax(-1).nan_to_num(0.0), "sum")
        return _largest(found, touch, 0.0)

    def by_token(self, heads: Heads, unit: Tile) -> Float[Tensor, "batch kv_heads blocks"]:
        """c_j, mean over windows, largest of the windows that touch a block; a block without a window takes its own mean."""
        c = gate_of(heads.module, NOSAGate).of_keys(heads.v).float()
        own = heads.pooled(c.unsqueeze(-1), heads.columns_of(unit.cols))[..., 0]
        _, touch = self._windows(heads, unit)
        if not len(touch):
            return own
        found = _largest(c.unfold(2, self.span, self.stride).mean(-1), touch, -torch.inf)
        return torch.where(found == -torch.inf, own, found)

    def bias(self, heads: Heads) -> Float[Tensor, "batch kv_heads keys"]:
        """c."""
        return gate_of(heads.module, NOSAGate).of_keys(heads.v)

    def _windows(self, heads: Heads, unit: Tile) -> tuple[Tensor, Tensor]:
        touch = overlaps(heads.keys, self.span, self.stride, unit.cols or 1) > 0
        return visible(heads, self.span, self.stride), touch.to(heads.q.device)


def _largest(x: Tensor, touch: Tensor, none: float) -> Tensor:
    """max over the windows that touch a block: (*some windows) -> (*some blocks)."""
    return torch.stack([x[..., t].amax(-1) if bool(t.any()) else x[..., 0] * 0 + none for t in touch.T], -1)


add_trained(
    "nosa", NOSA(), SOURCE,
    "Few blocks by the query, the others by the tokens themselves, whose bias is trained: consecutive steps share most blocks.",
    catalog=(297,),
    when="Keys and values lie in slow memory, and what is fetched per step is what costs.",
    when_not="The whole cache fits where it is read: choosing by the query alone finds more.",
)  # fmt: skip
