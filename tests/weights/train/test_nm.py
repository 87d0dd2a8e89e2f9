"""N:M training: what one step of each method does, beside the formula written out."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import sparseworks as sw
from sparseworks.core.errors import ModelError, PatternError
from sparseworks.core.patterns import nm
from sparseworks.core.schedule import Constant, Exponential
from sparseworks.stream import sites
from sparseworks.weights.train import (
    AdamDecay,
    AdamShrink,
    Bidirectional,
    FadePatterns,
    FadeValues,
    PooledLinear,
    Straight,
    add_branches,
)
from sparseworks.weights.train.fade import frames


def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 8))


def conv_net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(8, 16, 3, stride=2, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(64, 8))


def loss(model, seed=0):
    g = torch.Generator().manual_seed(seed)
    shape = (12, 8, 4, 4) if isinstance(model[0], nn.Conv2d) else (12, 16)
    x = torch.randn(shape, generator=g)
    return (model(x) - x.flatten(1)[:, :8].sin()).square().mean()


def step(model, optimizer, run, seed=0):
    optimizer.zero_grad()
    loss(model, seed).backward()
    optimizer.step()
    run.step()


def mask_of(weight, n, m):
    """N:M along input channels, written out: channels last for convolutions."""
    flat = weight.abs() if weight.dim() == 2 else weight.abs().movedim(1, -1)
    groups = flat.reshape(-1, m)
    found = torch.zeros_like(groups).scatter_(1, groups.topk(n, dim=1).indices, 1.0).reshape(flat.shape)
    return found if weight.dim() == 2 else found.movedim(-1, 1)


@pytest.mark.parametrize("build", [net, conv_net])
def test_steps_of_sr_ste_are_those_of_its_formula(build):
    model, plain = build(), build()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=1e-2)
    other = torch.optim.SGD(plain.parameters(), lr=0.1, momentum=0.9, weight_decay=1e-2)
    run = sw.Sparsifier(model, sw.method("sr_ste", pattern="1:4", train=Straight(decay=0.3)), optimizer)
    weights = [s.tensor(plain) for s in sites(plain)]
    for i in range(4):
        step(model, optimizer, run, i)
        dense = [w.detach().clone() for w in weights]
        masks = [mask_of(w, 1, 4) for w in dense]
        other.zero_grad()
        for w, m in zip(weights, masks, strict=True):
            w.data.mul_(m)
        loss(plain, i).backward()
        for w, d, m in zip(weights, dense, masks, strict=True):
            w.data.copy_(d)
            w.grad += 0.3 * (1 - m) * d
        other.step()
    for place, w in zip(run.sites, weights, strict=True):
        assert torch.allclose(place.weight(), place.site.view(w), atol=1e-6)


def test_values_fade_between_dense_and_masked():
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    method = sw.method("mdgf_exp", pattern="1:4", train=FadeValues(start=0.2, stop=0.6), schedule=Exponential(2.0))
    run = sw.Sparsifier(model, method, optimizer, steps=10)
    place = run.sites[0]
    for i in range(10):
        t = i / 10
        share = 1.0 if t < 0.2 else 0.0 if t >= 0.6 else float(torch.tensor(-2.0 * (t - 0.2) / 0.4).exp())
        wanted = place.weight() * (place.mask + ~place.mask * share)
        assert torch.allclose(place.site.read(model), wanted, atol=1e-6)
        step(model, optimizer, run, i)


@pytest.mark.parametrize(
    "pattern, ramp, wanted",
    [
        ("1:16", "stepwise", [15, 8, 4, 2, 1]),
        ("2:8", "stepwise", [7, 4, 2]),
        ("1:2", "stepwise", [1]),
        ("2:4", "stepwise", [3, 2]),
        ("3:8", "stepwise", [7, 4, 3]),
    ],
)
def test_frames_step_down_to_the_pattern(pattern, ramp, wanted):
    parsed = sw.Pattern.parse(pattern)
    assert frames(parsed, ramp) == [nm(k, parsed.group.cols) for k in wanted]


def test_geometric_frames_keep_the_density():
    assert [str(p) for p in frames(nm(1, 8), "geometric")] == [str(nm(k, 8 * k)) for k in (8, 4, 2, 1)]
    with pytest.raises(PatternError, match="Only N:M"):
        frames(sw.Pattern.parse("row"))


def test_the_pattern_tightens_with_progress():
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    method = sw.method("sdgf_stepwise", pattern="1:8", train=FadePatterns(start=0.0, stop=0.8))
    run, seen = sw.Sparsifier(model, method, optimizer, steps=20), []
    for i in range(20):
        seen.append(round(run.density * 8))
        step(model, optimizer, run, i)
    assert seen == [7] * 4 + [4] * 4 + [2] * 4 + [1] * 8
    assert run.finish()["0"].density == 1 / 8


@pytest.mark.parametrize("build", [net, conv_net])
def test_the_input_gradient_of_bdwp_uses_the_mask_of_the_other_axis(build):
    model = build()
    last = len(model) - 1
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    names = set(model.state_dict())
    layers = list(model)
    run = sw.Sparsifier(model, sw.method("bdwp", pattern="2:8"), optimizer)
    assert set(model.state_dict()) == names and model[0].weight is layers[0].weight
    step(model, optimizer, run)
    place = run.sites[-1]
    x = torch.randn(5, place.shape[1], requires_grad=True)
    y = model[last](x)
    dy = torch.randn_like(y)
    y.backward(dy)
    dense = place.weight()
    forward, backward = dense * mask_of(dense, 2, 8), dense * mask_of(dense.T.contiguous(), 2, 8).T
    assert torch.allclose(y, F.linear(x, forward, model[last].bias), atol=1e-6)
    assert torch.allclose(x.grad, dy @ backward, atol=1e-6) and not torch.allclose(x.grad, dy @ forward, atol=1e-3)
    if build is conv_net:
        weight, x = run.sites[0].weight(), torch.randn(2, 8, 4, 4, requires_grad=True)
        model[0](x).sum().backward()
        across = weight.reshape(2, 8, 72).movedim(1, -1).reshape(-1, 8)
        kept = (across * mask_of(across, 2, 8)).reshape(2, 72, 8).movedim(-1, 1)
        kept = kept.reshape(16, 3, 3, 8).movedim(-1, 1)
        free = torch.randn(2, 8, 4, 4, requires_grad=True)
        F.conv2d(free, kept, None, 2, 1).sum().backward()
        assert torch.allclose(x.grad, free.grad, atol=1e-5)
    run.finish()
    assert list(model) == layers and set(model.state_dict()) == names


def test_the_weight_gradient_of_bdwp_is_dense():
    model, plain = net(), net()
    run = sw.Sparsifier(model, sw.method("bdwp", pattern="2:8"), torch.optim.SGD(model.parameters(), lr=0.1))
    with torch.no_grad():
        for site in sites(plain):
            site.write(plain, site.read(model))
    loss(model).backward()
    loss(plain).backward()
    assert torch.allclose(model[2].weight.grad, plain[2].weight.grad, atol=1e-6)
    assert not torch.allclose(model[0].weight.grad, plain[0].weight.grad, atol=1e-4)
    assert run.regime.macs(0.25) == pytest.approx(0.5) and Straight().macs(0.25) == pytest.approx(0.75)


@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")  # by torch.compile itself
def test_bdwp_is_compiled():
    model = net()
    run = sw.Sparsifier(model, sw.method("bdwp", pattern="2:8"), torch.optim.SGD(model.parameters(), lr=0.1))
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    x = torch.randn(6, 16)
    model(x).square().sum().backward()
    wanted = model[0].weight.grad.clone()
    model.zero_grad()
    compiled(x).square().sum().backward()
    assert torch.allclose(model[0].weight.grad, wanted, atol=1e-6)
    run.finish()


@pytest.mark.parametrize("layer", [nn.Conv2d(8, 8, 3, padding="same"), nn.MultiheadAttention(8, 2)])
def test_layers_without_a_twin_are_refused(layer):
    model = nn.Sequential(layer)
    with pytest.raises(ModelError, match="second mask"):
        sw.Sparsifier(model, sw.method("bdwp", pattern="2:8"), torch.optim.SGD(model.parameters(), lr=0.1))


def test_bdwp_wants_n_of_m():
    model = net()
    with pytest.raises(PatternError, match="Two masks"):
        sw.Sparsifier(model, sw.method("bdwp", pattern="row"), torch.optim.SGD(model.parameters(), lr=0.1))


def test_steps_of_ast_are_those_of_its_optimiser():
    model, plain = net(), net()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01, weight_decay=0.1, betas=(0.9, 0.95))
    method = sw.method("ast", train=AdamDecay(decay=0.02, every=2, ramp=0.5))
    run = sw.Sparsifier(model, method, optimizer, steps=8)
    weight, m, v = plain[0].weight.data, torch.zeros(32, 16), torch.zeros(32, 16)
    mask = mask_of(weight, 2, 4)
    for i in range(8):
        kept = run.sites[0].mask.clone()
        step(model, optimizer, run, i)
        assert torch.equal(kept, mask.bool())
        gradient = model[0].weight.grad
        weight.mul_(1 - 0.01 * 0.1)
        m = 0.9 * m + 0.1 * gradient
        update = m + 0.02 * min(i / 8 / 0.5, 1.0) * (1 - mask) * weight
        v = 0.95 * v + 0.05 * update**2
        root = (v / (1 - 0.95 ** (i + 1))).sqrt() + 1e-8
        weight.sub_(0.01 / (1 - 0.9 ** (i + 1)) * update / root)
        if (i + 1) % 2 == 0:
            mask = mask_of(weight, 2, 4)
        assert torch.allclose(run.sites[0].weight(), weight, atol=1e-4)


def test_ast_wants_the_moments_of_adam():
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    run = sw.Sparsifier(model, "ast", optimizer, steps=4)
    with pytest.raises(ModelError, match="use Adam"):
        step(model, optimizer, run)


def test_steps_of_cast_are_those_of_its_optimiser():
    """Algorithm 1 by hand: v of what the step is made of, also where weights are kept, and a decay that rises from step to step."""
    model, plain = net(), net()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01, betas=(0.9, 0.95))
    method = sw.method("cast", train=AdamShrink(decay=0.02, every=2, groups=0))
    run = sw.Sparsifier(model, method, optimizer, steps=8)
    weight, m, v = plain[0].weight.data, torch.zeros(32, 16), torch.zeros(32, 16)
    mask = mask_of(weight, 2, 4)
    for i in range(8):
        assert torch.equal(model[0].weight, run.sites[0].weight())  # all of W
        step(model, optimizer, run, i)
        m = 0.9 * m + 0.1 * model[0].weight.grad
        update = torch.where(mask.bool(), m, (1 - i / 8) * m + i / 8 * 0.02 * weight.sign())
        v = 0.95 * v + 0.05 * update**2
        root = (v / (1 - 0.95 ** (i + 1))).sqrt() + 1e-8
        weight.sub_(0.01 / (1 - 0.9 ** (i + 1)) * update / root)
        if (i + 1) % 2 == 0:
            mask = mask_of(weight, 2, 4)
        assert torch.allclose(run.sites[0].weight(), weight, atol=1e-4)


def test_the_first_step_of_cast_is_no_larger_for_what_its_optimiser_did_before():
    model = net()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    for i in range(200):
        optimizer.zero_grad()
        loss(model, i).backward()
        optimizer.step()
    run = sw.Sparsifier(model, sw.method("cast", train=AdamShrink(every=100, groups=0)), optimizer, steps=100)
    before = run.sites[0].weight().clone()
    step(model, optimizer, run)
    assert float((run.sites[0].weight() - before).abs().max()) <= 0.0101


def test_cast_brings_what_it_drops_to_zero_and_folds_its_scales_after_the_cut():
    model = net()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    held = [len(g["params"]) for g in optimizer.param_groups]
    run = sw.Sparsifier(model, sw.method("cast", train=AdamShrink(decay=1.0, every=1)), optimizer, steps=60)
    for i in range(60):
        optimizer.param_groups[0]["lr"] = 0.01 * max(1 - i / 50, 1e-3)
        step(model, optimizer, run, i)
    place = run.sites[0]
    scale = place.learned["scale"].detach()
    assert scale.shape == (32, 2) and (scale != 1).any()
    spread = scale.repeat_interleave(8, dim=1)
    assert torch.allclose(place.site.read(model), spread * place.weight())
    assert place.weight()[~place.mask].abs().max() < 1e-3 and place.weight()[place.mask].abs().median() > 0.02
    kept = mask_of(place.weight(), 2, 4) * spread * place.weight()
    run.finish()
    assert torch.equal(place.site.read(model), kept)
    assert [len(g["params"]) for g in optimizer.param_groups] == held


def test_cast_goes_on_from_its_state():
    """Its own second moments are part of it."""

    def after(model, optimizer, run, first):
        for i in range(first, 6):
            step(model, optimizer, run, i)
        return run.sites[0].weight()

    method = sw.method("cast", train=AdamShrink(decay=0.1, every=2))
    whole = net()
    optimizer = torch.optim.Adam(whole.parameters(), lr=0.01)
    run = sw.Sparsifier(whole, method, optimizer, steps=6)
    for i in range(3):
        step(whole, optimizer, run, i)
    model, state, moments = copy.deepcopy(whole), copy.deepcopy(run.state_dict()), copy.deepcopy(optimizer.state_dict())
    again = torch.optim.Adam(model.parameters(), lr=0.01)
    resumed = sw.Sparsifier(model, method, again, steps=6)
    again.load_state_dict(moments)
    resumed.load_state_dict(state)
    assert torch.equal(after(model, again, resumed, 3), after(whole, optimizer, run, 3))


@pytest.mark.parametrize(("pattern", "parts"), [("2:4", 2), ("2:16", 1)])
def test_the_scales_of_cast_get_the_gradient_of_the_product(pattern, parts):
    """Two a row, but where they would cut through groups of the pattern."""
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    run = sw.Sparsifier(model, sw.method("cast", pattern=pattern), optimizer, steps=4)
    scale, weight = torch.ones(32, parts, requires_grad=True), model[0].weight.detach().clone()
    g = torch.Generator().manual_seed(0)
    x = torch.randn(12, 16, generator=g)
    h = F.linear(x, scale.repeat_interleave(16 // parts, dim=1) * weight, model[0].bias.detach()).relu()
    (F.linear(h, model[2].weight.detach(), model[2].bias.detach()) - x[:, :8].sin()).square().mean().backward()
    loss(model).backward()
    run.regime.before(run)
    assert torch.allclose(run.sites[0].learned["scale"].grad, scale.grad, atol=1e-6)


def test_a_branch_adds_what_was_dropped_on_average():
    model = net()
    before = copy.deepcopy(model)
    supports = sw.prune(copy.deepcopy(model), "magnitude", progress=False).supports
    assert add_branches(model, supports, pool=8) == ["0", "2"]
    layer = model[0]
    assert isinstance(layer, PooledLinear) and layer.weight.shape == (32, 16)
    dropped = before[0].weight * ~supports["0"].mask()
    assert torch.allclose(layer.branch, dropped.reshape(32, 2, 8).mean(2))
    x = torch.randn(3, 16)
    wanted = before[0](x) + F.linear(x, layer.branch.repeat_interleave(8, dim=1))
    assert torch.allclose(layer(x), wanted, atol=1e-5)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    run = sw.Sparsifier(model, "ast", optimizer, steps=4)
    for i in range(4):
        step(model, optimizer, run, i)
    run.finish()
    assert layer.branch.grad is not None and run.density == 0.5
    with pytest.raises(PatternError, match="pooled by 5"):
        add_branches(before, supports, pool=5)
    with pytest.raises(ModelError, match="has a support"):
        add_branches(before, {})


def test_annealed_gradients_of_dropped_weights():
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    run = sw.Sparsifier(model, sw.method("autosparse_topk", schedule=Constant(0.25)), optimizer, steps=8)
    place = run.sites[0]
    before, mask = place.weight().clone(), place.mask.clone()
    optimizer.zero_grad()
    loss(model).backward()
    gradient = model[0].weight.grad.clone()
    optimizer.step()
    moved = before - place.weight()
    assert torch.allclose(moved, gradient * (mask + 0.25 * ~mask), atol=1e-6)


def test_regimes_are_what_the_registry_names():
    assert isinstance(sw.method("bdwp").train, Bidirectional) and sw.method("bdwp").pattern == nm(2, 8)
