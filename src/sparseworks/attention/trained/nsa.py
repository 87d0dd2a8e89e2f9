"""Native sparse attention: compressed, selected and window branches, mixed by a gate."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor, nn

from sparseworks.attention.dense import attend_dense
from sparseworks.attention.heads import Heads
from sparseworks.attention.masks import Sink, Window
from sparseworks.attention.method import AttentionMethod
from sparseworks.attention.run import sparse_attention
from sparseworks.attention.score import ATTENTION_SCORES, AttentionScore
from sparseworks.attention.trained.method import add_trained
from sparseworks.attention.trained.rotary import rotate
from sparseworks.attention.trained.trainable import TRAINABLES, PagesOfKeys, Sizes, Trainable
from sparseworks.attention.trained.windows import count, overlaps, visible
from sparseworks.core.errors import ModelError
from sparseworks.core.pattern import ELEMENT, ROW, Pattern, Tile
from sparseworks.core.published import Source

SOURCE = Source(
    "Yuan et al.", 2025, "2502.11089", "Native Sparse Attention: Hardware-Aligned and Natively Trainable Sparse Attention"
)  # fmt: skip
BRANCHES = ("compressed", "selected", "window")


@TRAINABLES.register("nsa")
@dataclass(frozen=True)
class NSA(PagesOfKeys, Trainable):
    """o = sum over branches of sigmoid(MLP(x)) Attn; the selected blocks are those whose windows the compressed branch attends to.

    Attributes:
        span, stride: windows of keys that a learned MLP makes one key and one value of.
        block: tokens of a selected block.
        keep: selected blocks of a query, the first and the `local` last ones among them.
        window: keys of the third branch.
    """

    replaces: ClassVar[bool] = True
    span: int = 32
    stride: int = 16
    block: int = 64
    keep: int = 16
    local: int = 2
    window: int = 512

    @classmethod
    def example(cls) -> NSA:
        """For a hundred tokens."""
        return cls(span=4, stride=2, block=8, keep=4, local=1, window=12)

    def everything(self, tokens: int) -> NSA:
        """All blocks, and a window over all tokens."""
        return replace(self, keep=-(-tokens // self.block), window=tokens)

    def build(self, sizes: Sizes) -> NSAttention:
        """A fresh module; each branch has keys and values of its own."""
        return NSAttention(self, sizes)

    def export(self) -> tuple[AttentionMethod, AttentionMethod]:
        """The selected and the window branch; the module attends by these, on the kernels where no gradient is wanted."""
        both, always = ("prefill", "decode"), Sink(1) | Window((self.local - 1) * self.block + 1)
        return (
            AttentionMethod(
                "nsa_selected", Compressed(), self.pattern, self.budget, always, source=SOURCE, phases=both
            ),
            AttentionMethod(
                "nsa_window", None, Pattern(ELEMENT, ROW), always=Window(self.window), source=SOURCE, phases=both
            ),
        )


@ATTENTION_SCORES.register("compressed")
@dataclass(frozen=True)
class Compressed(AttentionScore):
    """p^slc: what the compressed branch attends to in each block, each window by the strides it has there, heads summed."""

    def __call__(self, heads: Heads, unit: Tile) -> Float[Tensor, "batch heads rows columns"]:
        """From `heads.memory["importance"]`, which the module has put there.

        Raises:
            ModelError: the call is not one of the module's.
        """
        del unit
        if "importance" not in heads.memory:
            raise ModelError("This score belongs to the module of native sparse attention, which alone can use it.")
        return heads.shared(heads.memory["importance"])


@dataclass
class Past:
    """Keys and values of the branches so far, for generation.

    Attributes:
        parts: (2 x 3) x (batch, kv_heads, tokens, d): keys, then values, of each branch; those of the compressed one not rotated.
    """

    parts: list[Tensor] = field(default_factory=list)

    @property
    def tokens(self) -> int:
        """So far."""
        return self.parts[0].shape[2] if self.parts else 0

    def add(self, new: list[Tensor]) -> list[Tensor]:
        """All tokens, the new ones included."""
        self.parts = [torch.cat(pair, 2) for pair in zip(self.parts, new, strict=True)] if self.parts else new
        return self.parts


class Compress(nn.Module):
    """sum_t w_t / sqrt(span) + MLP(w), the MLP small at first: from the first step a window is chosen by what it holds.

    Departure: the paper has the MLP alone, the code at fla-org/native-sparse-attention a mean alone. A fresh MLP says nothing of
    its keys, and a mean has logits so small that blocks are chosen by chance for long; this has the scale of a key.
    """

    def __init__(self, span: int, d: int):
        super().__init__()
        self.mlp = nn.Sequential(nn.Linear(span * d, d), nn.GELU(), nn.Linear(d, d))
        with torch.no_grad():
            self.mlp[-1].weight.mul_(0.1), self.mlp[-1].bias.zero_()  # type: ignore[operator, union-attr]

    def forward(self, windows: Float[Tensor, "*some span d"]) -> Float[Tensor, "*some d"]:
        """One key or value of each window."""
        return windows.sum(-2) * windows.shape[-2] ** -0.5 + self.mlp(windows.flatten(-2))


class NSAttention(nn.Module):
    """In place of an attention module. Selection has no gradient; the MLPs learn through the compressed branch.

    Attributes:
        density: pairs of all branches over allowed pairs, of the last call.
    """

    def __init__(self, spec: NSA, sizes: Sizes):
        super().__init__()
        self.spec, self.sizes = spec, sizes
        width, d, kv = sizes.width, sizes.d, sizes.kv_heads
        self.progress, self.density = 1.0, 1.0
        self.loss: Tensor = torch.zeros(())
        self.q_proj = nn.Linear(width, sizes.heads * d, bias=False)
        self.kv_proj = nn.Linear(width, 6 * kv * d, bias=False)
        self.o_proj = nn.Linear(sizes.heads * d, width, bias=False)
        self.gate = nn.Sequential(nn.Linear(width, width // 2), nn.SiLU(), nn.Linear(width // 2, 3 * sizes.heads))
        self.places = nn.Parameter(torch.randn(2, spec.span, d) * 0.02)
        self.compress = nn.ModuleList(Compress(spec.span, d) for _ in range(2))

    def forward(
        self, hidden_states: Float[Tensor, "batch new width"], *args: Any, past: Past | None = None, **others: Any
    ) -> tuple[Float[Tensor, "batch new width"], None]:
        """As attention modules of transformers answer; `past` carries generation on.

        Raises:
            ModelError: a cache of transformers, or a mask that hides more than the future.
        """
        del args
        if others.get("past_key_values") is not None or others.get("cache") is not None:
            raise ModelError("Native sparse attention keeps keys of its own: call the model with use_cache=False.")
        return self._mixed(hidden_states, self.branches(hidden_states, past)), None

    def dense(self, hidden: Float[Tensor, "batch tokens width"]) -> Float[Tensor, "batch tokens width"]:
        """What it gives where blocks and window cover all: the compressed branch, and twice dense attention."""
        q, (raw, *keys), (first, *values) = self._projected(hidden, Past())
        outs = [self.compressed(Heads(q, raw, first))[0]]
        outs += [attend_dense(Heads(q, k, v)) for k, v in zip(keys, values, strict=True)]
        return self._mixed(hidden, outs)

    def branches(
        self, hidden: Float[Tensor, "batch new width"], past: Past | None = None
    ) -> list[Float[Tensor, "batch heads new d"]]:
        """The outputs of the compressed, the selected and the window branch."""
        q, (raw, k_sel, k_win), values = self._projected(hidden, Past() if past is None else past)
        first, importance = self.compressed(Heads(q, raw, values[0]))
        heads = Heads(q, k_sel, values[1], memory={"importance": importance})
        selected, window = self.spec.export()
        (second, _), kept = sparse_attention(heads, selected)
        (third, _), near = sparse_attention(Heads(q, k_win, values[2]), window)
        windows = visible(heads, self.spec.span, self.spec.stride).sum()
        own = sum(1.0 if k is None else k.density(heads) for k in (kept, near))
        self.density = own + float(windows / heads.pairs(Tile(None, None)).sum())
        return [first, second, third]

    def compressed(
        self, heads: Heads
    ) -> tuple[Float[Tensor, "batch heads new d"], Float[Tensor, "batch kv_heads new blocks"]]:
        """Attention to one key a window, and what it says about blocks. Queries before the first whole window get 0."""
        span, stride = self.spec.span, self.spec.stride
        share = overlaps(heads.keys, span, stride, self.spec.block).to(heads.q)
        if not count(heads.keys, span, stride):
            return torch.zeros_like(heads.q), heads.q.new_zeros(*heads.k.shape[:2], heads.queries, share.shape[1])
        windows = [t.unfold(2, span, stride).mT + p for t, p in zip((heads.k, heads.v), self.places, strict=True)]
        k, v = (made(w) for made, w in zip(self.compress, windows, strict=True))
        k = rotate(k, torch.arange(k.shape[2], device=k.device) * stride)
        seen = visible(heads, span, stride)
        scores = (heads.q @ heads.shared(k).mT * heads.factor).masked_fill(~seen, -torch.inf)
        p = scores.masked_fill(~seen.any(-1, keepdim=True), 0.0).softmax(-1) * seen.any(-1, keepdim=True)
        with torch.no_grad():
            importance = heads.grouped(p, "sum") @ share
        return p @ heads.shared(v), importance

    def _projected(self, hidden: Tensor, past: Past) -> tuple[Tensor, list[Tensor], list[Tensor]]:
        """Queries of the new tokens, keys and values of all, of each branch."""
        at = torch.arange(past.tokens, past.tokens + hidden.shape[1], device=hidden.device)
        q = rotate(self.q_proj(hidden).unflatten(-1, (self.sizes.heads, -1)).transpose(1, 2), at)
        parts = self.kv_proj(hidden).unflatten(-1, (6, self.sizes.kv_heads, -1)).permute(2, 0, 3, 1, 4)
        found = past.add([parts[0], rotate(parts[1], at), rotate(parts[2], at), *parts[3:]])
        return q, found[:3], found[3:]

    def _mixed(self, hidden: Tensor, outs: list[Tensor]) -> Tensor:
        gates = self.gate(hidden).sigmoid().unflatten(-1, (3, -1)).permute(2, 0, 3, 1)
        mixed = torch.sum(gates.unsqueeze(-1) * torch.stack(outs), dim=0)
        return self.o_proj(mixed.transpose(1, 2).flatten(2))


add_trained(
    "nsa", NSA(), SOURCE,
    "Three branches mixed by a gate: one key a window, whole blocks that those point at, and the recent keys. Of one layer that read 60 % of the "
    "pairs, three seeds found a mark among 96 tokens at 99.5 % of the places or more, as dense attention did; a window of as many pairs at 28 to "
    "30 %, and 18 to 41 % were left once no block was free.",
    catalog=(295,),
    when="A model is trained for long contexts from the start, and training, reading and generation shall all be sparse.",
    when_not="A model that was trained dense is to be used as it is: the branches have keys and values of their own. Rows are short: of 96 tokens "
    "the branches together read 60 % of the pairs, and where a dense layer needs 70 steps to find anything this one needs 110.",
)  # fmt: skip
