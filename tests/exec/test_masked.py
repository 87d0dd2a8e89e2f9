from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from sparseworks.core.errors import KernelError
from sparseworks.core.support import Support
from sparseworks.exec.executing import ExecutingLinear, as_masked, faster, speed
from sparseworks.exec.masked import InputRule, MaskedLinear, MaskedOutput, rule_data, rule_from

RULES = [InputRule(threshold=0.6), InputRule(keep=20), InputRule(keep=20, exact=False), InputRule(threshold=0.0)]


def made(rule: InputRule, factor: bool = False, rank: int = 0, bias: bool = True) -> MaskedLinear:
    torch.manual_seed(0)
    linear = nn.Linear(50, 37, bias)
    path = (torch.randn(37, rank), torch.randn(rank, 50)) if rank else None
    return MaskedLinear.from_linear(linear, rule, factor=linear.weight.norm(dim=0) if factor else None, path=path)


def by_hand(layer: MaskedLinear, x: torch.Tensor) -> torch.Tensor:
    rows = []
    for token in x.reshape(-1, 50):
        size = token.abs() * (1 if layer.factor is None else layer.factor)
        rule = layer.rule
        if rule.threshold is not None:
            mask = size > rule.threshold
        elif rule.exact:
            mask = torch.zeros(50, dtype=torch.bool)
            mask[size.topk(rule.keep).indices] = True
        else:
            cut = size.mean() + size.std(correction=0) * torch.special.ndtri(torch.tensor(1 - rule.keep / 50))
            mask = size > cut
        y = layer.weight[:, mask] @ token[mask]
        if layer.left is not None:
            y = y + layer.left @ (layer.right[:, ~mask] @ token[~mask])
        rows.append(y if layer.bias is None else y + layer.bias)
    return torch.stack(rows).reshape(*x.shape[:-1], 37)


@pytest.mark.parametrize("rule", RULES, ids=str)
@pytest.mark.parametrize("factor, rank", [(False, 0), (True, 0), (True, 3)])
@torch.no_grad()
def test_masked_and_executing_are_what_the_formula_says(rule, factor, rank):
    layer = made(rule, factor, rank)
    for shape in ((1, 50), (2, 3, 50), (12, 50)):
        x = torch.randn(shape)
        torch.testing.assert_close(layer(x), by_hand(layer, x), rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(ExecutingLinear(layer)(x), layer(x), rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_the_first_tokens_of_a_prompt_stay_whole():
    layer = made(InputRule(threshold=0.8, prompt=0.5))
    x = torch.randn(2, 9, 50)
    y, dense = layer(x), F.linear(x, layer.weight, layer.bias)
    assert torch.equal(layer.kept(x)[:, :5], x[:, :5]) and not torch.equal(layer.kept(x)[:, 5], x[:, 5])
    torch.testing.assert_close(y[:, :5], dense[:, :5])
    alone = torch.stack([layer(x[:, t : t + 1]) for t in range(9)], 1)[:, :, 0]
    torch.testing.assert_close(y[:, 5:], alone[:, 5:], rtol=1e-4, atol=1e-5)
    assert not torch.allclose(alone[:, :5], dense[:, :5], atol=1e-2)  # a token by itself is no prompt
    torch.testing.assert_close(ExecutingLinear(layer)(x), y, rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_pruned_weights_stay_pruned_under_a_mask():
    layer = made(InputRule(threshold=0.6))
    support = Support.from_mask(torch.rand(37, 50) < 0.4)
    layer.weight.mul_(support.mask())
    executing = ExecutingLinear(layer, support)
    assert executing.product.packed.format == "inbits"
    x = torch.randn(1, 50)
    torch.testing.assert_close(executing(x), layer(x), rtol=1e-4, atol=1e-4)
    assert torch.equal(executing.masked().weight, layer.weight)


def test_gradients_flow_through_kept_inputs():
    layer, x = made(InputRule(threshold=0.6)), torch.randn(3, 50, requires_grad=True)
    layer(x).sum().backward()
    assert torch.equal(x.grad != 0, x.abs() > 0.6) and layer.weight.grad is not None


def test_parameters_are_the_linear_layers_own():
    linear = nn.Linear(50, 37)
    layer = MaskedLinear.from_linear(linear, RULES[0])
    assert layer.weight is linear.weight and layer.dense().bias is linear.bias
    assert list(layer.state_dict()) == ["weight", "bias"]
    assert copy.deepcopy(layer).rule == layer.rule


@torch.no_grad()
def test_executing_layers_become_masked_for_files_and_come_back():
    model = nn.Sequential(made(RULES[0], True, 2), nn.ReLU())
    before, x = copy.deepcopy(model), torch.randn(1, 50)
    model[0] = ExecutingLinear(model[0])
    executing = model[0]
    with as_masked(model) as paths:
        assert paths == ["0"] and torch.equal(model(x), before(x))
        assert all(
            torch.equal(a, b) for a, b in zip(model.state_dict().values(), before.state_dict().values(), strict=True)
        )
    assert model[0] is executing


@pytest.mark.parametrize("rule", [*RULES, InputRule(threshold=float("inf"), prompt=0.3)], ids=str)
def test_rules_survive_json(rule):
    import json

    assert rule_from(json.loads(json.dumps(rule_data(rule)))) == rule


@pytest.mark.parametrize(
    "given", [{}, {"threshold": 1.0, "keep": 2}, {"threshold": -1.0}, {"keep": -1}, {"keep": 1, "prompt": 2.0}]
)
def test_rules_that_cannot_be(given):
    with pytest.raises(KernelError):
        InputRule(**given)


def test_masked_output_and_its_relu():
    x = torch.randn(4, 6)
    assert torch.equal(MaskedOutput(nn.SiLU(), InputRule(threshold=0.0))(x), F.silu(x))
    assert torch.equal(MaskedOutput(nn.SiLU(), InputRule(threshold=0.0), relu=True)(x), x.relu())
    kept = MaskedOutput(nn.SiLU(), InputRule(threshold=0.2))(x)
    assert torch.equal(kept, F.silu(x).where(F.silu(x).abs() > 0.2, 0.0))


def test_speed_is_measured_and_doubt_counts_against_it():
    ratio = speed(made(InputRule(threshold=0.6), True), 0.5, rounds=3)
    assert ratio > 0 and not faster(1.0) and faster(0.5)
