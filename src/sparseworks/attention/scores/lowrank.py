"""Low-rank scores that learn on the side while a model is trained, and heads that turn sparse once they can be foretold (S4; DSV)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from sparseworks.attention.heads import Heads
from sparseworks.attention.score import ATTENTION_SCORES, AttentionScore
from sparseworks.core.errors import BudgetError
from sparseworks.core.pattern import Tile

_KEY = "low_rank"


class LowRankPredictor(nn.Module):
    """(q A_h)(k B_h)' scale with A_h, B_h of d x rank for every head, fitted to rows of attention by Adam, one step a call.

    Attributes:
        recall: of the keys that hold `mass` of a row's attention, those among as many foretold; of every head, smoothed.
        critical: how large a share of all keys they are.
        fits: steps made.
    """

    recall: Tensor
    critical: Tensor

    def __init__(self, heads: Heads, rank: int, lr: float, seed: int = 0):
        super().__init__()
        draw = torch.Generator().manual_seed(seed)
        start = torch.linalg.qr(torch.randn(heads.kv_heads, heads.d, min(rank, heads.d), generator=draw)).Q
        self.to_k = nn.Parameter(start.to(heads.q.device))
        self.to_q = nn.Parameter(heads.shared(start[None])[0].clone().to(heads.q.device))
        self.register_buffer("recall", torch.zeros(heads.heads, device=heads.q.device))
        self.register_buffer("critical", torch.ones(heads.heads, device=heads.q.device))
        self.fits, self.draw = 0, draw
        self.optimizer = torch.optim.Adam(self.parameters(), lr=lr)

    def logits(self, heads: Heads, rows: slice = slice(None)) -> Float[Tensor, "batch heads rows keys"]:
        """Foretold scores, those of the future far below all others."""
        q, k = heads.q[:, :, rows].detach().float() @ self.to_q, heads.k.detach().float() @ self.to_k
        found = q @ heads.shared(k).mT * heads.factor
        if not heads.causal:
            return found
        at = torch.arange(heads.offset, heads.offset + heads.queries, device=found.device)[rows]
        return found.masked_fill(torch.arange(heads.keys, device=found.device) > at[:, None], -1e30)

    def fit(self, heads: Heads, unit: Tile, mass: float) -> None:
        """One step on the cross-entropy of a group of queries drawn at random, after it has been judged by it."""
        cuts = heads.rows_of(unit.rows)
        rows = slice(*cuts[int(torch.randint(len(cuts), (1,), generator=self.draw))])
        with torch.no_grad():
            target = heads.scores(rows).softmax(-1)
        with torch.enable_grad():
            found = self.logits(heads, rows).log_softmax(-1)
            loss = -(target * found).sum(-1).mean()
            self.optimizer.zero_grad()
            loss.backward()
        self._judge(target.mean(-2), found.detach().exp().mean(-2), mass)
        self.optimizer.step()

    @torch.no_grad()
    def _judge(
        self, real: Float[Tensor, "batch heads keys"], found: Float[Tensor, "batch heads keys"], mass: float
    ) -> None:
        ordered, order = real.sort(dim=-1, descending=True)
        need = (ordered.cumsum(-1) < mass).sum(-1, keepdim=True) + 1
        place = torch.arange(real.shape[-1], device=real.device)
        critical = torch.zeros_like(real, dtype=torch.bool).scatter(-1, order, (place < need).expand_as(order))
        guess = found.argsort(dim=-1, descending=True).argsort(dim=-1) < need
        share = 1.0 if self.fits == 0 else 0.1
        self.recall.lerp_(((critical & guess).sum(-1) / need[..., 0]).mean(0), share)
        self.critical.lerp_((need[..., 0] / real.shape[-1]).mean(0), share)
        self.fits += 1


@ATTENTION_SCORES.register("low_rank")
@dataclass(frozen=True)
class LowRankScore(AttentionScore):
    """mean over i in I of sum over j in J of softmax_j(scale (q_i A)(k_j B)'), with A and B learnt (Tan et al. 2025, arXiv 2502.07590).

    A head is computed whole until its predictor finds a share `recall` of the critical keys, those that hold `mass` of the
    attention, and these are at most 1 - `sparsity` of all. Learning goes on in calls that want gradients, on detached queries and
    keys, so the model's own loss does not feel it; what is learnt lies in `heads.learned`. (The loss is our reading; the paper
    projects what the layer reads, which for queries and keys without rotation is the same.)

    Raises:
        BudgetError: shares outside [0, 1], or no rank.
    """

    rank: int = 16
    mass: float = 0.9
    recall: float = 0.85
    sparsity: float = 0.5
    warm: int = 50
    lr: float = 0.01
    probability: ClassVar[bool] = True
    shared: str | None = None

    def __post_init__(self):
        if self.rank < 1 or not all(0 <= x <= 1 for x in (self.mass, self.recall, self.sparsity)):
            raise BudgetError(f"The rank is at least 1, and shares lie in [0, 1]; got {self}.")

    @torch.no_grad()
    def __call__(self, heads: Heads, unit: Tile) -> Float[Tensor, "batch heads rows columns"]:
        """Foretold mass of the units."""
        predictor = self.predictor(heads)
        edges = torch.tensor([b for _, b in heads.columns_of(unit.cols)], device=heads.q.device) - 1
        held = [
            predictor.logits(heads, slice(a, b)).softmax(-1).mean(-2).cumsum(-1)[..., edges]
            for a, b in heads.rows_of(unit.rows)
        ]
        found = torch.stack(held, -2)
        return found.diff(dim=-1, prepend=torch.zeros_like(found[..., :1])).clamp(min=0)

    def dense(self, heads: Heads) -> Bool[Tensor, "batch heads"] | None:
        """Heads that are not ready."""
        one = self.predictor(heads)
        ready = (one.recall >= self.recall) & (one.critical <= 1 - self.sparsity) & (one.fits >= self.warm)
        return (~ready).expand(heads.batch, -1)

    def learn(self, heads: Heads, **seen: Any) -> None:
        """A step of the predictor."""
        if torch.is_grad_enabled():
            one = self.predictor(heads)
            one.fit(heads, seen["kept"].unit, self.mass)
            heads.learned["critical"] = one.critical

    def predictor(self, heads: Heads) -> LowRankPredictor:
        """That of the layer, made at the first call."""
        if _KEY not in heads.learned:
            heads.learned[_KEY] = LowRankPredictor(heads, self.rank, self.lr)
        return heads.learned[_KEY]
