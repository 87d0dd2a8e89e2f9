"""Gates of all kinds: dense where they say so, gradients where they should be, the same at inference as in training."""

from __future__ import annotations

import pytest
import torch

import sparseworks as sw
from sparseworks.attention.trained import attach, training
from sparseworks.attention.trained.gate import NAME
from sparseworks.core.errors import ModelError


def stir(attached, seed=0, **scales):
    """Weights as a training might leave them."""
    draw = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for gate in attached.modules.values():
            for name, p in gate.named_parameters():
                scale = scales.get(name, scales.get(name.split(".")[0]))
                if scale is not None:
                    p.copy_(torch.randn(p.shape, generator=draw) * scale)


METHODS = {
    "dma": (sw.method("dma", keep=9), {"a": 1.0, "w": 1.0}),
    "dms": (sw.method("dms", window=5), {"w": 0.05}),
    "context_pruning": (sw.method("context_pruning", width=8, bias=1.5), {"q": 0.4, "k": 0.4}),
    "nosa": (sw.method("nosa", block=4, keep=5, aware=2, local=2, span=4, stride=2), {"a": 1.0, "w": 1.0}),
    "dynamic_llava": (sw.method("dynamic_llava", layer=1, width=16), {"judge.2.weight": 3.0, "judge.2.bias": 0.1}),
}


@pytest.fixture(params=METHODS)
def case(request, model):
    method, scales = METHODS[request.param]
    torch.manual_seed(0)
    attached = attach(model, method)
    stir(attached, **scales)
    return model, method, attached


def hard(model, attached, ids):
    with torch.no_grad(), training(attached):
        return model(ids, use_cache=False).logits


def test_inference_agrees_with_training(case, ids, tools):
    model, method, attached = case
    wanted = hard(model, attached, ids)
    with torch.no_grad():
        dense = model(ids, use_cache=False).logits
        assert float((wanted - dense).abs().max()) > 1e-3  # the gate does something
        with sw.attention(model, *method.export()) as run:
            torch.testing.assert_close(model(ids, use_cache=False).logits, wanted, atol=2e-5, rtol=1e-4)
            assert 0.05 < run.density() < 0.98
            assert run.density() == pytest.approx(attached.density, abs=1e-5)


@pytest.mark.parametrize("first", [1, 17])
def test_generation_agrees_with_training(case, ids, tools, first):
    model, method, attached = case
    wanted = hard(model, attached, ids)
    with torch.no_grad(), sw.attention(model, *method.export()) as run:
        found = tools.step_by_step(model, run, ids, first)
        torch.testing.assert_close(found, wanted, atol=2e-5, rtol=1e-4)
        if len(method.export()) == 2:
            assert run.held.tokens < 2 * 2 * 2 * ids.shape[1]  # rows x layers x key heads


def test_gates_learn_through_the_model(case, ids):
    model, _, attached = case
    model.train()
    attached.set_progress(0.3)
    with training(attached):
        torch.nn.functional.cross_entropy(
            model(ids, use_cache=False).logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten()
        ).backward()
    got = [p.grad for p in attached.parameters()]
    assert got and all(g is not None and float(g.abs().max()) > 0 for g in got)


def test_what_is_attached_is_saved_with_the_model_and_goes_again(case, ids):
    model, _, attached = case
    assert any(NAME in name for name in model.state_dict())
    wanted = hard(model, attached, ids)
    again = attach(model, attached.method)
    assert torch.equal(hard(model, again, ids), wanted)
    attached.detach()
    assert not any(NAME in name for name in model.state_dict())


def test_padding_and_caches_are_refused_in_training(case, ids):
    model, _, attached = case
    mask = torch.ones_like(ids)
    mask[0, :3] = 0
    with training(attached), pytest.raises(ModelError, match="without padding"):
        model(ids, attention_mask=mask, use_cache=False)


def test_dma_starts_dense_and_needs_the_bias_to_learn(model, ids):
    attached = attach(model, sw.method("dma", keep=ids.shape[1]))
    dense = model(ids, use_cache=False).logits
    torch.testing.assert_close(hard(model, attached, ids), dense, atol=1e-5, rtol=1e-5)
    with sw.attention(model, *attached.method.export()):
        torch.testing.assert_close(model(ids, use_cache=False).logits, dense, atol=1e-5, rtol=1e-5)
    for gate in attached.modules.values():  # without the bias the choice alone is left, which has no gradient
        full = gate.bias
        gate.bias = lambda heads, full=full: (
            full(heads).isneginf().float().masked_fill(full(heads).isneginf(), -torch.inf)
        )
    with training(attached):
        model(ids, use_cache=False).logits.square().mean().backward()
    assert all(p.grad is None for p in attached.parameters())


def test_dms_and_pruning_start_dense(tools, ids):
    for name, changes in (("dms", {"window": 3}), ("context_pruning", {"bias": 50.0})):
        model = tools.tiny()
        attached = attach(model, sw.method(name, **changes))
        dense = model(ids, use_cache=False).logits
        torch.testing.assert_close(hard(model, attached, ids), dense, atol=1e-5, rtol=1e-5)
        with sw.attention(model, *attached.method.export()) as run:
            torch.testing.assert_close(model(ids, use_cache=False).logits, dense, atol=1e-5, rtol=1e-5)
            assert run.density() == 1.0


def test_pruning_is_for_good_and_its_decisions_are_sharp_at_the_end(model, ids):
    attached = attach(model, sw.method("context_pruning", width=16, bias=0.0))
    stir(attached, q=0.15, k=0.15)
    model.train()
    shares = []
    for progress in (0.0, 1.0):
        attached.set_progress(progress)
        with training(attached):
            model(ids, use_cache=False)
        gate = attached.modules[0]
        with torch.no_grad():
            heads = type("Call", (), {"hidden": gate.hidden, "batch": 2, "queries": ids.shape[1]})
            stays = gate.stays(heads)
        steps = stays[:, 1:] - stays[:, :-1]
        past = torch.ones(ids.shape[1], ids.shape[1]).tril(-1).bool()
        assert float(steps[:, past[1:] & past[:-1] | (past[1:] & ~past[:-1])].max()) <= 1e-6
        z = gate.logits(gate.hidden, gate.k(gate.hidden))
        from sparseworks.attention.trained.entmax import sparse_sigmoid

        p = sparse_sigmoid(z, gate.alpha)[:, past]
        shares.append(float(((p > 0.01) & (p < 0.99)).float().mean()))
    assert shares[0] > 0.5 and shares[1] < 0.5 * shares[0]


def test_dms_decides_late(model, ids):
    """A token that is given up is seen by the window after it, and by none beyond."""
    method = sw.method("dms", window=5)
    attached = attach(model, method)
    stir(attached, w=0.05)
    seen = []
    for gate in attached.modules.values():
        gate.register_forward_pre_hook(lambda gate, args: seen.append(gate.bias(args[0])))
    hard(model, attached, ids)
    at = torch.arange(ids.shape[1])
    back = at[:, None] - at
    for bias in seen:
        assert float(bias[..., back <= 5].abs().max()) == 0
        beyond = bias[..., back > 5]
        assert set(beyond.unique().tolist()) == {0.0, -torch.inf}
        columns = (
            bias.isneginf().float().masked_fill(back <= 5, 0).sum(-2)
        )  # gone for one query, gone for all later ones
        later = (back > 5).sum(0)
        assert bool(((columns == 0) | (columns == later)).all())


def test_a_token_predictor_learns_about_what_it_dropped():
    """d out / d keep_j = e^s_j / (sum over kept of e^s) (v_j - out) for every past token j, kept or not."""
    from sparseworks.attention import Heads
    from sparseworks.attention.trained import Sizes

    torch.manual_seed(0)
    gate = sw.method("dynamic_llava", layer=0, width=8).build(Sizes(8, 2, 2, 4, layer=0, layers=1))
    gate.join({0: gate})
    heads = Heads(*(torch.randn(3, 1, 2, 6, 4) * 0.5))  # kept tokens have more than a tenth everywhere
    keep = torch.tensor([[1.0, 0, 0, 1, 0, 1]], requires_grad=True)
    gate.hidden, gate.decide = torch.randn(1, 6, 8), lambda hidden, first=0: keep
    out, probe = gate(heads), torch.randn(1, 2, 6, 4)
    (out * probe).sum().backward()
    wanted = torch.zeros(6)
    for h in range(2):
        for i in range(6):
            weight = (heads.q[0, h, i] @ heads.k[0, h, : i + 1].T * heads.factor).exp()
            stays = keep.detach()[0, : i + 1].clone()
            stays[i] = 1
            attended = (weight * stays) @ heads.v[0, h, : i + 1] / (weight * stays).sum()
            torch.testing.assert_close(out[0, h, i].detach(), attended, atol=1e-5, rtol=1e-4)
            for j in range(i):
                wanted[j] += weight[j] / (weight * stays).sum() * (heads.v[0, h, j] - attended) @ probe[0, h, i]
    torch.testing.assert_close(keep.grad[0], wanted, atol=1e-4, rtol=1e-3)
