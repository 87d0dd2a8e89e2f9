"""Sparsifiner on the digits: connections that a predictor draws, against a local window, random pairs and pooled blocks."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F

import sparseworks as sw
from sparseworks.attention import AttentionScore, Heads
from sparseworks.attention.scores.pooled import pooled_logits
from sparseworks.attention.trained import attach, training
from sparseworks.core.errors import ShapeError
from sparseworks.core.pattern import Tile
from sparseworks.models.digits import Digits, digits_accuracy, train_digits

METHOD = sw.method("sparsifiner", tokens=65, rank=16, density=0.1)


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
    fit(model, attached, data, 60)
    return dense, model, attached


class Fixed(AttentionScore):
    """Pairs that do not depend on the image."""

    def __init__(self, kind):
        at = torch.arange(65)
        y, x = (at - 1) // 8, (at - 1) % 8
        near = -((y[:, None] - y) ** 2 + (x[:, None] - x) ** 2).float()
        near[0], near[:, 0] = torch.rand(65, generator=torch.Generator().manual_seed(0)), 1.0
        self.map = near if kind == "window" else torch.rand(65, 65, generator=torch.Generator().manual_seed(1))

    def __call__(self, heads, unit):
        return self.map.expand(1, 1, -1, -1)


def test_predicted_pairs_serve_better_than_a_window_and_random_ones(digits, data):
    dense, model, attached = digits
    (method,) = METHOD.export()
    found = {"dense": digits_accuracy(dense, data)}
    with sw.attention(model, method) as run:
        found["predicted"] = digits_accuracy(model, data)
        assert run.density() == pytest.approx(0.1, abs=0.01)
    for kind in ("window", "random"):
        with sw.attention(model, method.with_(score=Fixed(kind))) as run:
            found[kind] = digits_accuracy(model, data)
            assert run.density() == pytest.approx(0.1, abs=0.01)
    print(found)


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
    print(mean)
    assert mean["predictor"] > mean["pooled"] + 0.1, mean


def test_inference_agrees_with_training_and_a_full_budget_is_dense(digits, data):
    _, model, attached = digits
    images = data.test[:32]
    with torch.no_grad():
        with training(attached):
            wanted = model(images)
        (method,) = METHOD.export()
        with sw.attention(model, method):
            torch.testing.assert_close(model(images), wanted, atol=1e-4, rtol=1e-4)
        with sw.attention(model, method.with_(density=1.0)):
            whole = model(images)
        torch.testing.assert_close(whole, model(images), atol=1e-4, rtol=1e-4)
        assert float((wanted - whole).abs().max()) > 1e-2


def test_the_predictor_learns_by_its_own_loss_alone(digits, data):
    _, model, attached = digits
    with training(attached):
        model(data.test[:8]).square().mean().backward()
        assert all(p.grad is None for p in attached.parameters())
        model(data.test[:8])
        attached.loss().backward()
        assert all(float(p.grad.abs().max()) > 0 for p in attached.parameters())
    model.zero_grad()


def test_another_number_of_tokens_is_refused(digits):
    gate = digits[2].modules[0]
    x = torch.randn(1, 2, 30, 16)
    with pytest.raises(ShapeError, match="65 tokens"):
        gate.connectivity(Heads(x, x, x, causal=False))
