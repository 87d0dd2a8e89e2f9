"""Dynamic-LLaVA: from one layer on, a predictor decides which tokens later layers keep."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn

from sparseworks.attention.cache.held import KV_SCORES, Held, KVScore
from sparseworks.attention.cache.method import HEAD, CacheMethod
from sparseworks.attention.heads import Heads
from sparseworks.attention.method import AttentionMethod
from sparseworks.attention.score import ATTENTION_SCORES, AttentionScore
from sparseworks.attention.trained.gate import Gate, attend_biased, gate_of
from sparseworks.attention.trained.method import add_trained
from sparseworks.attention.trained.remembered import remembered
from sparseworks.attention.trained.trainable import TRAINABLES, Sizes, Trainable
from sparseworks.core.budget import Budget, Threshold
from sparseworks.core.errors import ModelError
from sparseworks.core.pattern import ELEMENT, WHOLE, Pattern, Tile
from sparseworks.core.published import Source

SOURCE = Source(
    "Huang, Zhai, Shen, Cao, Zhao, Xu, Ye and Lin", 2024, "2412.00876", "Dynamic-LLaVA: Efficient Multimodal Large Language Models via Dynamic Vision-language Context Sparsification"
)  # fmt: skip

LEAST = 0.1
"""Share of the attention that kept tokens have at least in the gradient of decisions: without a bound, one head that looks at what was
dropped alone drives the predictor into saturation."""


@TRAINABLES.register("token_predictor")
@dataclass(frozen=True)
class TokenPredictor(Trainable):
    """Two logits a token from (own, mean of the tokens so far) features; keep is the larger; dropped tokens are no keys later.

    Attributes:
        layer: the first layer that drops.
        width: of the features.
        target: share of tokens that is kept (.2 of an image, .5 of long answers in the paper).
        weight: of the loss (kept share - target)^2.
        first, last: temperatures of the Gumbel softmax at the beginning and the end of training.
    """

    layer: int = 2
    width: int = 512
    target: float = 0.2
    weight: float = 100.0
    first: float = 1.0
    last: float = 0.1

    @classmethod
    def example(cls) -> TokenPredictor:
        """For a hundred tokens."""
        return cls(layer=1, width=16)

    @property
    def pattern(self) -> Pattern:
        """Tokens, the same for all heads and all later layers."""
        return Pattern(ELEMENT, WHOLE)

    @property
    def budget(self) -> Budget:
        """What the predictor keeps is 1, what it gives up -1."""
        return Threshold(0.5)

    def build(self, sizes: Sizes) -> TokenGate:
        """A predictor at `layer`, what listens to it behind it, nothing before."""
        return TokenGate(self, sizes)

    def export(self) -> tuple[AttentionMethod, CacheMethod]:
        """The prompt with only kept tokens as keys, and a cache that does not store the others in later layers."""
        return (
            AttentionMethod("predicted_prompt", TokenScore(), self.pattern, self.budget, source=SOURCE),
            CacheMethod("predicted_cache", TokenHeld(), HEAD, self.budget, source=SOURCE),
        )


class TokenGate(Gate):
    """The gate of `spec.layer` decides; those behind it follow; those before keep all. Every token sees itself.

    Departure: an image's two transformer layers over its tokens are a running mean here, so that the same predictor serves text.

    Attributes:
        protect: (tokens,) or (batch, tokens), True where a token stays in any case (instructions, the end); None: none does.
        decided: the decisions of the last call: 1 keeps, 0 drops, with gradients while training.
    """

    protect: Tensor | None = None
    decided: Tensor | None = None

    def __init__(self, spec: TokenPredictor, sizes: Sizes):
        super().__init__()
        self.spec, self.layer = spec, sizes.layer
        self._leader: tuple[TokenGate, ...] = ()  # in a tuple: its weights are not ours
        self._sum: Tensor | None = None
        if self.layer == spec.layer:
            self.local = nn.Sequential(nn.LayerNorm(sizes.width), nn.Linear(sizes.width, spec.width), nn.GELU())
            self.judge = nn.Sequential(nn.Linear(2 * spec.width, spec.width), nn.GELU(), nn.Linear(spec.width, 2))
            with torch.no_grad():  # all tokens are kept at first, and the loss lets go those that cost least
                self.judge[-1].bias.copy_(torch.tensor([0.0, 3.0]))  # type: ignore[union-attr]

    def join(self, gates: Mapping[int, Gate]) -> None:
        """Told of the gates of all layers.

        Raises:
            ModelError: the model has no such layer.
        """
        found = gates.get(self.spec.layer)
        if not isinstance(found, TokenGate):
            raise ModelError(f"The predictor sits in layer {self.spec.layer}; the layers are {sorted(gates)}.")
        self._leader = (found,)

    @property
    def leader(self) -> TokenGate:
        """The gate that decides.

        Raises:
            ModelError: the gates do not know each other (a copy).
        """
        if not self._leader:
            raise ModelError("The gates of this model do not know each other; call `attach` on it again.")
        return self._leader[0]

    def logits(self, hidden: Float[Tensor, "batch new width"], first: int) -> Float[Tensor, "batch new 2"]:
        """(drop, keep) of new tokens, the first of which stands at `first`; the running mean goes on from the last call."""
        own = self.local(hidden)
        before = self._sum if first and self._sum is not None else torch.zeros_like(own[:, 0])
        total = own.cumsum(1) + before[:, None]
        self._sum = total[:, -1].detach()
        count = torch.arange(first + 1, first + own.shape[1] + 1, device=own.device, dtype=own.dtype)
        return self.judge(torch.cat([own, total / count[:, None]], -1))

    def decide(self, hidden: Float[Tensor, "batch new width"], first: int = 0) -> Float[Tensor, "batch new"]:
        """1 for tokens that stay. Training: Gumbel softmax, hard forwards and soft backwards."""
        logits = self.logits(hidden, first)
        if self.training:
            heat = self.spec.first * (self.spec.last / self.spec.first) ** self.progress
            keep = F.gumbel_softmax(logits, tau=heat, hard=True)[..., 1]
        else:
            keep = (logits[..., 1] > logits[..., 0]).to(logits.dtype)
        free = torch.ones_like(keep, dtype=torch.bool)
        if self.protect is not None:
            free = ~self.protect.to(keep.device).expand(keep.shape[0], -1)[:, first : first + keep.shape[1]]
        share = (keep * free).sum() / free.sum().clamp(min=1)
        self.loss = self.spec.weight * (share - self.spec.target).square()
        self.decided = torch.where(free, keep, 1.0)
        return self.decided

    def keeps(self, hidden: Tensor, first: int = 0) -> Float[Tensor, "batch new"] | None:
        """Decisions as this layer sees them; None before the predictor's layer."""
        if self.layer < self.spec.layer:
            return None
        return self.decide(hidden, first) if self.layer == self.spec.layer else self.leader.decided

    def bias(self, heads: Heads) -> Float[Tensor, "batch 1 queries keys"]:
        """log of the decision, 0 for a token's own."""
        return self._column(self.keeps(self.read(heads)), heads)

    def forward(self, heads: Heads) -> Float[Tensor, "batch heads queries d"]:
        """Attention to what is kept; decisions learn by d out / d keep_j = (exp s_j / sum over kept exp s) (v_j - out), dropped ones too."""
        keep = self.keeps(self.read(heads))
        out = attend_biased(heads, self.counted(self._column(keep, heads), heads))
        if keep is None or not keep.requires_grad:
            return out
        own = torch.eye(heads.keys, dtype=torch.bool, device=keep.device)
        with torch.no_grad():
            whole, v = heads.scores().softmax(-1), heads.shared(heads.v)
        mass = whole * keep[:, None, None, :].masked_fill(own, 1.0)
        relaxed = mass @ v.detach() / mass.sum(-1, keepdim=True).clamp(min=LEAST)
        return out + (relaxed - relaxed.detach()).to(out.dtype)

    def _column(self, keep: Tensor | None, heads: Heads) -> Tensor:
        if keep is None:
            return heads.q.new_zeros(1, 1, 1, 1)
        return (
            torch.zeros_like(keep)
            .where(keep > 0, -torch.inf)[:, None, None, :]
            .masked_fill(torch.eye(heads.keys, dtype=torch.bool, device=keep.device), 0.0)
        )

    def forget(self) -> None:
        """Let go of the tensors of the last call."""
        super().forget()
        self.decided = self._sum = None

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_leader": (), "decided": None, "_sum": None}


def _pairs(keep: Tensor, heads: Heads) -> Bool[Tensor, "batch 1 queries keys"]:
    own = torch.eye(heads.keys, dtype=torch.bool, device=keep.device)
    return (keep[:, None, None, :] > 0) | own


@ATTENTION_SCORES.register("token_predictor")
@dataclass(frozen=True)
class TokenScore(AttentionScore):
    """1 where a trained predictor keeps the key, or the key is the query's own token; -1 elsewhere. All 1 before its layer."""

    def __call__(self, heads: Heads, unit: Tile) -> Float[Tensor, "batch 1 queries keys"]:
        """On single pairs."""
        del unit
        gate = gate_of(heads.module, TokenGate)
        keep = gate.keeps(gate.read(heads))
        if keep is None:
            return heads.q.new_ones(1, 1, heads.queries, heads.keys)
        return 2.0 * _pairs(keep, heads) - 1.0


@KV_SCORES.register("token_predictor")
@dataclass(frozen=True)
class TokenHeld(KVScore):
    """-1 for tokens that a trained predictor gave up when they came, else 1; asked after they have been attended to."""

    phases: ClassVar[frozenset[str]] = frozenset({"prefill", "decode"})

    def __call__(self, held: Held) -> Float[Tensor, "batch kv_heads held"]:
        """In the predictor's own layer too, as in training."""
        gate = gate_of(held.module, TokenGate)
        new, hidden = held.q.shape[2], gate.hidden
        if hidden is None or hidden.shape[1] != new:
            raise ModelError(
                "The gate did not see the hidden states of these tokens; rows with padding are not supported."
            )
        first = int(held.now.max()) + 1 - new
        known = (
            first == 0 and gate.layer == gate.spec.layer and gate.decided is not None and gate.decided.shape[1] == new
        )
        keep = gate.decided if known else gate.keeps(hidden, first)
        if keep is None:
            return torch.ones_like(held.positions, dtype=torch.float32)
        return 2.0 * (remembered(held, "kept", keep.unsqueeze(1)) > 0) - 1.0


add_trained(
    "dynamic_llava", TokenPredictor(), SOURCE,
    "A predictor behind an early layer drops image tokens from the prompt and generated tokens from the cache of all later layers. On recall with "
    "a frozen model of four layers, 22 % of the tokens answered all questions after 60 steps (three seeds), those that the questions attend to "
    "in the first layer 95 %, random ones 29 %.",
    catalog=(148,),
    when="Most tokens of a prompt are an image or other filler, the model may be fine-tuned, and prefill and cache both count.",
    when_not="Any token may be asked for later. Or the target is below what is needed: it then keeps what answers and misses the target (of 15 %, "
    "22 % stayed). Behind a layer that has already gathered what matters, random tokens do as well.",
)  # fmt: skip
