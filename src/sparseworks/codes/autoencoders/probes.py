"""Sparse probing: how well do the few best latents of an autoencoder tell classes of texts apart?"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from sparseworks.core.errors import CalibrationError, ShapeError

_NEWTON, _HALVINGS = 100, 30
_STEPS = 500
_TOLERANCE = 1e-8  # of the Newton decrement, which bounds what is left of the objective


@torch.no_grad()
def pooled(
    sae: Any, x: Float[Tensor, "texts tokens d"], mask: Bool[Tensor, "texts tokens"] | None = None
) -> Float[Tensor, "texts width"]:
    """Mean code of each text's tokens.

    Args:
        sae: an autoencoder.
        x: activations.
        mask: tokens that count; None: all.

    Raises:
        ShapeError: not one matrix a text, or a mask of another shape.
    """
    if x.dim() != 3 or (mask is not None and mask.shape != x.shape[:2]):
        raise ShapeError(f"Texts are (texts, tokens, d) with a mask (texts, tokens), got {tuple(x.shape)}.")
    means = []
    for i, text in enumerate(x):
        rows = text if mask is None else text[mask[i]]
        means.append(sae.encode(rows).dense().sum(0) / max(len(rows), 1))
    return torch.stack(means)


def sparse_probing(
    train: Float[Tensor, "n width"],
    labels: Int[Tensor, " n"],
    test: Float[Tensor, "m width"],
    test_labels: Int[Tensor, " m"],
    *,
    ks: Sequence[int] = (1, 2, 5),
    seed: int = 42,
) -> Float[Tensor, "ks classes"]:
    """Accuracy of a logistic regression on the k features whose means differ most, each class against as many of the others.

    The protocol of SAEBench: features are chosen by |mean of the class - mean of the others| on the training texts, negatives come from all
    other classes alike, the regression has an l2 penalty with C = 1. Give the activations' own means in place of codes for its baseline.

    Args:
        train, test: one row a text, `pooled` codes or activations.
        labels, test_labels: class of each, from 0 on.
        ks: features to probe with.
        seed: of the negatives.

    Raises:
        ShapeError: rows and labels that do not fit, or k beyond the features.
        CalibrationError: fewer than two classes, or one without texts.

    Source: Karvonen et al., 2025, arXiv 2503.09532 (SAEBench); Gurnee et al., 2023, arXiv 2305.01610.
    """
    for x, y in ((train, labels), (test, test_labels)):
        if x.dim() != 2 or y.shape != x.shape[:1] or x.shape[1] != train.shape[1] or max(ks) > x.shape[1]:
            raise ShapeError(
                f"Probing {ks} features needs rows with a label each, got {tuple(x.shape)}, {tuple(y.shape)}."
            )
    classes = int(labels.max()) + 1 if len(labels) else 0
    counts = [torch.bincount(y.cpu(), minlength=classes) for y in (labels, test_labels)]
    if classes < 2 or any(len(c) > classes or bool((c < 1).any()) for c in counts):
        raise CalibrationError("Probing needs at least two classes, with texts to train on and to test on in each.")
    found = torch.zeros(len(ks), classes, dtype=torch.float64)
    generator = torch.Generator().manual_seed(seed)
    for c in range(classes):
        (a, ya), (b, yb) = (_balanced(x, y, c, generator) for x, y in ((train, labels), (test, test_labels)))
        order = (a[ya].mean(0) - a[~ya].mean(0)).abs().argsort(descending=True, stable=True)
        for i, k in enumerate(ks):
            w, bias = logistic(a[:, order[:k]], ya)
            found[i, c] = (((b[:, order[:k]].double() @ w + bias) > 0) == yb).double().mean()
    return found


def _balanced(x: Tensor, y: Tensor, one: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """All rows of a class and as many of the others, an equal share of each as far as they have them."""
    own = (y == one).nonzero().flatten()
    others = [c for c in y.unique().tolist() if c != one]
    some = -(-len(own) // len(others))
    parts = [_drawn((y == c).nonzero().flatten(), some, generator) for c in others]
    rest = _drawn(torch.cat(parts), len(own), generator)
    at = torch.cat([own, rest])
    return x[at], torch.arange(len(at), device=x.device) < len(own)


def _drawn(at: Tensor, count: int, generator: torch.Generator) -> Tensor:
    return at[torch.randperm(len(at), generator=generator)[:count].to(at.device)]


def logistic(
    x: Float[Tensor, "n k"], y: Bool[Tensor, " n"], *, c: float = 1.0, balanced: bool = False
) -> tuple[Float[Tensor, " k"], Float[Tensor, ""]]:
    """argmin ||w||^2 / 2 + c sum_i s_i log(1 + exp(-+ (x_i w + b))) in float64, by Newton's method; the bias is not penalised.

    Args:
        x: features, few of them.
        y: the positives.
        c: weight of the losses.
        balanced: s_i = n / (2 n of its class), so that both classes weigh the same; otherwise 1.

    Raises:
        CalibrationError: rows of one class only.
    """
    n, positives = len(y), int(y.sum())
    if not 0 < positives < n:
        raise CalibrationError("A probe needs examples of both sides.")
    x = torch.cat([x.detach().double(), torch.ones(n, 1, dtype=torch.float64, device=x.device)], 1)
    target = y.double()
    weight = torch.where(y, n / (2 * positives), n / (2 * (n - positives))) if balanced else torch.ones_like(target)
    weight, ridge = c * weight.double(), torch.ones(x.shape[1], dtype=torch.float64, device=x.device)
    ridge[-1] = 0

    def value(w: Tensor) -> Tensor:
        return (weight * F.binary_cross_entropy_with_logits(x @ w, target, reduction="none")).sum() + (
            ridge * w.square()
        ).sum() / 2

    w = torch.zeros(x.shape[1], dtype=torch.float64, device=x.device)
    now = value(w)
    for _ in range(_NEWTON):
        p = torch.sigmoid(x @ w)
        slope = x.T @ (weight * (p - target)) + ridge * w
        hessian = (x * (weight * p * (1 - p)).unsqueeze(1)).T @ x + torch.diag(ridge + 1e-12)
        step = torch.linalg.solve(hessian, slope)
        size, gain = 1.0, float(slope @ step)
        if gain <= _TOLERANCE:
            break
        for _ in range(_HALVINGS):
            new = value(w - size * step)
            if float(new) <= float(now) - 1e-4 * size * gain:
                break
            size /= 2
        else:  # rounding is all that is left of the descent
            break
        w, now = w - size * step, new
    return w[:-1], w[-1]


def linear_probes(
    x: Float[Tensor, "n d"],
    y: Int[Tensor, " n"],
    classes: int,
    *,
    l1: float = 0.0,
    decay: float = 1e-4,
    epochs: int = 50,
    batch: int = 4096,
    lr: float = 1e-2,
    last: float = 1e-5,
    seed: int = 42,
) -> tuple[Float[Tensor, "classes d"], Float[Tensor, " classes"]]:
    """One logistic regression a class against the rest, trained together by Adam; the rarer side weighs as much as the other.

    Args:
        x: features.
        y: class of each row.
        classes: how many there are.
        l1: weight of the mean over classes of ||w||_1, so that few features are used.
        decay: of Adam (as an l2 penalty).
        epochs, batch: of training; more passes where there would be fewer than 500 steps, which small sets of words need (ours).
        lr, last: learning rates at the beginning and at the end, falling geometrically.
        seed: of the order of rows and the first weights.

    Source: Karvonen et al., 2025 (SAEBench), with its constants.
    """
    generator = torch.Generator().manual_seed(seed)
    bound = 1 / math.sqrt(x.shape[1])
    w = (torch.rand(classes, x.shape[1], generator=generator) * 2 - 1).mul(bound).to(x.device).requires_grad_()
    b = torch.zeros(classes, device=x.device, requires_grad=True)
    target = F.one_hot(y.long(), classes).float()
    count = target.sum(0).clamp(min=1)
    loss_of: Callable[..., Tensor] = torch.nn.BCEWithLogitsLoss(pos_weight=(len(y) - count) / count)
    adam = torch.optim.Adam([w, b], lr=lr, weight_decay=decay)
    epochs = max(epochs, -(-_STEPS // max(-(-len(x) // batch), 1)))
    for epoch in range(epochs):
        for group in adam.param_groups:
            group["lr"] = lr * (last / lr) ** (epoch / max(epochs, 1))
        for at in torch.randperm(len(x), generator=generator).to(x.device).split(batch):
            loss = loss_of(x[at].float() @ w.T + b, target[at]) + l1 * w.abs().sum(1).mean()
            w.grad, b.grad = torch.autograd.grad(loss, [w, b])
            adam.step()
    return w.detach(), b.detach()
