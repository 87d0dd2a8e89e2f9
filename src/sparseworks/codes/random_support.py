"""Sparse regression in another basis: for designs whose columns are almost the same, and a support that fell at random."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor

from sparseworks.core.errors import ShapeError
from sparseworks.solve.coders import CoordinateDescent, ProximalGradient
from sparseworks.solve.penalty import Penalty


def cluster_basis(
    design: Float[Tensor, "samples features"],
    labels: Int[Tensor, " features"] | None = None,
    *,
    alike: float = 0.9,
) -> Float[Tensor, "features columns"]:
    """S whose columns are the mean of every cluster of features, and each feature less that mean, all with ||X s|| = sqrt(samples).

    S^-1 w has a short l1 norm for sparse w: differences are rescaled by as much as they are small. A supplied or computed basis of
    this kind stands for the paper's phase 1, which finds one for any design.

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
    size = torch.linalg.vector_norm(x @ basis, dim=0) / x.shape[0] ** 0.5
    kept = size > 1e-6 * size.max()  # a cluster of one has no difference
    return basis[:, kept] / size[kept]


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
        basis: S; None: `cluster_basis(design)`.

    Raises:
        ShapeError: operands that do not fit.

    Source: Chandrasekaran et al., 2025, arXiv 2511.06211; the general phase 1 is left out.
    """
    if design.dim() != 2 or response.shape != design.shape[:1]:
        raise ShapeError(f"Needs (samples, features), (samples,); got {tuple(design.shape)}, {tuple(response.shape)}.")
    s = cluster_basis(design) if basis is None else basis
    if s.dim() != 2 or len(s) != design.shape[1]:
        raise ShapeError(f"A basis has a row for each of {design.shape[1]} features, got {tuple(s.shape)}.")
    kind = CoordinateDescent if penalty.separable else ProximalGradient
    coder = kind(penalty=penalty, tolerance=tolerance, iterations=iterations)
    return s @ coder((design @ s).T.contiguous(), response.unsqueeze(0)).z[0]
