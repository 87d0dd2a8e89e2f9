"""Every registered method that trains with activations, and every activation: what is promised of all of them."""

from __future__ import annotations

import pytest
import torch

import sparseworks as sw
from sparseworks.activations.trained import ACTIVATIONS, TrainedMethod
from sparseworks.core.pages import method_facts, method_page
from sparseworks.core.published import METHODS, method_from

METHODS_HERE = [m.name for m in METHODS if isinstance(m, TrainedMethod)]


def test_entries_of_the_catalogue():
    found = {n for name in METHODS_HERE for n in sw.method(name).catalog}
    assert found == {278, 60, 43, 230, 139, 83, 96, 109, 81, 90, 78, 299}


@pytest.mark.parametrize("name", METHODS_HERE)
def test_methods_survive_plain_data_and_have_a_page(name):
    method = sw.method(name)
    assert method_from(method.to_config()) == method
    other = method.with_(activation=type(method.activation).example())
    assert method_from(other.to_config()) == other
    page = method_page(method_facts(name))
    assert method.claims and method.when and method.when_not and method.source.arxiv in page


@pytest.mark.parametrize("name", ACTIVATIONS.names())
def test_activations_keep_shape_leave_zeros_change_nothing_else_and_have_a_gradient(name):
    activation = ACTIVATIONS.get(name).example()
    x = torch.randn(4, 8, 8, 3 if name == "window_magnitude" else 8, generator=torch.Generator().manual_seed(0))
    x = (x[0] if name in ("elbow_tokens", "core_neurons") else x).requires_grad_()
    before = x.detach().clone()
    y = activation(x)
    assert y.shape == x.shape and x.equal(before) and int((y == 0).sum()) > 0
    (gradient,) = torch.autograd.grad(y.square().sum(), x)
    assert bool(gradient.isfinite().all()) and int(gradient.count_nonzero()) > 0
    assert y.equal(activation(x))
