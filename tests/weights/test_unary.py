"""Activations: operators, late acceptance, scales."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from sparseworks.core.errors import BudgetError, ModelError, UnknownNameError
from sparseworks.weights.unary import OPERATORS, Activation, activations, search_activations, set_activations


@pytest.mark.parametrize("name", OPERATORS)
def test_operators_are_finite_and_differentiable(name):
    x = torch.linspace(-30, 30, 241, requires_grad=True)
    y = Activation(name)(x)
    y.sum().backward()
    assert y.isfinite().all() and x.grad is not None and x.grad.isfinite().all()


def test_operators_replace_the_modules_and_scales_train():
    model = nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Sequential(nn.Linear(3, 3), nn.Tanh()))
    assert activations(model) == ["1", "2.1"]
    set_activations(model, ["swish", "symlog"], scaled=True)
    assert [model[1].name, model[2][1].name] == ["swish", "symlog"]
    model(torch.ones(1, 2)).sum().backward()
    assert model[1].beta.grad is not None
    set_activations(model, {"1": "relu"})
    assert not model[1].alpha.requires_grad
    with pytest.raises(ModelError):
        set_activations(model, ["relu"])
    with pytest.raises(UnknownNameError):
        set_activations(model, ["relu", "nothing"])


def test_late_acceptance_finds_the_best_of_a_landscape_and_counts_what_it_tried():
    worth = {name: i for i, name in enumerate(OPERATORS)}
    found = search_activations(lambda c: sum(worth[n] for n in c), 3, tries=200)
    assert found.score > 0.9 * 3 * (len(OPERATORS) - 1) and found.tried <= 200
    assert found.score > sum(worth["relu"] for _ in range(3))
    with pytest.raises(BudgetError):
        search_activations(lambda c: 0.0, 0)
