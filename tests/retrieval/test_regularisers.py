from __future__ import annotations

import pytest
import torch

from sparseworks.core.codes import Codes
from sparseworks.core.errors import BudgetError, CalibrationError, NonFiniteError, ShapeError
from sparseworks.retrieval.encoders import Log1p, Log1pTwice, rows_of
from sparseworks.retrieval.losses import DistillKL, InfoNCE, MarginMSE, ensemble
from sparseworks.retrieval.regularisers import (
    L0,
    L1,
    REGULARISERS,
    CodeRegulariser,
    Flops,
    IdfFlops,
    MaskedFlops,
    expected_flops,
    quadratic_ramp,
)

W = torch.tensor([[1.0, 0.0, 3.0], [1.0, 2.0, 0.0]])


def test_values():
    assert L1()(W) == 3.5 and Flops()(W) == 1 + 1 + 2.25
    assert MaskedFlops(above=1)(W) == Flops()(W) and MaskedFlops(above=2)(W) == 0
    assert MaskedFlops(above=1)(torch.tensor([[1.0, 0.0], [2.0, 2.0]])) == 1 + 1
    assert torch.allclose(IdfFlops()(W, torch.tensor([1.0, 1.0, 4.0])), torch.tensor(4 + 4 + 2.25 / 4))
    assert torch.allclose(L0(width=1e-6)(W), torch.tensor(2.0), atol=1e-4)
    both = torch.stack([W, 2 * W])
    assert Flops()(both) == (4.25 + 17) / 2 and L1()(both) == (3.5 + 7) / 2  # the mean over n, then over places
    for kind in (L1(summed=True), Flops(summed=True), MaskedFlops(summed=True, above=0), L0(summed=True)):
        assert torch.allclose(kind(both), kind(W) + kind(2 * W)), kind  # or their sum
    assert quadratic_ramp(1, 4) == 1 / 16 and quadratic_ramp(9, 4) == 1 and quadratic_ramp(0, 0) == 1
    for kind in REGULARISERS:
        with pytest.raises(BudgetError):
            kind(weight=-1.0)
    with pytest.raises(BudgetError, match="idf"):
        IdfFlops()(W)
    with pytest.raises(BudgetError):
        L0(width=0)


def test_flops_pushes_busy_dimensions_most_and_l1_all_alike():
    w = torch.rand(20, 6, generator=torch.Generator().manual_seed(0)) * torch.tensor([4.0, 1, 1, 1, 1, 0.1])
    w.requires_grad_()
    (flops,) = torch.autograd.grad(Flops()(w), w)
    (l1,) = torch.autograd.grad(L1()(w), w)
    assert flops[0, 0] > 3 * flops[0, 1] > 20 * flops[0, 5] and torch.allclose(l1, l1[0, 0].expand_as(l1))


def test_evenly_used_dimensions_need_nnz_squared_over_d():
    w = torch.zeros(64, 32)
    for i in range(64):
        w[i, [(4 * i + j) % 32 for j in range(4)]] = 1
    assert expected_flops(w) == pytest.approx(4**2 / 32)
    assert expected_flops(w, torch.ones(3, 32)) == pytest.approx(4)
    assert expected_flops(rows_of(Codes.from_dense(w)), torch.ones(3, 32)) == pytest.approx(4)
    with pytest.raises(ShapeError, match="one width"):
        expected_flops(w, torch.ones(3, 16))


SCORES, OWN = torch.tensor([[3.0, 1.0, 0.0], [0.5, 2.0, 4.0]]), torch.tensor([0, 1])


def test_losses_have_their_minima_at_the_teacher():
    teacher = SCORES + torch.tensor([[5.0], [-2.0]])
    for loss in (MarginMSE(in_batch=True), DistillKL()):
        assert loss(SCORES, OWN, teacher).abs() < 1e-6 and loss(SCORES, OWN, teacher * 2) > 0.1
        with pytest.raises(CalibrationError):
            loss(SCORES, OWN)
        with pytest.raises(ShapeError):
            loss(SCORES, OWN, teacher[:1])
    margins = [(3 - 1) - (1 - 1), (3 - 0) - (1 - 0), (2 - 0.5) - (0 - 0), (2 - 4) - (0 - 1)]
    other = torch.tensor([[1.0, 1.0, 0.0], [0.0, 0.0, 1.0]])
    assert MarginMSE(in_batch=True)(SCORES, OWN, other) == pytest.approx(sum(m * m for m in margins) / 4)
    assert InfoNCE()(SCORES, OWN) == pytest.approx(float(-SCORES.log_softmax(1)[[0, 1], OWN].mean()))
    for bad in (InfoNCE, lambda x: DistillKL(scale=x)):
        with pytest.raises(BudgetError):
            bad(0.0)


def test_a_query_may_be_compared_with_its_own_documents_only():
    first, second = torch.tensor([[3.0, 9.0], [9.0, 2.0]]), torch.tensor([[1.0, 9.0], [9.0, 4.0]])
    scores = torch.cat([first, second], 1)  # place by place; 9: documents of the other query
    own, teacher = torch.tensor([[3.0, 1.0], [2.0, 4.0]]), torch.tensor([[1.0, 0.0, 0.5, 7.0], [7.0, 0.0, 7.0, 1.0]])
    taught = torch.tensor([[1.0, 0.5], [0.0, 1.0]])
    assert torch.allclose(InfoNCE(in_batch=False)(scores, OWN), -own.log_softmax(1)[:, 0].mean())
    assert MarginMSE()(scores, OWN, teacher) == pytest.approx(((2 - 0.5) ** 2 + (-2 + 1) ** 2) / 2)
    assert torch.allclose(DistillKL(scale=0.5)(2 * SCORES, OWN, SCORES), torch.zeros(()), atol=1e-6)
    kl = torch.nn.functional.kl_div(own.log_softmax(1), taught.softmax(1), reduction="batchmean")
    assert torch.allclose(DistillKL(in_batch=False)(scores, OWN, teacher), kl)
    for loss in (MarginMSE(), DistillKL(in_batch=False), InfoNCE(in_batch=False)):
        with pytest.raises(CalibrationError, match="in_batch"):
            loss(first, OWN, first)


def test_margins_of_teachers_are_taken_over_as_they_are_and_distributions_on_one_scale():
    a, b = torch.tensor([[0.0, 5.0, 10.0]]), torch.tensor([[0.3, 0.2, 0.1]])
    assert torch.allclose(MarginMSE().taught([a, b]), (a + b) / 2)
    assert torch.allclose(DistillKL().taught([a, b]), ensemble([a, b]))


def test_an_ensemble_is_on_one_scale():
    a, b = torch.tensor([[0.0, 5.0, 10.0]]), torch.tensor([[0.3, 0.2, 0.1]])
    assert torch.allclose(ensemble([a, b]), torch.full((1, 3), 15.0))
    assert torch.allclose(ensemble([a]), torch.tensor([[0.0, 15.0, 30.0]]))
    assert torch.allclose(ensemble([a, b], [0.75, 0.25]), torch.tensor([[7.5, 15.0, 22.5]]))
    for teachers, weights in (([], None), ([a], [1.0, 2.0])):
        with pytest.raises(CalibrationError):
            ensemble(teachers, weights)
    with pytest.raises(NonFiniteError):
        ensemble([a * torch.nan])


def fitted(regulariser: CodeRegulariser, seed: int):
    """Codes fitted to targets of 2 to 79 entries under a regulariser: their numbers of entries, and the error's share."""
    g = torch.Generator().manual_seed(seed)
    n = torch.randint(2, 80, (200, 1), generator=g)
    target = torch.rand(200, 100, generator=g) * (torch.rand(200, 100, generator=g).argsort(1) < n)
    w = (target + 0.05).requires_grad_()
    optimizer = torch.optim.Adam([w], 0.02)
    for step in range(250):
        z = w.relu()
        loss = (z - target).square().sum(1).mean()
        loss = loss + regulariser.weight * quadratic_ramp(step + 1, 125) * regulariser(z)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    z = w.detach().relu()
    return (z != 0).sum(1).float(), float((z - target).square().sum() / target.square().sum())


def test_masked_flops_shortens_long_codes_and_leaves_short_ones():
    for seed in range(2):
        plain, error = fitted(Flops(6.0), seed)
        masked, less = fitted(MaskedFlops(10.0, above=20), seed)
        assert abs(plain.mean() - masked.mean()) < 1  # as many entries on average
        assert masked.std() < 0.88 * plain.std() and masked.quantile(0.95) < plain.quantile(0.95)
        assert (masked < 15).sum() < 0.7 * (plain < 15).sum() and less < 0.97 * error


def test_a_second_logarithm_brings_the_largest_weight_nearer_to_the_mean():
    h = torch.randn(50, 300, generator=torch.Generator().manual_seed(0)) * 5
    once, twice = Log1p()(h), Log1pTwice()(h)
    peak = lambda w: (w.amax(1) / (w.sum(1) / (w > 0).sum(1))).mean()  # noqa: E731
    assert peak(twice) < 0.85 * peak(once)
