"""Several rankings as one: normalised sums, reciprocal ranks, and whole paths through several retrievers."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from sparseworks.core.errors import BudgetError, NonFiniteError, ShapeError

Run = Mapping[str, float]
"""Document -> score, of one query; documents that were not found are missing."""


def normalised(run: Run, how: str = "minmax") -> dict[str, float]:
    """Scores of one query on one scale: (s - min) / (max - min), or (s - mean) / deviation.

    Raises:
        BudgetError: another normalisation.
        NonFiniteError: NaN or infinity.
    """
    if not run:
        return {}
    s = torch.tensor(list(run.values()), dtype=torch.float64)
    if not bool(torch.isfinite(s).all()):
        raise NonFiniteError("A run holds NaN or infinity.")
    if how == "minmax":
        low, scale = s.min(), s.max() - s.min()
    elif how == "z":
        low, scale = s.mean(), s.std(correction=0)
    else:
        raise BudgetError(f"Scores are normalised by 'minmax' or 'z', not {how!r}.")
    values = (s - low) / scale if float(scale) > 0 else torch.zeros_like(s)
    return dict(zip(run, values.tolist(), strict=True))


def interpolate(a: Run, b: Run, alpha: float = 0.5, how: str = "minmax") -> dict[str, float]:
    """alpha a' + (1 - alpha) b' on normalised scores; a document that one run misses gets that run's least.

    Raises:
        BudgetError: alpha outside [0, 1].

    Source: Li, Wang, Zhuang, Mourad, Ma, Lin and Zuccon, 2022 (arXiv 2205.00235).
    """
    if not 0 <= alpha <= 1:
        raise BudgetError(f"alpha lies in [0, 1], got {alpha}.")
    parts = [(normalised(a, how), alpha), (normalised(b, how), 1 - alpha)]
    least = [min(run.values(), default=0.0) for run, _ in parts]
    return {
        d: sum(w * run.get(d, low) for (run, w), low in zip(parts, least, strict=True)) for d in dict.fromkeys([*a, *b])
    }


def reciprocal_rank(runs: Sequence[Run], k: int = 60) -> dict[str, float]:
    """sum over runs of 1 / (k + rank).

    Source: Cormack, Clarke and Buettcher, 2009.
    """
    found: dict[str, float] = {}
    for run in runs:
        for rank, d in enumerate(sorted(run, key=lambda d: (-run[d], d)), 1):
            found[d] = found.get(d, 0.0) + 1 / (k + rank)
    return found


@dataclass(frozen=True)
class Paths:
    """Several retrievers asked for their best `depth` documents each, whose union is ranked anew.

    Attributes:
        paths: query -> run, one a retriever.
        depth: how many each may bring.
        rerank: (query, candidates) -> run; None: reciprocal ranks.

    Source: FinSage (Wang et al., 2025), without its language model; the union and the re-ranker's place.
    """

    paths: tuple[Callable[[str], Run], ...]
    depth: int = 50
    rerank: Callable[[str, list[str]], Run] | None = None

    def candidates(self, query: str) -> list[str]:
        """The union of what the paths bring, in the order of reciprocal ranks."""
        cut = [
            dict(sorted(path(query).items(), key=lambda item: (-item[1], item[0]))[: self.depth]) for path in self.paths
        ]
        fused = reciprocal_rank(cut)
        return sorted(fused, key=lambda d: (-fused[d], d))

    def __call__(self, query: str) -> dict[str, float]:
        """The final run."""
        found = self.candidates(query)
        if self.rerank is not None:
            return dict(self.rerank(query, found))
        return {d: 1 / (1 + i) for i, d in enumerate(found)}


def feedback(
    query: Float[Tensor, " n"], documents: Float[Tensor, "m n"], how: str = "average", a: float = 1.0, b: float = 0.75
) -> Float[Tensor, " n"]:
    """Pseudo-relevance feedback: mean(q, d_1 ... d_m), or Rocchio's a q + b mean(d).

    The vectors may be dense or written-out term weights.

    Raises:
        ShapeError: vectors of another length.
        BudgetError: another form.

    Source: Li, Mourad, Zhuang, Koopman and Zuccon, 2021 (arXiv 2108.11044).
    """
    if query.dim() != 1 or documents.dim() != 2 or documents.shape[1] != len(query):
        raise ShapeError(
            f"A query {tuple(query.shape)} takes feedback (m, {query.numel()}), got {tuple(documents.shape)}."
        )
    if not len(documents):
        return query
    if how == "average":
        return torch.cat([query.unsqueeze(0), documents]).mean(0)
    if how == "rocchio":
        return a * query + b * documents.mean(0)
    raise BudgetError(f"Feedback is 'average' or 'rocchio', not {how!r}.")


@dataclass(frozen=True)
class FeedbackSearch:
    """Sparse and dense retrieval around vector feedback: where the two are interpolated is the mode.

    "none": the dense ranking after feedback alone; "pre": feedback documents come from the interpolated list; "post": the ranking
    after feedback is interpolated with the sparse one; "both".

    Attributes:
        mode: as above.
        depth: feedback documents, m.
        alpha: weight of the sparse run.
        how: form of the feedback.

    Raises:
        BudgetError: an unknown mode, or no depth.

    Source: Li, Wang, Zhuang, Mourad, Ma, Lin and Zuccon, 2022 (arXiv 2205.00235).
    """

    mode: str = "both"
    depth: int = 3
    alpha: float = 0.5
    how: str = "average"

    def __post_init__(self):
        if self.mode not in ("none", "pre", "post", "both") or self.depth < 1:
            raise BudgetError(f"Modes are none, pre, post, both, and at least one document: {self}.")

    def __call__(
        self,
        sparse: Run,
        query: Float[Tensor, " n"],
        documents: Float[Tensor, "all n"],
        ids: Sequence[str],
        k: int = 1000,
    ) -> dict[str, float]:
        """The final run of one query.

        Args:
            sparse: of BM25 or learned term weights.
            query, documents: dense vectors.
            ids: of the documents' rows.
            k: depth of the dense run.

        Raises:
            ShapeError: sizes that do not fit.
        """
        if len(ids) != len(documents):
            raise ShapeError(f"{len(documents)} vectors, but {len(ids)} ids.")
        place = {d: i for i, d in enumerate(ids)}
        first = dense_run(query, documents, ids, k)
        source = interpolate(sparse, first, self.alpha) if self.mode in ("pre", "both") else first
        best = sorted(source, key=lambda d: (-source[d], d))[: self.depth]
        moved = feedback(query, documents[[place[d] for d in best]], self.how)
        after = dense_run(moved, documents, ids, k)
        return interpolate(sparse, after, self.alpha) if self.mode in ("post", "both") else after


def dense_run(
    query: Float[Tensor, " n"], documents: Float[Tensor, "all n"], ids: Sequence[str], k: int
) -> dict[str, float]:
    """The k documents of largest dot product."""
    scores = documents @ query
    order = scores.argsort(descending=True, stable=True)[:k]
    return {str(ids[i]): float(scores[i]) for i in order.tolist()}
