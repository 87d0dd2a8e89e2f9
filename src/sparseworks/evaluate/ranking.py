"""Ranking metrics as trec_eval defines them: nDCG, recall, average precision, from graded judgements."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from sparseworks.core.errors import NonFiniteError

Judgements = Mapping[str, int]


def ndcg(ranked: Sequence[str], judged: Judgements, k: int = 10) -> float:
    """DCG@k / ideal DCG@k, DCG@k = sum_{i=1..k} rel_i / log2(i + 1) (Järvelin and Kekäläinen, 2002), in [0, 1].

    The gain is linear in the grade, as in trec_eval and BEIR; documents without judgement and negative grades count 0; the
    ideal ranking holds all judged documents, also such as are not in the collection. 0 without a relevant document.
    """
    gains = [max(judged.get(d, 0), 0) for d in ranked[:k]]
    best = sorted((max(g, 0) for g in judged.values()), reverse=True)[:k]
    ideal = _dcg(best)
    return _dcg(gains) / ideal if ideal else 0.0


def recall(ranked: Sequence[str], judged: Judgements, k: int = 100) -> float:
    """|relevant among the first k| / |relevant|; relevant = grade > 0. 0 without a relevant document."""
    relevant = {d for d, g in judged.items() if g > 0}
    return len(relevant.intersection(ranked[:k])) / len(relevant) if relevant else 0.0


def average_precision(ranked: Sequence[str], judged: Judgements, k: int = 1000) -> float:
    """(1 / |relevant|) sum over ranks i <= k of relevant documents of precision@i; relevant = grade > 0."""
    relevant = {d for d, g in judged.items() if g > 0}
    found, total = 0, 0.0
    for i, document in enumerate(ranked[:k], start=1):
        if document in relevant:
            found += 1
            total += found / i
    return total / len(relevant) if relevant else 0.0


def top(scores: Float[Tensor, "queries documents"], ids: Sequence[str], k: int = 1000) -> list[list[str]]:
    """Ids of the k best documents of each query, best first; equal scores keep the order of the collection.

    Raises:
        NonFiniteError: NaN among the scores.
    """
    if bool(scores.isnan().any()):
        raise NonFiniteError("A similarity is NaN: the encoder gave NaN for a query or a document; check its weights.")
    order = torch.sort(scores, dim=-1, descending=True, stable=True).indices[:, :k].tolist()
    return [[str(ids[i]) for i in row] for row in order]


def _dcg(gains: Sequence[float]) -> float:
    return sum(g / math.log2(i + 2) for i, g in enumerate(gains))
