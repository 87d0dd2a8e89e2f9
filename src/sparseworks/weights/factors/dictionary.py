"""Sparse dictionaries: every output row is a combination of a few atoms that all rows share."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from sparseworks.core.errors import BudgetError
from sparseworks.core.form import FORMS, Form
from sparseworks.core.method import Method
from sparseworks.core.operator import LinearOperator
from sparseworks.core.stats import Gram, Stat, Stats
from sparseworks.core.support import Support
from sparseworks.weights.factors.combine import Chain
from sparseworks.weights.factors.parts import Matrix, Sparse
from sparseworks.weights.factors.pursuit import k_svd
from sparseworks.weights.factors.whiten import Whitening


@FORMS.register("dictionary")
@dataclass(frozen=True)
class Dictionary(Form):
    """W ~ S D with k atoms in D (k x in) and s nonzeros in every row of S (out x k), k / s = `ratio`.

    K-SVD on Y = W L, L L^T = E[x x^T]: codes by orthogonal matching pursuit, atoms by `power` power iterations each, over
    `iterations`; at the end D = D_Y L^-1. Without `whiten`, L = I. Words: in * k + s * out, and k * out bits for where the
    nonzeros are. With `share`, layers of a block that read the same inputs (queries, keys, values) have one dictionary.

    Source: Shopkhoev et al., 2025, arXiv 2509.22075 (CoSpaDi). `ratio` 2 as recalled from the paper; the dictionary starts
    from right singular vectors of Y.
    """

    ratio: float = 2.0
    iterations: int = 16
    power: int = 3
    whiten: bool = True
    share: bool = False

    def __post_init__(self):
        if self.ratio < 1 or self.iterations < 0 or self.power < 1:
            raise BudgetError(f"A dictionary has ratio >= 1, iterations >= 0 and power >= 1, got {self}.")

    @property
    def needs(self) -> frozenset[type[Stat]]:  # type: ignore[override]
        """Second moments, for the metric."""
        return frozenset({Gram}) if self.whiten else frozenset()

    def check(self, shape: tuple[int, int], method: Method, words: int) -> None:
        """One nonzero a row must fit."""
        self.sizes(*shape, words)

    @property
    def together(self) -> bool:
        """`share`."""
        return self.share

    def fit(self, weight: Float[Tensor, "out in"], stats: Stats, method: Method, words: int) -> LinearOperator:
        """See `Form.fit`."""
        return self.fit_together([weight], stats, method, words)[0]

    def fit_together(
        self, weights: Sequence[Float[Tensor, "out in"]], stats: Stats, method: Method, words: int
    ) -> list[LinearOperator]:
        """Operators of several weights that see the same inputs and share one dictionary; `words` are those of all together."""
        del method
        rows = torch.cat(list(weights))
        metric = Whitening.of(stats[Gram]) if self.whiten else None
        signals = (metric.into(rows) if metric else rows).float()
        atoms, count = self.sizes(rows.shape[0], rows.shape[1], words)
        dictionary, codes, mask = k_svd(signals, atoms, count, iterations=self.iterations, power=self.power)
        back = (metric.back(dictionary) if metric else dictionary).to(rows.dtype)
        shared = Matrix(back)
        lengths = [len(w) for w in weights]
        parts = zip(codes.split(lengths), mask.split(lengths), strict=True)
        return [Chain([shared, Sparse.of(c.to(rows.dtype), Support.from_mask(m.cpu()))]) for c, m in parts]

    def sizes(self, out: int, width: int, words: int) -> tuple[int, int]:
        """(k, s): as many atoms as fit, and k / ratio of them a row.

        Raises:
            BudgetError: not even one atom fits.
        """
        atoms = min(int(words / (width + out / self.ratio + out / 16)), width, out)
        count = int(atoms / self.ratio)
        if count < 1:
            raise BudgetError(f"{words} numbers are too few for a {out} x {width} matrix of {self.ratio:g} atoms.")
        return atoms, count
