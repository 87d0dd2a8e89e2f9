"""Sparse weights of few bits while training, and the terms that distil them."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from torch import nn

import sparseworks as sw
from sparseworks.core.errors import BudgetError, ModelError
from sparseworks.weights.distill import AttentionSparsity, Features, Outputs
from sparseworks.weights.train import Quantised
from sparseworks.weights.train.quantised import rounded


def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(16, 24), nn.ReLU(), nn.Linear(24, 8))


def test_rounding_is_symmetric_and_by_rows():
    x = torch.tensor([[0.7, -0.32, 0.0], [70.0, 11.0, -70.0]])
    assert torch.allclose(rounded(x, 4, dim=1), torch.tensor([[0.7, -0.3, 0.0], [70.0, 10.0, -70.0]]))
    assert rounded(torch.zeros(2, 2), 8).eq(0).all()


def test_the_support_is_held_and_weights_and_inputs_have_few_values():
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    run = sw.Sparsifier(model, sw.method("gpusq_qat", train=Quantised(bits=3)), optimizer)
    held, seen = run.supports, []
    model[0].register_forward_hook(lambda layer, args, y: seen.append(args[0].detach()))
    for i in range(4):
        x = torch.randn(12, 16, generator=torch.Generator().manual_seed(i))
        optimizer.zero_grad()
        (model(x) - x[:, :8]).square().mean().backward()
        optimizer.step()
        run.step()
        assert len(model[0].weight[0].unique()) <= 7 and len(seen[-1].unique()) <= 7
    assert run.finish() == held
    assert len(model[0].weight[0].unique()) <= 7 and not model[0].weight[~held["0"].mask()].any()
    model(torch.randn(2, 16))
    assert len(seen[-1].unique()) == 32
    with pytest.raises(BudgetError, match="at least 2 bits"):
        model = net()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        sw.Sparsifier(model, sw.method("gpusq_qat", train=Quantised(bits=1)), optimizer)


def test_features_count_by_the_error_that_is_left():
    student = Outputs(None, [torch.zeros(4, 2), torch.zeros(4, 2)])
    teacher = Outputs(None, [torch.full((4, 2), 1.0), torch.full((4, 2), 3.0)])
    assert float(Features()(student, teacher)) == 9.0
    term = Features.weighed(student, teacher, weight=0.5)
    assert term.weight == 0.5 and term.layers == pytest.approx((0.2, 1.8))
    assert float(term(student, teacher)) == pytest.approx(0.2 * 1 + 1.8 * 9)
    with pytest.raises(ModelError, match="3 weights"):
        Features(layers=(1.0, 1.0, 1.0))(student, teacher)
    with pytest.raises(ModelError, match="repeated blocks"):
        Features()(Outputs(None), Outputs(None))


def test_attention_is_penalised_where_it_is_sharp():
    flat, sharp = torch.full((1, 1, 4, 4), 0.25), torch.eye(4).reshape(1, 1, 4, 4)
    values = [
        float(AttentionSparsity()(Outputs(SimpleNamespace(attentions=(a, a))), Outputs(None))) for a in (flat, sharp)
    ]
    assert values[0] == pytest.approx(2 * torch.tensor(1.0625).log().item())
    assert values[1] == pytest.approx(2 * torch.tensor(2.0).log().item() / 4)
    with pytest.raises(ModelError, match="output_attentions"):
        AttentionSparsity()(Outputs(SimpleNamespace()), Outputs(None))
