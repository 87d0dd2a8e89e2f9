from __future__ import annotations

import pytest
import torch
from sklearn.datasets import load_digits

import sparseworks as sw
from sparseworks.codes.robustness import certified_radius, saliency, spca_front, writer_encoding
from sparseworks.core.errors import BudgetError, DtypeError, NonFiniteError, ShapeError


def digits():
    x, labels = load_digits(return_X_y=True)
    x, labels = torch.tensor(x / 16), torch.tensor(labels)
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(0))
    return x[order[:1200]], labels[order[:1200]], x[order[1200:]], labels[order[1200:]]


def linear_head(features, labels, decay=1e-2):
    head = torch.zeros(10, features.shape[1], dtype=features.dtype, requires_grad=True)
    bias = torch.zeros(10, dtype=features.dtype, requires_grad=True)
    optimizer = torch.optim.LBFGS([head, bias], max_iter=60)

    def loss():
        optimizer.zero_grad()
        value = torch.nn.functional.cross_entropy(features @ head.mT + bias, labels) + decay * head.square().sum()
        value.backward()
        return value

    optimizer.step(loss)
    return head.detach(), bias.detach()


def attack(head, bias, front, x, labels, radius, norm, steps=20):
    """Projected gradient on the smallest margin, radius by row; x after it."""
    limit = radius.unsqueeze(1)
    delta = torch.zeros_like(x)
    for _ in range(steps):
        delta.requires_grad_(True)
        logits = front(x + delta) @ head.mT + bias
        own = torch.nn.functional.one_hot(labels, 10).bool()
        margin = logits[own] - logits.masked_fill(own, -torch.inf).amax(1)
        (gradient,) = torch.autograd.grad(margin.sum(), delta)
        with torch.no_grad():
            if norm == "inf":
                delta = (delta - limit / 4 * gradient.sign()).clamp(-limit, limit)
            else:
                delta = delta - limit / 2 * gradient / gradient.norm(dim=1, keepdim=True).clamp(min=1e-12)
                delta = delta * (limit / delta.norm(dim=1, keepdim=True).clamp(min=1e-12)).clamp(max=1)
    return x + delta.detach()


def accuracy(head, bias, front, x, labels):
    return float(((front(x) @ head.mT + bias).argmax(1) == labels).double().mean())


@pytest.mark.parametrize("norm", ["inf", "2"])
@pytest.mark.parametrize("weight", [0.0, 0.02])
def test_no_attack_succeeds_within_the_certified_radius_and_one_does_beyond(norm, weight):
    x, labels, test, truth = digits()
    front = sw.method("spca_robust")(x, 30, weight)
    head, bias = linear_head(front(x), labels)
    radius = certified_radius(head, bias, front, test, truth, norm)
    right = radius > 0
    assert float(right.double().mean()) == accuracy(head, bias, front, test, truth)
    inside = attack(head, bias, front, test[right], truth[right], radius[right] * 0.999, norm)
    assert accuracy(head, bias, front, inside, truth[right]) == 1.0
    # The radius is exact: along the worst direction of the nearest class the decision flips just beyond it.
    logits = front(test) @ head.mT + bias
    through = head @ front.weight
    gap = through[truth].unsqueeze(1) - through.unsqueeze(0)
    dual = torch.linalg.vector_norm(gap, ord=1 if norm == "inf" else 2, dim=2)
    ratio = (logits.gather(1, truth.unsqueeze(1)) - logits) / dual
    nearest = ratio.masked_fill(torch.nn.functional.one_hot(truth, 10).bool(), torch.inf).argmin(1)
    worst = gap[torch.arange(len(test)), nearest]
    worst = worst.sign() if norm == "inf" else worst / worst.norm(dim=1, keepdim=True)
    beyond = (test - worst * radius.unsqueeze(1) * 1.001)[right]
    assert accuracy(head, bias, front, beyond, truth[right]) == 0.0


def test_sparse_components_widen_the_radius_at_about_equal_accuracy():
    x, labels, test, truth = digits()
    seen = {}
    for name, weight in (("pca", 0.0), ("sparse", 0.02)):
        front = spca_front(x, 30, weight)
        head, bias = linear_head(front(x), labels)
        radius = certified_radius(head, bias, front, test, truth)
        hit = attack(head, bias, front, test, truth, torch.full((len(test),), 0.08, dtype=test.dtype), "inf")
        seen[name] = (
            accuracy(head, bias, front, test, truth),
            float(radius.median()),
            accuracy(head, bias, front, hit, truth),
            front.density,
        )
    pca, sparse = seen["pca"], seen["sparse"]
    assert sparse[3] < 0.5 and pca[3] > 0.95
    assert sparse[0] > pca[0] - 0.02, seen
    assert sparse[1] > 1.05 * pca[1], seen
    assert sparse[2] > pca[2] + 0.02, seen


def test_without_a_weight_it_is_pca_and_scores_are_standard():
    x = torch.randn(200, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) * torch.arange(1, 9)
    front = spca_front(x, 3)
    _, _, vh = torch.linalg.svd(x - x.mean(0), full_matrices=False)
    assert torch.allclose((front.components @ vh[:3].mT).abs(), torch.eye(3, dtype=x.dtype), atol=1e-6)
    scores = front(x)
    assert torch.allclose(scores.mean(0), torch.zeros(3, dtype=x.dtype), atol=1e-9)
    assert torch.allclose(scores.std(0, correction=0), torch.ones(3, dtype=x.dtype))
    assert not spca_front(x, 3, 100.0).components.any()


def written(writers=10, pages=40, glyphs=4, seed=0):
    """Digits of the test set as writers of a fixed slant and stroke write them: (page, glyph, 64), writer of each page."""
    g = torch.Generator().manual_seed(seed)
    images = torch.tensor(load_digits(return_X_y=True)[0].reshape(-1, 8, 8) / 16, dtype=torch.float32)
    rows = []
    for w in range(writers):
        slant, stroke = (w % 5 - 2) * 0.2, 0.6 + 0.5 * (w // 5)
        theta = torch.tensor([[1, slant, 0], [0, 1, 0]]).expand(pages * glyphs, 2, 3)
        chosen = images[torch.randint(0, len(images), (pages * glyphs,), generator=g)].unsqueeze(1)
        grid = torch.nn.functional.affine_grid(theta, [pages * glyphs, 1, 8, 8], align_corners=False)
        bent = torch.nn.functional.grid_sample(chosen, grid, align_corners=False) ** stroke
        rows.append(bent.view(pages, glyphs, 64))
    return torch.cat(rows), torch.arange(writers).repeat_interleave(pages)


def identified(front, pages, who, training):
    means = front(pages.flatten(0, 1)).view(*pages.shape[:2], -1).mean(1)
    nearest = torch.cdist(means[~training], means[training]).argmin(1)
    return float((who[training][nearest] == who[~training]).double().mean())


def test_saliency_tells_writers_apart_better_than_unweighted_components():
    seen = {"salient": 0.0, "sparse": 0.0, "pca": 0.0}
    for seed in range(3):
        pages, who = written(seed=seed)
        training = torch.arange(len(pages)) % 2 == 0
        patches = pages[training].flatten(0, 1)
        of = who[training].repeat_interleave(pages.shape[1])
        fronts = {
            "salient": sw.method("writer_spca")(patches, of, 40, steps=60),
            "sparse": spca_front(patches, 40, 0.005, steps=60),
            "pca": spca_front(patches, 40),
        }
        for name, front in fronts.items():
            seen[name] += identified(front, pages, who, training) / 3
    assert seen["salient"] > seen["sparse"] + 0.02 and seen["salient"] > seen["pca"] + 0.03, seen


def test_saliency_is_fishers_ratio():
    features = torch.tensor([[0.0, 1.0], [2.0, 1.0], [10.0, 1.0], [12.0, 1.0]])
    assert saliency(features, torch.tensor([3, 3, 7, 7])).tolist() == [25.0, 0.0]


def test_bad_operands_are_refused():
    x = torch.randn(20, 5)
    with pytest.raises(ShapeError):
        spca_front(x, 6)
    with pytest.raises(NonFiniteError):
        spca_front(x * torch.nan, 2)
    with pytest.raises(DtypeError):
        spca_front(x.long(), 2)
    with pytest.raises(BudgetError):
        spca_front(x, 2, -1.0)
    front = spca_front(x, 2)
    with pytest.raises(ShapeError):
        certified_radius(torch.ones(3, 4), torch.ones(3), front, x, torch.zeros(20, dtype=torch.long))
    with pytest.raises(BudgetError):
        certified_radius(torch.ones(3, 2), torch.ones(3), front, x, torch.zeros(20, dtype=torch.long), "1")  # type: ignore[arg-type]
    with pytest.raises(ShapeError):
        saliency(x, torch.zeros(20, dtype=torch.long))
    with pytest.raises(ShapeError):
        writer_encoding(x, torch.zeros(19, dtype=torch.long), 2)
