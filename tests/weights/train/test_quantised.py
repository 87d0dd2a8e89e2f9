"""Sparse weights of few bits while training, and the terms that distil them."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from torch import nn

import sparseworks as sw
from sparseworks.core.errors import BudgetError, ModelError
from sparseworks.weights.distill import AttentionSparsity, Features, Outputs
from sparseworks.weights.train import Quantised, best_step, input_steps, rounded_inputs
from sparseworks.weights.train.quantised import rounded, rounded_to


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


def test_gradients_pass_inside_the_range_and_the_step_learns_from_what_is_lost():
    x = torch.tensor([0.26, -1.0, 0.9, 0.0, 3.0, -0.55], requires_grad=True)
    step, pull, top = torch.tensor([0.2], requires_grad=True), torch.arange(1.0, 7.0), 3
    y = rounded_to(x, step, 3)
    expected = [0.2 * max(-top, min(top, round(v / 0.2))) for v in x.tolist()]
    assert torch.allclose(y, torch.tensor(expected), atol=1e-6)
    (y * pull).sum().backward()
    inside = [abs(v / 0.2) < top for v in x.tolist()]
    assert x.grad.tolist() == [p * i for p, i in zip(pull.tolist(), inside, strict=True)]
    lost = [
        round(v / 0.2) - v / 0.2 if i else (top if v > 0 else -top) for v, i in zip(x.tolist(), inside, strict=True)
    ]
    scale = 1 / (6 * top) ** 0.5
    assert float(step.grad) == pytest.approx(
        scale * sum(p * e for p, e in zip(pull.tolist(), lost, strict=True)), rel=1e-5
    )
    half = torch.ones(2, dtype=torch.float16)
    assert rounded_to(half, torch.tensor([0.25]), 3).dtype == torch.float16
    assert rounded_to(half, torch.zeros(1), 3) is half


def test_the_best_step_loses_least_and_clips_outliers():
    x = torch.randn(4000, generator=torch.Generator().manual_seed(0))
    x[0] = 20.0
    step = float(best_step(x, 4))
    errors = {
        a: float((rounded_to(x, torch.tensor([a]), 4) - x).square().sum()) for a in torch.linspace(0.1, 3, 300).tolist()
    }
    assert float((rounded_to(x, torch.tensor([step]), 4) - x).square().sum()) < 1.02 * min(errors.values())
    assert step < 0.5 * 20.0 / 7 and float(best_step(torch.zeros(3), 4)) == 0.0


def test_steps_of_inputs_start_with_the_first_batch_are_learned_and_serve_inference():
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    run = sw.Sparsifier(model, sw.method("gpusq_qat", train=Quantised(bits=4)), optimizer)
    with pytest.raises(ModelError, match="no steps of inputs"):
        input_steps(run)
    x = torch.randn(32, 16, generator=torch.Generator().manual_seed(0))
    model.eval()
    model(x)
    assert not any(float(s.learned["input_step"].detach()) for s in run.sites)  # evaluation calibrates nothing
    model.train()
    steps = []
    for _ in range(3):
        optimizer.zero_grad()
        y = model(x)
        (y - x[:, :8]).square().mean().backward()
        if not steps:
            steps.append(input_steps(run))
            assert steps[0]["0"] == float(best_step(x, 4))
            with torch.no_grad():
                hidden = model[1](
                    nn.functional.linear(rounded_to(x, best_step(x, 4), 4), model[0].weight, model[0].bias)
                )
                expected = nn.functional.linear(
                    rounded_to(hidden, best_step(hidden, 4), 4), model[2].weight, model[2].bias
                )
            assert torch.allclose(y, expected, atol=1e-6)
            gradient = float(run.sites[0].learned["input_step"].grad)
        optimizer.step()
        run.step()
        steps.append(input_steps(run))
    assert steps[1]["0"] == pytest.approx(steps[0]["0"] - 0.1 * gradient, rel=1e-5) and gradient != 0
    model.eval()
    trained = model(x)
    run.sites[0].learned["input_step"].data.neg_()
    run.regime.after(run)
    run.finish()
    assert not torch.equal(model(x), trained)
    with rounded_inputs(model, input_steps(run), 4):
        assert torch.equal(model(x), trained)
    assert len(optimizer.param_groups[0]["params"]) == 4  # the steps are out of it
    with pytest.raises(ModelError, match="no layer 'other'"), rounded_inputs(model, {"other": 1.0}, 4):
        pass


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
