"""Feature absorption: does the latent of a general feature stay off where more special latents have taken its part over?"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from sparseworks.codes.autoencoders.probes import linear_probes, logistic
from sparseworks.core.errors import CalibrationError, ShapeError

_SILENT = 1e-8
_FULL_COSINE, _PART_COSINE = 0.025, 0.1
_PROPORTION = 0.4
_ABSORBING = 3


@dataclass(frozen=True)
class Absorption:
    """How much of classes is absorbed; means over the classes that a linear probe finds.

    Attributes:
        fraction: of a word's projection on its class' probe, the part that other latents carry in place of the main ones.
        full: share of the words on which the main latents are all off and one other latent, aligned with the probe, carries the class.
        split: main latents of a class: 1 where it is not split.
        classes: which were counted.
        probe_f1: of the linear probe of every class.
    """

    fraction: float
    full: float
    split: float
    classes: Int[Tensor, " counted"]
    probe_f1: Float[Tensor, " classes"]


@torch.no_grad()
def absorption(
    sae: Any,
    train: Float[Tensor, "n d"],
    labels: Int[Tensor, " n"],
    test: Float[Tensor, "m d"],
    test_labels: Int[Tensor, " m"],
    *,
    most: int = 10,
    jump: float = 0.03,
    least_f1: float = 0.6,
    seed: int = 42,
) -> Absorption:
    """The first-letter task of SAEBench for any classes of words: activations where a word ends, and its class (its first letter).

    Linear probes are fitted to the activations, probes with an l1 penalty to the codes. The main latents of a class are those of largest weight in
    the latter, as many as raise F1 by more than `jump` each. On test words of the class that the first probe finds, it is then seen which
    latents carry the activation's projection on the probe's direction.

    Args:
        sae: an autoencoder.
        train, test: activations, one row a word.
        labels, test_labels: class of each word, from 0 on.
        most: main latents of a class at most.
        jump: what a further main latent must add to F1.
        least_f1: classes whose linear probe is not better are not counted, nor those of which it finds no word.
        seed: of the probes.

    Raises:
        ShapeError: rows and labels that do not fit.
        CalibrationError: no class has a probe that is good enough.

    Source: Chanin et al., 2024, arXiv 2409.14507; fractions and constants as in SAEBench (Karvonen et al., 2025, arXiv 2503.09532).
    """
    for x, y in ((train, labels), (test, test_labels)):
        if x.dim() != 2 or y.shape != x.shape[:1] or x.shape[1] != train.shape[1]:
            raise ShapeError(f"Each word needs a row and a label, got {tuple(x.shape)} and {tuple(y.shape)}.")
    classes = int(labels.max()) + 1 if len(labels) else 0
    codes, test_codes = (sae.encode(x).dense().float() for x in (train, test))
    with torch.enable_grad():
        direction, bias = linear_probes(train, labels, classes, seed=seed)
        few, _ = linear_probes(codes, labels, classes, l1=0.01, decay=1e-6, seed=seed)
    score = test.float() @ direction.T + bias
    probe_f1 = torch.stack([f1(score[:, c] > 0, test_labels == c) for c in range(classes)])
    counted = (probe_f1 > least_f1).nonzero().flatten()
    parts = []
    for c in counted.tolist():
        words = (test_labels == c) & (score[:, c] > 0)
        main = _main(codes, labels == c, test_codes, test_labels == c, few[c], most, jump)
        unit = F.normalize(direction[c], dim=0)
        cosine = F.cosine_similarity(unit.to(sae.W_dec.dtype), sae.W_dec, dim=1).float()
        parts.append((*_absorbed(test_codes[words], test[words].float() @ unit, cosine, main), float(len(main))))
    if not parts:
        raise CalibrationError(
            f"No class has a linear probe with an F1 of {least_f1}: the activations do not tell them."
        )
    fraction, full, split = (sum(p[i] for p in parts) / len(parts) for i in range(3))
    return Absorption(fraction, full, split, counted, probe_f1)


def _main(
    codes: Tensor, y: Tensor, test_codes: Tensor, test_y: Tensor, weight: Tensor, most: int, jump: float
) -> Int[Tensor, " main"]:
    """The latents of largest weight, one more while it raises F1."""
    order, best, kept = weight.argsort(descending=True, stable=True), -1.0, 1
    for k in range(1, min(most, len(weight)) + 1):
        w, b = logistic(codes[:, order[:k]], y, balanced=True)
        found = float(f1(test_codes[:, order[:k]].double() @ w + b > 0, test_y))
        if found <= best + jump:
            break
        best, kept = found, k
    return order[:kept]


def _absorbed(
    codes: Float[Tensor, "words width"],
    projection: Float[Tensor, " words"],
    cosine: Float[Tensor, " width"],
    main: Int[Tensor, " main"],
) -> tuple[float, float]:
    """Mean fraction, and share of words that are fully absorbed."""
    carried = codes * cosine
    by_main = carried[:, main].sum(1)
    other = torch.ones_like(cosine, dtype=torch.bool)
    other[main] = False
    part = torch.where(other & (cosine >= _PART_COSINE), carried.clamp(min=0), 0.0)
    absorbing = part.topk(min(_ABSORBING, part.shape[1]), dim=1).values.sum(1)
    left = torch.minimum(absorbing, projection - by_main)
    fraction = torch.where(by_main <= 0, 1.0, (left / (left + by_main)).clamp(0, 1))
    none = (by_main >= projection) | (absorbing / projection < _PROPORTION)
    fraction = torch.where(none, 0.0, fraction)
    top, at = carried.max(1)
    full = (codes[:, main] < _SILENT).all(1) & (cosine[at] >= _FULL_COSINE) & (projection >= 0)
    full &= top / projection >= _PROPORTION
    return float(fraction.double().mean()), float(full.double().mean())


def f1(found: Bool[Tensor, " n"], true: Bool[Tensor, " n"]) -> Float[Tensor, ""]:
    """2 |A n B| / (|A| + |B|); 0 where nothing was found and nothing is true."""
    return 2 * (found & true).sum().double() / (found.sum() + true.sum()).clamp(min=1)
