"""Feed-forward layer and attention that predict what they need from a part of their own input: no parameters more, no sort."""

from __future__ import annotations

import math

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn import functional as F

from sparseworks.activations.trained.statistical import StatisticalTopK
from sparseworks.core.errors import BudgetError, ShapeError
from sparseworks.core.normal import normal_threshold


class SparkFeedForward(nn.Module):
    """y = V h, h = GELU(SoftTopK(K1 x1)) * (K2 x2), where x = [x1 (r entries), x2]. x (*, width) -> y (*, width).

    K1 predicts which neurons matter, and its value gates them; K1, K2 and V hold as many parameters as an ungated layer. The
    default r is half the width, which is the best reading.

    Source: You et al., 2025, arXiv 2506.06644 (Spark Transformer).
    """

    def __init__(self, width: int, hidden: int, *, share: float = 0.08, predictor: int | None = None):
        """Raises: ShapeError: `predictor` is not in (0, width)."""
        super().__init__()
        r = width // 2 if predictor is None else predictor
        if not 0 < r < width:
            raise ShapeError(f"The predictor takes 1 to {width - 1} of the {width} inputs, not {r}.")
        self.predictor = r
        self.activation = StatisticalTopK(share)
        self.select, self.value = nn.Linear(r, hidden, bias=False), nn.Linear(width - r, hidden, bias=False)
        self.down = nn.Linear(hidden, width, bias=False)

    def forward(self, x: Float[Tensor, "*lead width"]) -> Float[Tensor, "*lead width"]:
        """All of K2 and V, and the gradient of the soft threshold."""
        gate = F.gelu(self.activation(self.select(x[..., : self.predictor])))
        return self.down(gate * self.value(x[..., self.predictor :]))

    @torch.no_grad()
    def skipping(self, x: Float[Tensor, "*lead width"]) -> Float[Tensor, "*lead width"]:
        """The same from the rows of K2 and the columns of V of the selected neurons only, token by token."""
        rows = x.reshape(-1, x.shape[-1])
        gates = F.gelu(self.activation(self.select(rows[:, : self.predictor])))
        y = torch.empty_like(rows)
        for i, gate in enumerate(gates):
            at = gate.nonzero().squeeze(1)
            y[i] = self.down.weight[:, at] @ (gate[at] * (self.value.weight[at] @ rows[i, self.predictor :]))
        return y.reshape(x.shape)


def spark_attention(
    q: Float[Tensor, "*batch queries dim"],
    k: Float[Tensor, "*batch keys dim"],
    v: Float[Tensor, "*batch keys value"],
    *,
    keep: int = 256,
    predictor: int | None = None,
) -> tuple[Float[Tensor, "*batch queries value"], Bool[Tensor, "*batch queries keys"]]:
    """Causal attention with weights softmax_S(q1 k1 / sqrt(r)) * softplus(q2 k2 / sqrt(d - r)); S the statistical top-k of the first factor.

    q = [q1 (r entries), q2], k alike; the last query sees the last key. A row with at most `keep` keys keeps them all, and every
    row its best one. Returns the outputs and S.

    Source: You et al., 2025, arXiv 2506.06644 (at most 256 keys; r is half of d, the best reading). The scales are ours.

    Raises:
        ShapeError: q and k differ in size, or there are more queries than keys.
        BudgetError: `keep` below 1.
    """
    d, queries, keys = q.shape[-1], q.shape[-2], k.shape[-2]
    r = d // 2 if predictor is None else predictor
    if k.shape[-1] != d or queries > keys or not 0 < r < d:
        raise ShapeError(f"Split at {r}, queries {tuple(q.shape)} do not go with keys {tuple(k.shape)}.")
    if keep < 1:
        raise BudgetError(f"Every query keeps at least one key, got keep={keep}.")
    at = torch.arange(keys, device=q.device)
    seen = at <= at[keys - queries :, None]
    first = q[..., :r] @ k[..., :r].mT / math.sqrt(r)
    kept = _above(first, seen, keep)
    weights = first.masked_fill(~kept, -math.inf).softmax(dim=-1)
    return (weights * F.softplus(q[..., r:] @ k[..., r:].mT / math.sqrt(d - r))) @ v, kept


def _above(scores: Tensor, seen: Tensor, keep: int) -> Tensor:
    """Allowed scores at or above the normal threshold of their own row's allowed keys."""
    scores, count = scores.detach(), seen.sum(dim=-1, keepdim=True)
    best = scores.masked_fill(~seen, -math.inf).amax(dim=-1, keepdim=True)
    return seen & ((count <= keep) | (scores >= normal_threshold(scores, keep, seen).minimum(best)))
