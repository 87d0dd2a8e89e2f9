"""Low rank: the baseline of every factorisation, plain and in the calibration metric."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from sparseworks.core.errors import BudgetError
from sparseworks.core.form import FORMS, Form
from sparseworks.core.method import Method
from sparseworks.core.stats import Gram, Stat, Stats
from sparseworks.weights.factors.combine import Chain
from sparseworks.weights.factors.parts import Matrix
from sparseworks.weights.factors.whiten import Whitening


@FORMS.register("low_rank")
@dataclass(frozen=True)
class LowRank(Form):
    """W ~ U V, U out x r, V r x in, the closest in |(W - U V) L| with L L^T = E[x x^T] (L = I without `whiten`).

    r = words // (out + in). By the singular value decomposition of W L: U = left vectors times singular values,
    V = right vectors times L^-1.

    Source: Eckart and Young, 1936; Wang et al., 2024, arXiv 2403.07378 (whitened: SVD-LLM).
    """

    whiten: bool = True

    @property
    def needs(self) -> frozenset[type[Stat]]:  # type: ignore[override]
        """Second moments, for the metric."""
        return frozenset({Gram}) if self.whiten else frozenset()

    def check(self, shape: tuple[int, int], method: Method, words: int) -> None:
        """Rank 1 must fit."""
        rank_within(words, shape)

    def fit(self, weight: Float[Tensor, "out in"], stats: Stats, method: Method, words: int) -> Chain:
        """See `Form.fit`."""
        del method
        rank = rank_within(words, weight.shape)
        metric = Whitening.of(stats[Gram]) if self.whiten else None
        left, right = truncated(metric.into(weight) if metric else weight.double(), rank)
        return low_rank(left, metric.back(right) if metric else right, weight.dtype)

    def start(
        self, shape: tuple[int, int], method: Method, words: int, generator: torch.Generator | None = None
    ) -> Chain:
        """Both factors uniform in +-1 / sqrt(inputs), as `nn.Linear` starts."""
        del method
        out, width = shape
        rank = rank_within(words, shape)
        return Chain([Matrix(uniform((rank, width), generator)), Matrix(uniform((out, rank), generator))])


def rank_within(words: int, shape: tuple[int, ...] | torch.Size) -> int:
    """The largest rank whose factors have at most `words` numbers.

    Raises:
        BudgetError: not even rank 1 has.
    """
    out, width = shape
    rank = min(words // (out + width), out, width)
    if rank < 1:
        raise BudgetError(
            f"{words} numbers are too few for a {out} x {width} matrix of rank 1, which has {out + width}."
        )
    return int(rank)


def truncated(
    matrix: Float[Tensor, "*batch rows cols"], rank: int
) -> tuple[Float[Tensor, "*batch rows rank"], Float[Tensor, "*batch rank cols"]]:
    """The factors of the closest matrix of that rank, singular values shared out evenly."""
    u, s, vt = torch.linalg.svd(matrix, full_matrices=False)
    root = s[..., :rank].sqrt()
    return u[..., :rank] * root.unsqueeze(-2), root.unsqueeze(-1) * vt[..., :rank, :]


def low_rank(left: Float[Tensor, "out rank"], right: Float[Tensor, "rank in"], dtype: torch.dtype) -> Chain:
    """The operator `left right`."""
    return Chain([Matrix(right.to(dtype)), Matrix(left.to(dtype))])


def uniform(shape: tuple[int, ...], generator: torch.Generator | None) -> Tensor:
    """Uniform in +-1 / sqrt(last size): how `nn.Linear` starts."""
    return (2 * torch.rand(shape, generator=generator) - 1) / shape[-1] ** 0.5
