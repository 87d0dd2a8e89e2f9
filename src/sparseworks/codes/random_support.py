"""Sparse regression in another basis: for designs whose columns almost depend on each other, and a support that fell at random."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor

from sparseworks.core.errors import BudgetError, ShapeError
from sparseworks.core.finite import require_floating
from sparseworks.solve.coders import CoordinateDescent, ProximalGradient
from sparseworks.solve.penalty import Penalty

_ALIKE = 0.9  # correlation of features of one cluster


def cluster_basis(
    design: Float[Tensor, "samples features"],
    labels: Int[Tensor, " features"] | None = None,
    *,
    alike: float = _ALIKE,
) -> Float[Tensor, "features columns"]:
    """S whose columns are the mean of every cluster of features, and each feature less that mean, all with ||X s|| = sqrt(samples).

    w = S v has a v of short l1 norm for sparse w: differences are rescaled by as much as they are small.

    Args:
        labels: cluster of each feature; None: connected components of |correlation| > `alike`.
    """
    x = design
    if labels is None:
        labels = _components(torch.corrcoef(x.T).abs() > alike)
    members = torch.nn.functional.one_hot(labels.long()).to(x.dtype)  # (features, clusters)
    means = members / members.sum(0)
    differences = torch.eye(x.shape[1], dtype=x.dtype, device=x.device) - means[:, labels.long()]
    basis = torch.cat([means, differences], dim=1)
    return _of_one_length(x, basis)


def factor_basis(
    design: Float[Tensor, "samples features"], rank: int | None = None
) -> Float[Tensor, "features columns"]:
    """S whose columns are the leading principal axes, and each feature less its regression on them, all with ||X s|| = sqrt(samples).

    For features that are mixtures of a few factors and little of their own, clusters or not: what of w the factors see takes `rank`
    entries of v, whatever the size of w, and the rest counts by its own small length.

    Args:
        rank: number of axes; None: up to the largest ratio of two singular values that follow each other, in the first half.

    Raises:
        BudgetError: a rank outside 1..min(samples, features).
    """
    u, s, vt = torch.linalg.svd(design, full_matrices=False)
    if rank is None:
        half = max(len(s) // 2, 1)
        rank = int((s[:half] / s[1 : half + 1].clamp(min=torch.finfo(s.dtype).tiny)).argmax()) + 1 if len(s) > 1 else 1
    if not 1 <= rank <= len(s):
        raise BudgetError(f"A basis of factors has 1 to {len(s)} of them, got {rank}.")
    axes = vt[:rank].T / s[:rank]
    own = torch.eye(design.shape[1], dtype=design.dtype, device=design.device) - axes @ (u[:, :rank].T @ design)
    return _of_one_length(design, torch.cat([axes, own], dim=1))


def _of_one_length(design: Tensor, basis: Tensor) -> Tensor:
    size = torch.linalg.vector_norm(design @ basis, dim=0) / design.shape[0] ** 0.5
    kept = size > 1e-6 * size.max()  # what equals its mean, or its factors, leaves nothing
    return basis[:, kept] / size[kept]


def basis_of(design: Float[Tensor, "samples features"]) -> Float[Tensor, "features columns"]:
    """`cluster_basis` where most features are alike the mean of their cluster, `factor_basis` elsewhere."""
    labels = _components(torch.corrcoef(design.T).abs() > _ALIKE)
    members = torch.nn.functional.one_hot(labels).to(design.dtype)
    means = (design @ (members / members.sum(0)))[:, labels]  # alike in a chain is not yet alike
    own = torch.linalg.vector_norm(design - means, dim=0) < (1 - _ALIKE) * torch.linalg.vector_norm(design, dim=0)
    shared = members.sum(0)[labels] > 1
    return cluster_basis(design, labels) if 2 * int((own & shared).sum()) >= len(labels) else factor_basis(design)


def _components(near: Tensor) -> Tensor:
    """The lowest index that each feature is connected with, renumbered."""
    label = torch.arange(len(near), device=near.device)
    while True:
        lower = torch.where(near, label, len(near)).amin(1)
        if torch.equal(lower, label):
            return torch.unique(label, return_inverse=True)[1]
        label = lower


def slr_random_support(
    design: Float[Tensor, "samples features"],
    response: Float[Tensor, " samples"],
    penalty: Penalty,
    *,
    basis: Float[Tensor, "features columns"] | None = None,
    tolerance: float = 1e-9,
    iterations: int = 5000,
) -> Float[Tensor, " features"]:
    """w = S v with v = argmin ||y - X S v||^2 / 2 + g(v): phase 2 of the source.

    Args:
        penalty: `L1Ball(radius)` as the authors have it, with a radius of poly(k); or `L1(weight)`, which is easier to choose where
            few coefficients of the basis are much larger than the others.
        basis: S; None: `basis_of(design)`.

    Raises:
        ShapeError: operands that do not fit, or one sample and no basis.
        DtypeError: not float32 or float64, both alike.

    Source: Chandrasekaran et al., 2025, arXiv 2511.06211; their phase 1, which finds a basis for any design,
    is replaced by `basis_of`, of which nothing is proven.
    """
    if design.dim() != 2 or response.shape != design.shape[:1]:
        raise ShapeError(f"Needs (samples, features), (samples,); got {tuple(design.shape)}, {tuple(response.shape)}.")
    require_floating("Design and response", design, response)
    if basis is None and len(design) < 2:
        raise ShapeError("One sample tells nothing of how features depend on each other: give the basis.")
    s = basis_of(design) if basis is None else basis
    if s.dim() != 2 or len(s) != design.shape[1]:
        raise ShapeError(f"A basis has a row for each of {design.shape[1]} features, got {tuple(s.shape)}.")
    kind = CoordinateDescent if penalty.separable else ProximalGradient
    coder = kind(penalty=penalty, tolerance=tolerance, iterations=iterations)
    return s @ coder((design @ s).T.contiguous(), response.unsqueeze(0)).z[0]
