"""SeerAttention: the target pooled in one pass, a gate that learns it, blocks by that gate at inference."""

from __future__ import annotations

import copy

import pytest
import torch

import sparseworks as sw
from sparseworks.attention import Heads, sparse_attention
from sparseworks.attention.scores.pooled import pooled_logits
from sparseworks.attention.trained import attach, training
from sparseworks.attention.trained.seer import SeerScore, max_pooled
from sparseworks.core.budget import Density, Threshold
from sparseworks.core.errors import ModelError, RecipeError
from sparseworks.core.pattern import Tile
from sparseworks.evaluate.sequences import mqar

METHOD = sw.method("seer_attention", block=8, width=32)


def rows(n, seed):
    return mqar(n, 128, pairs=16, turns=8, seed=seed).ids


@pytest.fixture(scope="module")
def seen():
    """recall-lm with gates of 60 steps, and (heads, gate logits) of every layer on other rows."""
    model = sw.load("sparseworks/recall-lm").float().eval().requires_grad_(False)
    torch.manual_seed(0)
    attached = attach(model, METHOD)
    optimiser = torch.optim.Adam(attached.parameters(), 5e-3)
    losses = []
    with training(attached):
        for step in range(60):
            model(rows(4, step), use_cache=False)
            loss = attached.loss()
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            losses.append(loss.item())
    assert all(p.grad is None for n, p in model.named_parameters() if "sparse_gate" not in n)
    return model, attached, losses


@pytest.mark.parametrize("causal", [True, False])
def test_the_target_pooled_in_one_pass_is_the_explicit_one(causal):
    torch.manual_seed(0)
    q, k, v = torch.randn(2, 4, 37, 16), torch.randn(2, 2, 37, 16), torch.randn(2, 2, 37, 16)
    heads = Heads(q, k, v, causal=causal)
    out, found = max_pooled(heads, Tile(8, 8))
    full = heads.scores().softmax(-1)
    explicit = torch.stack(
        [
            torch.stack([full[:, :, a:b, c:d].amax((-2, -1)) for c, d in heads.columns_of(8)], -1)
            for a, b in heads.rows_of(8)
        ],
        -2,
    )
    torch.testing.assert_close(found, explicit / explicit.sum(-1, keepdim=True))
    torch.testing.assert_close(out, full @ heads.shared(v))


def test_the_gate_finds_the_heavy_blocks_that_mean_pooling_misses(seen):
    model, attached, losses = seen
    assert losses[-1] < 0.5 * losses[0]
    shares = {"gate": [], "pooled": []}
    unit = Tile(8, 8)

    def watch(module, args):
        heads = args[0]
        _, target = max_pooled(heads, unit)
        for name, score in (("gate", module.logits(heads, unit)), ("pooled", pooled_logits(heads, unit))):
            shares[name].append(recall(score, target, heads.allowed(unit), 0.15))

    hooks = [gate.register_forward_pre_hook(watch) for gate in attached.modules.values()]
    with torch.no_grad(), training(attached):
        model(rows(4, 1000), use_cache=False)
    for hook in hooks:
        hook.remove()
    mean = {name: sum(found) / len(found) for name, found in shares.items()}
    assert mean["gate"] > mean["pooled"] + 0.06, mean


def recall(score, target, allowed, density):
    """Mean share of the heaviest blocks of a row among as many that the score puts first."""
    found = []
    for row in range(4, target.shape[-2]):
        n = int(allowed[row].sum())
        k = max(1, round(density * n))
        best, ours = (t[:, :, row, :n].topk(k).indices for t in (target, score))
        found.append((best[..., None] == ours[..., None, :]).any(-1).float().mean().item())
    return sum(found) / len(found)


def test_training_keeps_the_model_as_it_is_and_inference_reads_the_same_gate(seen):
    model, attached, _ = seen
    ids = rows(2, 2000)
    with torch.no_grad():
        dense = model(ids, use_cache=False).logits
        with training(attached):
            torch.testing.assert_close(model(ids, use_cache=False).logits, dense, atol=1e-4, rtol=1e-4)
        (exported,) = METHOD.export()
        with sw.attention(model, exported.with_(budget=Density(1.0))) as run:
            torch.testing.assert_close(model(ids, use_cache=False).logits, dense, atol=1e-4, rtol=1e-4)
        with sw.attention(model, exported.with_(budget=Threshold(0.05))) as run:
            sparse = model(ids, use_cache=False).logits
        assert 0.1 < run.density() < 0.9
        again = copy.deepcopy(model)  # the gates are the model's own: they go where it goes
        attach(again, METHOD)
        with sw.attention(again, exported.with_(budget=Threshold(0.05))):
            assert torch.equal(again(ids, use_cache=False).logits, sparse)


def test_scores_are_probabilities_of_blocks_that_are_not_of_the_future(seen):
    model, _, _ = seen
    found = []

    class Spy(SeerScore):
        def __call__(self, heads, unit):
            found.append((super().__call__(heads, unit), heads.allowed(unit)))
            return found[-1][0]

    (exported,) = METHOD.export()
    with torch.no_grad(), sw.attention(model, exported.with_(score=Spy())):
        model(rows(1, 3000), use_cache=False)
    for score, allowed in found:
        assert float(score[:, :, ~allowed].abs().max()) == 0
        torch.testing.assert_close(score.sum(-1), torch.ones(score.shape[:-1]))


def test_without_a_trained_gate_it_says_what_to_do():
    (exported,) = METHOD.export()
    x = torch.randn(1, 2, 16, 8)
    with pytest.raises(ModelError, match="attach and train it first"):
        sparse_attention(Heads(x, x, x), exported)
    with pytest.raises(RecipeError, match="trained"):
        sw.attention(sw.load("sparseworks/recall-lm"), "seer_attention").__enter__()
