"""Sparse principal components as a fixed front end, and radii within which no perturbation changes a linear decision."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from sparseworks.core.errors import BudgetError, NonFiniteError, ShapeError
from sparseworks.core.finite import require_floating
from sparseworks.solve.penalty import soft


@dataclass(frozen=True)
class Projection:
    """x -> W x + b, a fixed front end with its standardiser folded in.

    Attributes:
        weight, offset: W and b.
        components: the unit loadings before scaling, one a row; exact zeros where they are sparse.
    """

    weight: Float[Tensor, "components features"]
    offset: Float[Tensor, " components"]
    components: Float[Tensor, "components features"]

    def __call__(self, x: Float[Tensor, "rows features"]) -> Float[Tensor, "rows components"]:
        """Features with mean 0 and variance 1 on the data it was fitted to."""
        return x @ self.weight.mT + self.offset

    @property
    def density(self) -> float:
        """Share of loadings that are not 0."""
        return float((self.components != 0).double().mean())


def spca_front(
    x: Float[Tensor, "rows features"], components: int, weight: float = 0.0, *, ridge: float = 0.01, steps: int = 200
) -> Projection:
    """min_{A, B} ||X - X B A^T||^2 / n + ridge ||B||^2 + weight sum_j ||B_j||_1, A^T A = 1, then each score standardised.

    Alternates a lasso in B (proximal gradient) and A = U V^T of the SVD of X^T X B. weight = 0 is PCA. Loadings get norm 1;
    a loading that vanished stays 0, with score 0. Weight and ridge are in units of the largest eigenvalue of the covariance.

    Raises:
        ShapeError: not a matrix, or fewer rows or features than components.
        DtypeError: not float32 or float64.
        NonFiniteError: NaN or infinity.
        BudgetError: a weight below 0, no component or step.

    Source: Zou, Hastie and Tibshirani, 2006; as a defence Steunou, Druilhe and Saue, 2025 (arXiv 2509.21130).
    """
    if x.dim() != 2 or not 1 <= components <= min(x.shape):
        raise ShapeError(f"{components} components of data {tuple(x.shape)}: at most as many as rows and features.")
    require_floating("Data", x)
    if not bool(torch.isfinite(x).all()):
        raise NonFiniteError("Data hold NaN or infinity.")
    if weight < 0 or ridge < 0 or steps < 1:
        raise BudgetError(f"Weights are not negative and steps at least 1, got {weight}, {ridge}, {steps}.")
    centred = (x - x.mean(0)).double()
    covariance = centred.mT @ centred / len(x)
    values, vectors = torch.linalg.eigh(covariance)
    covariance = covariance / values[-1].clamp(min=1e-30)
    loadings = vectors.flip(1)[:, :components]
    if weight > 0:
        loadings = _alternate(covariance, loadings, weight, ridge, steps)
    loadings = loadings / loadings.norm(dim=0, keepdim=True).clamp(min=1e-12)
    scores = centred @ loadings
    scale = scores.std(0, correction=0)
    inverse = torch.where(scale > 1e-9, 1 / scale.clamp(min=1e-9), 0)
    full = (loadings * inverse).mT
    return Projection(full.to(x), (-full @ x.double().mean(0)).to(x), loadings.mT.to(x))


def _alternate(covariance: Tensor, start: Tensor, weight: float, ridge: float, steps: int) -> Tensor:
    a = b = start
    step = 1 / (2 * (1 + ridge))
    for _ in range(steps):
        target = covariance @ a
        for _ in range(5):
            b = soft(b - 2 * step * (covariance @ b + ridge * b - target), step * weight)
        u, _, vh = torch.linalg.svd(covariance @ b, full_matrices=False)
        a = u @ vh
    return b


def certified_radius(
    head: Float[Tensor, "classes components"],
    bias: Float[Tensor, " classes"],
    front: Projection,
    x: Float[Tensor, "rows features"],
    labels: Int[Tensor, " rows"],
    norm: Literal["inf", "2"] = "inf",
) -> Float[Tensor, " rows"]:
    """min_{j != y} (f_y - f_j) / ||W^T (u_y - u_j)||_q with q dual to the attack's norm (1 for inf, 2 for 2); 0 where the label is wrong.

    Exact for a linear head f = U (W x + b) + c: below the radius no perturbation of that norm changes the decision, and just above it
    one does. A pair of classes with the same function and a margin above 0 is never confused: infinite.

    Raises:
        ShapeError: head, bias, front end, data and labels do not fit.
        BudgetError: another norm.
    """
    classes = len(head)
    fits = head.dim() == 2 and head.shape[1] == len(front.weight) and bias.shape == (classes,) and classes > 1
    if not fits or x.dim() != 2 or labels.shape != x.shape[:1]:
        raise ShapeError(
            f"A head (classes, {len(front.weight)}) with its bias, data and labels one a row, got {tuple(head.shape)}, {tuple(bias.shape)}, "
            f"{tuple(x.shape)} and {tuple(labels.shape)}."
        )
    if norm not in ("inf", "2"):
        raise BudgetError(f"Radii are known for attacks in the norms 'inf' and '2', got {norm!r}.")
    logits = front(x) @ head.mT + bias
    margins = logits.gather(1, labels.unsqueeze(1)) - logits
    through = head @ front.weight
    dual = torch.linalg.vector_norm(through.unsqueeze(1) - through.unsqueeze(0), ord=1 if norm == "inf" else 2, dim=2)[
        labels
    ]
    radius = torch.where(dual > 0, margins / dual.clamp(min=1e-30), torch.where(margins > 0, torch.inf, 0))
    own = torch.nn.functional.one_hot(labels, classes).bool()
    return radius.masked_fill(own, torch.inf).amin(1).clamp(min=0)


def saliency(features: Float[Tensor, "rows components"], groups: Int[Tensor, " rows"]) -> Float[Tensor, " components"]:
    """Fisher's ratio: variance of the groups' means over the mean variance within groups, component by component.

    Raises:
        ShapeError: features and groups do not fit, or there is only one group.
    """
    if features.dim() != 2 or groups.shape != features.shape[:1] or len(groups.unique()) < 2:
        raise ShapeError(f"Features {tuple(features.shape)} need a group a row and two groups or more.")
    names, index = groups.unique(return_inverse=True)
    count = torch.bincount(index, minlength=len(names)).to(features).unsqueeze(1)
    zeros = features.new_zeros(len(names), features.shape[1])
    means = zeros.index_add(0, index, features) / count
    within = (features - means[index]).square().mean(0)
    between = ((means - features.mean(0)).square() * count).sum(0) / len(features)
    return torch.where(within > 0, between / within.clamp(min=1e-30), 0)


def writer_encoding(
    patches: Float[Tensor, "patches features"],
    writers: Int[Tensor, " patches"],
    components: int,
    weight: float = 0.005,
    *,
    power: float = 0.5,
    steps: int = 200,
) -> Projection:
    """Sparse-PCA features, each scaled by saliency^power: how well it tells writers apart. Sum or average them over a page's patches.

    The paper does not give the saliency's form; Fisher's ratio serves. With power 1/2, squared distances weigh each component by its ratio.

    Raises:
        ShapeError, NonFiniteError, BudgetError: as `spca_front` and `saliency`.

    Source: Kumar and Sundaram, 2022 (arXiv 2211.14443): the encoding alone, without the Siamese network.
    """
    front = spca_front(patches, components, weight, steps=steps)
    scale = saliency(front(patches), writers) ** power
    return Projection(front.weight * scale.unsqueeze(1), front.offset * scale, front.components)
