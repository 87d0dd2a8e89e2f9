"""Dynamic memory sparsification: every key head decides for each token whether it goes, and it goes some steps later."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn

from sparseworks.attention.cache.held import KV_SCORES, Held, KVScore
from sparseworks.attention.cache.method import HEAD, CacheMethod
from sparseworks.attention.heads import Heads
from sparseworks.attention.method import AttentionMethod
from sparseworks.attention.score import ATTENTION_SCORES, AttentionScore
from sparseworks.attention.trained.gate import Gate, gate_of
from sparseworks.attention.trained.method import add_trained
from sparseworks.attention.trained.remembered import new_tokens, remembered
from sparseworks.attention.trained.trainable import TRAINABLES, Decided, Sizes, Trainable
from sparseworks.core.pattern import Tile
from sparseworks.core.published import Source

SOURCE = Source(
    "Łańcucki, Staniszewski, Nawrot and Ponti", 2025, "2506.05345", "Inference-Time Hyper-Scaling with KV Cache Compression"
)  # fmt: skip


@TRAINABLES.register("dms")
@dataclass(frozen=True)
class DMS(Decided, Trainable):
    """a_t = gain h_t . w - 5 of each key head; a token with a_t > 0 goes once it is more than `window` steps back.

    Attributes:
        window: steps between decision and eviction (256 in the paper).
        ratio: compression aimed at, reached linearly over the training.
        gain: of the logit.
        temperature: of the relaxed decisions in training.
        weight: of the loss max(0, (1 - 1/ratio) - mean of the decisions).
    """

    window: int = 256
    ratio: float = 4.0
    gain: float = 100.0
    temperature: float = 0.1
    weight: float = 1.0

    @classmethod
    def example(cls) -> DMS:
        """For a hundred tokens."""
        return cls(window=8)

    def build(self, sizes: Sizes) -> DMSGate:
        """A fresh gate: w = 0, nothing goes."""
        return DMSGate(self, sizes)

    def export(self) -> tuple[AttentionMethod, CacheMethod]:
        """The prompt attended to as after eviction, and the cache from which tokens really go."""
        kept = DMSScore()
        return (
            AttentionMethod("dms_prompt", kept, self.pattern, self.budget, source=SOURCE, phases=("prefill",)),
            CacheMethod("dms_cache", DMSHeld(), HEAD, self.budget, source=SOURCE),
        )


class DMSGate(Gate):
    """Training: alpha = sigmoid((a + logistic noise) / temperature), and log(1 - alpha_j) is added where i - j > window.

    In `eval` mode decisions are hard and without noise. `loss` pulls the mean decision to the target. Departure: the decision
    about a token is read from that token, not from the one after it as in the published code.
    """

    def __init__(self, spec: DMS, sizes: Sizes):
        super().__init__()
        self.spec = spec
        self.w = nn.Linear(sizes.width, sizes.kv_heads, bias=False)
        nn.init.zeros_(self.w.weight)

    def logits(self, hidden: Float[Tensor, "batch tokens width"]) -> Float[Tensor, "batch kv_heads tokens"]:
        """gain h_t . w - 5."""
        return (self.spec.gain * self.w(hidden) - 5.0).transpose(1, 2)

    def bias(self, heads: Heads) -> Float[Tensor, "batch heads queries keys"]:
        """log(1 - alpha_j) behind the window, 0 within."""
        logits, back = self.logits(self.read(heads)), _back(heads)
        if self.training:
            u = torch.rand_like(logits).clamp(1e-6, 1 - 1e-6)
            logits = (logits + u.log() - (-u).log1p()) / self.spec.temperature
            stays = F.logsigmoid(-logits)
            ratio = 1 + (self.spec.ratio - 1) * self.progress
            self.loss = self.spec.weight * F.relu(1 - 1 / ratio - logits.sigmoid().mean())
        else:
            stays = torch.zeros_like(logits).masked_fill(logits > 0, -torch.inf)
        return heads.shared(stays.unsqueeze(2)).masked_fill(back <= self.spec.window, 0.0)

    def kept(self, heads: Heads) -> Bool[Tensor, "batch kv_heads queries keys"]:
        """Pairs that hard decisions leave."""
        return (self.logits(self.read(heads)) <= 0).unsqueeze(2) | (_back(heads) <= self.spec.window)


def _back(heads: Heads) -> Tensor:
    at = torch.arange(heads.keys, device=heads.q.device)
    return at[heads.offset :, None] - at


@ATTENTION_SCORES.register("dms")
@dataclass(frozen=True)
class DMSScore(AttentionScore):
    """1 for pairs whose key a trained gate has not evicted by then, -1 for the others."""

    def __call__(self, heads: Heads, unit: Tile) -> Float[Tensor, "batch heads rows columns"]:
        """On single pairs."""
        del unit
        return heads.shared(2.0 * gate_of(heads.module, DMSGate).kept(heads) - 1.0)


@KV_SCORES.register("dms")
@dataclass(frozen=True)
class DMSHeld(KVScore):
    """-1 for tokens that a trained gate gives up and that the next query has more than `window` steps behind it, else 1."""

    def __call__(self, held: Held) -> Float[Tensor, "batch kv_heads held"]:
        """Decisions are made once, when a token comes, and remembered."""
        gate = gate_of(held.module, DMSGate)
        goes = remembered(held, "dms", gate.logits(new_tokens(held, gate)) > 0)
        behind = held.now[:, None, None] + 1 - held.positions > gate.spec.window
        return 1.0 - 2.0 * (goes & behind)


add_trained(
    "dms", DMS(), SOURCE,
    "Key heads learn, in a short distillation, which tokens of the cache to let go, some steps after they were read. On one layer that is asked for "
    "the token just before and for a mark far back, 26 to 31 % of the pairs answered all that dense attention did (three seeds); the same "
    "decisions carried out at once answered at most 10 %, H2O of that size at most 21 %, the last query's choice at most 57 %.",
    catalog=(100,),
    when="A reasoning model writes long answers and the cache limits how many or how long; a fine-tuning of about 1000 steps is possible.",
    when_not="Nothing can be trained, or what comes next never looks at what was just written. With a gain of 100, gates want steps of 3e-4 or "
    "less, and the model trains with them: at 3e-3 the decisions are fixed within a few steps, and not the best ones.",
)  # fmt: skip
