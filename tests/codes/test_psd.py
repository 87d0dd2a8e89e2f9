from __future__ import annotations

import pytest
import torch
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression
from torch.utils.flop_counter import FlopCounterMode

import sparseworks as sw
from sparseworks.codes.psd import Predictor, psd
from sparseworks.core.errors import BudgetError, DtypeError, NonFiniteError, ShapeError
from sparseworks.solve.coders import ProximalGradient
from sparseworks.solve.penalties import L1


@pytest.fixture(scope="module")
def learnt():
    train, test = digits()
    return sw.method("psd")(train[0], 64, epochs=30, rate=6e-3), train, test


def digits():
    x, labels = load_digits(return_X_y=True)
    x = torch.tensor(x, dtype=torch.float32)
    x = (x - x.mean(0)) / x.std()
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(0))
    x, labels = x[order], torch.tensor(labels)[order]
    return (x[:1000], labels[:1000]), (x[1000:], labels[1000:])


def probe(encode, train, test):
    head = LogisticRegression(C=0.3, max_iter=300).fit(encode(train[0]).detach().numpy(), train[1].numpy())
    return head.score(encode(test[0]).detach().numpy(), test[1].numpy())


def test_a_probe_reads_predicted_codes_about_as_well_as_exact_ones(learnt):
    found, train, test = learnt
    exact = probe(found.exact, train, test)
    predicted = probe(found.predictor, train, test)
    raw = probe(Predictor(64, 64), train, test)
    assert exact > 0.9
    assert predicted > exact - 0.01
    assert predicted > raw + 0.005, (predicted, exact, raw)


def test_the_predictor_foretells_the_codes_of_new_signals(learnt):
    found, _, test = learnt
    exact, predicted = found.exact(test[0]), found.predictor(test[0])
    away = (predicted - exact).square().sum() / exact.square().sum()
    untrained = (Predictor(64, 64)(test[0]) - exact).square().sum() / exact.square().sum()
    assert away < 0.5 * untrained and away < 0.5
    assert found.loss[-1] < 0.8 * found.loss[0]
    assert torch.allclose(found.dictionary.norm(dim=1), torch.ones(64), atol=1e-5)


def test_a_predicted_code_takes_less_than_a_fiftieth_of_the_products_of_an_exact_one(learnt):
    """ISTA to a duality gap of 1e-4, one product with the atoms' inner products a step and nothing else counted."""
    found, _, test = learnt
    y = test[0][:200].double()
    # ||y - z D||^2 + w ||z||_1 is twice what the coder minimises with w / 2
    ista = ProximalGradient(penalty=L1(found.weight / 2), momentum=False, tolerance=1e-4, iterations=2000)
    solved = ista(found.dictionary.double(), y)
    with FlopCounterMode(display=False) as predicted:
        found.predictor(test[0][:200])
    exact = 2 * len(found.dictionary) ** 2 * int(solved.steps.sum())
    assert bool(solved.converged.all())
    assert 50 * predicted.get_total_flops() < exact, exact / predicted.get_total_flops()


def test_exact_codes_meet_the_conditions_of_the_lasso():
    train, _ = digits()
    found = psd(train[0][:200], 32, 0.5, epochs=2)
    z = found.exact(train[0][:20], steps=3000)
    gradient = 2 * (z @ found.dictionary - train[0][:20]) @ found.dictionary.mT
    assert (gradient[z == 0].abs() <= 0.5 + 1e-3).all()
    assert torch.allclose(gradient[z != 0], -0.5 * z[z != 0].sign(), atol=2e-3)


def test_bad_operands_are_refused():
    with pytest.raises(ShapeError):
        psd(torch.zeros(4), 2)
    with pytest.raises(NonFiniteError):
        psd(torch.full((2, 2), torch.nan), 2)
    with pytest.raises(BudgetError):
        psd(torch.ones(2, 2), 0)
    with pytest.raises(DtypeError):
        psd(torch.ones(2, 2, dtype=torch.long), 2)
    with pytest.raises(BudgetError):
        psd(torch.ones(2, 2), 2, -1.0)
