"""Sparsifiner on the digits: connections that a predictor draws, against pooled blocks and the attention they stand for."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F

import sparseworks as sw
from sparseworks.attention import Heads
from sparseworks.attention.scores.pooled import pooled_logits
from sparseworks.attention.trained import attach, training
from sparseworks.core.errors import ShapeError
from sparseworks.core.pattern import Tile
from sparseworks.models.digits import Digits, train_digits

METHOD = sw.method("sparsifiner", tokens=65, rank=16, density=0.1)


STEPS = 60


def fit(model, attached, data, steps, rate=1e-3):
    """The model with its gates: cross-entropy, and what the gates add to it."""
    optimiser = torch.optim.Adam(
        [{"params": attached.parameters(), "lr": 3e-3}, {"params": [p for n, p in model.named_parameters() if "sparse_gate" not in n], "lr": rate}]
    )  # fmt: skip
    draw = torch.Generator().manual_seed(0)
    with training(attached):
        for _ in range(steps):
            at = torch.randint(0, len(data.train), (48,), generator=draw)
            loss = F.cross_entropy(model(data.train[at]), data.train_labels[at]) + attached.loss()
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()


@pytest.fixture(scope="module")
def data():
    return Digits.load()


@pytest.fixture(scope="module")
def digits(data):
    """A dense model, and a copy with predictors that was trained on with them for 60 steps."""
    dense = train_digits(data, epochs=3, layers=2)
    model = copy.deepcopy(dense)
    torch.manual_seed(0)
    attached = attach(model, METHOD)
    fit(model, attached, data, STEPS)
    return dense, model, attached


def test_the_predictor_finds_more_of_the_heavy_pairs_than_pooled_blocks(digits, data):
    _, model, attached = digits
    shares = {"predictor": [], "pooled": []}

    def watch(gate, args):
        heads = args[0]
        full, k = heads.scores().softmax(-1), 6
        # 13 x 13 blocks of 5 x 5 tokens: a pair has the score of its block
        blocks = pooled_logits(heads, Tile(5, 5)).repeat_interleave(5, -1).repeat_interleave(5, -2)
        best = full.topk(k).indices
        for name, score in (("predictor", gate.connectivity(heads)), ("pooled", blocks)):
            ours = score.topk(k).indices
            shares[name].append(float((best[..., None] == ours[..., None, :]).any(-1).float().mean()))

    hooks = [gate.register_forward_pre_hook(watch) for gate in attached.modules.values()]
    with torch.no_grad(), training(attached):
        model(data.test[:100])
    for hook in hooks:
        hook.remove()
    mean = {name: sum(s) / len(s) for name, s in shares.items()}
    assert mean["predictor"] > mean["pooled"] + 0.08, mean


def test_inference_agrees_with_training_and_a_full_budget_is_dense(digits, data):
    _, model, attached = digits
    images = data.test[:32]
    with torch.no_grad():
        with training(attached):
            wanted = model(images)
        (method,) = METHOD.export()
        with sw.attention(model, method) as run:
            torch.testing.assert_close(model(images), wanted, atol=1e-4, rtol=1e-4)
            assert run.density() == pytest.approx(0.1, abs=0.01)
        with sw.attention(model, method.with_(density=1.0)):
            whole = model(images)
        torch.testing.assert_close(whole, model(images), atol=1e-4, rtol=1e-4)
        assert float((wanted - whole).abs().max()) > 1e-2


def test_the_predictor_learns_by_its_own_loss_alone(digits, data):
    _, model, attached = digits
    model.zero_grad()
    with training(attached):
        model(data.test[:8]).square().mean().backward()
        assert all(p.grad is None or float(p.grad.abs().max()) == 0 for p in attached.parameters())
        model(data.test[:8])
        attached.loss().backward()
        assert all(float(p.grad.abs().max()) > 0 for p in attached.parameters())
    model.zero_grad()


def test_another_number_of_tokens_is_refused(digits):
    gate = digits[2].modules[0]
    x = torch.randn(1, 2, 30, 16)
    with pytest.raises(ShapeError, match="65 tokens"):
        gate.connectivity(Heads(x, x, x, causal=False))
