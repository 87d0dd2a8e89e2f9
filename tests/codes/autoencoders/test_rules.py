"""Rules, prefixes and auxiliaries beside their formulas."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import sparseworks as sw
from sparseworks.codes.autoencoders import Schedule, SparseAutoencoder, Trainer, geometric_median
from sparseworks.codes.autoencoders.auxiliary import AuxK, AuxZipf, PreAct
from sparseworks.codes.autoencoders.latent import Moment
from sparseworks.codes.autoencoders.module import WORTH
from sparseworks.codes.autoencoders.rules.feature_choice import shares, zipf
from sparseworks.codes.autoencoders.rules.pursuit import merged
from sparseworks.codes.autoencoders.stream import Batch
from sparseworks.core.ahead import running_ahead
from sparseworks.core.codes import Codes
from sparseworks.core.errors import BudgetError, CalibrationError, RecipeError

D, WIDTH = 6, 20


def _built(name, **options):
    sae = SparseAutoencoder(sw.method(name, **options), D, WIDTH, seed=3).double()
    return sae, torch.randn(9, D, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def test_k_comes_down_in_a_straight_line_over_the_first_half():
    sae, x = _built("k_sparse_ae", k=4, start=12)
    kept = [sae.coded(x, Moment(p)).codes.values.shape[1] for p in (0.0, 0.25, 0.4999, 0.5, 1.0)]
    assert kept == [12, 8, 4, 4, 4]
    assert sae.encode(x).values.shape[1] == 4


def test_batch_choice_is_the_best_of_the_matrix_and_rows_differ():
    sae, x = _built("batch_topk_sae", k=3)
    sae.train()
    x[0] *= 10
    codes = sae.encode(x)
    pre = (x @ sae.W_enc + sae.b_enc).relu()
    assert torch.equal(codes.dense() > 0, pre >= pre.flatten().sort(descending=True).values[26])
    assert codes.lengths is not None and int(codes.lengths[0]) > 3


def test_pseudo_gradients_of_thresholds_are_the_papers():
    sae, x = _built("jumprelu_sae", l0=None, threshold=0.5 / D**0.5, bandwidth=0.4 / D**0.5, weight=1.0, to_input=0.25)
    sae.train()
    pre = (x @ sae.W_enc).detach()
    coded = sae.coded(x)
    weight = torch.randn(WIDTH, dtype=torch.float64)
    near = ((pre - 0.5).abs() <= 0.2).double()
    (coded.codes.dense() @ weight).sum().backward(retain_graph=True)
    # d/dlog(theta) = theta d/dtheta
    assert torch.allclose(sae.log_threshold.grad, 0.5 * (-0.5 / 0.4 * near * weight).sum(0))
    # pre-activations get a quarter of it, the other way round, beside their own
    assert torch.allclose(sae.b_enc.grad, (((pre > 0.5) + 0.25 * 0.5 / 0.4 * near) * weight).sum(0))
    sae.log_threshold.grad = sae.b_enc.grad = None
    coded.penalty.backward()
    assert torch.allclose(sae.log_threshold.grad, 0.5 * (-1 / 0.4 * near).sum(0) / 9)
    assert torch.allclose(sae.b_enc.grad, 0.25 / 0.4 * near.sum(0) / 9)
    alone, _ = _built("jumprelu_sae", l0=None, threshold=0.5 / D**0.5, bandwidth=0.4 / D**0.5, to_input=0.0)
    alone.train().coded(x).penalty.backward()
    assert not alone.b_enc.grad.any()
    assert coded.penalty.item() == pytest.approx(float((pre > 0.5).sum() / 9))
    assert coded.l0().item() == pytest.approx(coded.penalty.item())


def test_the_weight_of_thresholds_follows_what_an_entry_at_its_threshold_is_worth():
    """At that weight pseudo-gradients, summed over all thresholds, are nothing: they move apart, not together."""
    sae, x = _built("jumprelu_sae", l0=4.0, threshold=0.5 / D**0.5, bandwidth=0.4 / D**0.5)
    sae.train()
    losses = sae.loss(Batch(x), Moment())
    total, count = losses.worth.tolist()
    near = ((x @ sae.W_enc).detach() - 0.5).abs() <= 0.2
    worth = 2 * 0.5 * (losses.residual @ sae.W_dec.T.detach())[near].sum()
    assert count == int(near.sum()) > 0 and total == pytest.approx(float(worth))
    before = sae.pressure.item()
    sae.note(9, losses.coded.codes.counts(losses.coded.on).double(), above=losses.coded.above, worth=losses.worth)
    assert sae.pressure.item() == pytest.approx(before + WORTH * (max(total / count, 0.0) - before))
    sae.pressure.fill_(total / count)
    sae.level.zero_()
    sae.loss(Batch(x), Moment()).total.backward()
    grad = sae.log_threshold.grad
    assert abs(float(grad.sum())) < 1e-10 * float(grad.abs().sum()) > 0


def test_encoders_begin_as_long_as_their_authors():
    for name, norm in (("batch_topk_sae", (2 * D / WIDTH) ** 0.5), ("jumprelu_sae", 1.0), ("gated_sae", 1.0)):
        sae = SparseAutoencoder(sw.method(name), D, WIDTH, seed=3)
        sae.prepare(Batch(torch.randn(64, D)))
        assert torch.allclose(sae.encoder.norm(dim=1), torch.full((WIDTH,), norm)), name


def test_each_step_of_pursuit_lowers_the_squared_residual_by_its_square():
    sae, x = _built("mp_sae", k=1)
    left = x.square().sum(1)
    for k in range(1, 6):
        new = (x - sae.at(k=k)(x)).square().sum(1)
        values, _ = ((x - sae.at(k=k - 1)(x) if k > 1 else x) @ sae.W_dec.T).relu().max(1)
        assert torch.allclose(left - new, values.square())
        left = new
    stopped = sae.at(k=50, residual=0.5).encode(x)
    rebuilt = sae.decode(stopped)
    assert bool(((x - rebuilt).norm(dim=1) <= 0.5 * x.norm(dim=1)).all()) and stopped.values.shape[1] < 20


def test_a_token_ends_where_an_atom_comes_again_or_little_is_left():
    sae, x = _built("mp_sae", k=1)
    every = [sae.at(k=k).encode(x).dense() for k in range(1, 21)]
    once, kept = sae.at(k=20, again=False).encode(x).dense(), []
    for row in range(len(x)):  # the first step that left the support as it was is still taken
        supports = [tuple(z[row].nonzero().flatten().tolist()) for z in every]
        last = next((i for i in range(1, 20) if supports[i] == supports[i - 1]), 19)
        assert torch.allclose(once[row], every[last][row], atol=1e-6)
        kept.append(last)
    assert min(kept) < 19
    raw = sae.at(k=60, tau=0.4)
    raw.scale.fill_(2.0)  # tau is of raw activations, x of scaled ones
    left = (x - raw.rule(raw, x, Moment()).codes.dense() @ sae.W_dec).norm(dim=1).detach()
    assert float(left.max()) <= 0.8 and float(left.mean()) > 0.4


@pytest.mark.parametrize(
    ("name", "options", "error"),
    [
        ("mp_sae", {"tau": -1.0}, BudgetError),
        ("mp_sae", {"residual": float("nan")}, BudgetError),
        ("jumprelu_sae", {"to_input": 1.5}, RecipeError),
        ("jumprelu_sae", {"bandwidth": 0.0}, RecipeError),
    ],
)
def test_settings_that_mean_nothing_are_refused(name, options, error):
    with pytest.raises(error, match="got"):
        sw.method(name, **options)


@given(st.lists(st.tuples(st.integers(0, 4), st.integers(-2, 3)), min_size=1, max_size=8), st.randoms())
@settings(max_examples=40, deadline=None)
def test_merging_adds_up_what_comes_again(pairs, random):
    rows = [pairs, random.sample(pairs, len(pairs))]
    values = torch.tensor([[float(v) for _, v in row] for row in rows])
    indices = torch.tensor([[i for i, _ in row] for row in rows])
    dense = torch.zeros(2, 5).scatter_add(1, indices, values)
    assert torch.equal(merged(values, indices, 5).dense(), dense)


@given(st.lists(st.floats(1e-3, 1), min_size=1, max_size=12), st.integers(1, 9), st.data())
@settings(max_examples=60, deadline=None)
def test_quotas_sum_to_the_budget_and_fit(weights, most, data):
    total = data.draw(st.integers(0, most * len(weights)))
    counts = shares(torch.tensor(weights, dtype=torch.float64), total, most)
    assert int(counts.sum()) == total and int(counts.min()) >= (1 if total >= len(weights) else 0)
    assert int(counts.max()) <= most


def test_zipf_follows_the_ranks():
    law = zipf(torch.tensor([0.1, 0.5, 0.2]), 1.0, 1.0)
    assert torch.allclose(law, torch.tensor([1 / 3, 1.0, 1 / 2], dtype=torch.float64) / (11 / 6))


def test_gradients_turn_the_choice_but_not_the_values():
    sae, x = _built("g_sae", k=2, beta=100.0)
    plain = sae.encode(x)
    g = torch.randn(9, D, generator=torch.Generator().manual_seed(8), dtype=torch.float64)
    led = sae.coded(x, Moment(0.0, g)).codes
    pre = (x @ sae.W_enc).relu()
    effect = pre * (1 + 100 * (g / g.norm(dim=1).mean() @ sae.W_dec.T).abs())
    assert torch.equal(led.dense() > 0, torch.zeros_like(pre).scatter(1, effect.topk(2).indices, 1.0) > 0)
    assert torch.allclose(led.values, pre.gather(1, led.indices))
    assert not torch.equal(led.dense() > 0, plain.dense() > 0)


@pytest.mark.parametrize(
    ("name", "every"),
    [("hierarchical_topk", 1), ("hierarchical_topk", 4), ("hierarchical_topk", 0), ("matryoshka_sae", 1)],
)
def test_losses_of_prefixes_are_means_over_truncated_codes(name, every):
    sae, x = _built(name, k=6)
    sae.train()
    codes, prefixes = sae.encode(x), sae.method.prefixes
    z, expected = codes.dense(), []
    if name == "hierarchical_topk":
        assert prefixes.budgets(4) == [1, 2, 3, 4] and replace(prefixes, every=2).budgets(5) == [2, 4, 5]
        assert replace(prefixes, every=0).budgets(6) == [1, 2, 4, 6] and replace(prefixes, every=0).budgets(8) == [
            1,
            2,
            4,
            8,
        ]
        prefixes = replace(prefixes, every=every)
        for k in prefixes.budgets(6):
            expected.append(z * (z >= z.topk(k).values[:, -1:]))
    else:
        for end in (0, 1, 2, 5, 10, 20):
            expected.append(z * (torch.arange(WIDTH) < end))
    losses = [(x - e @ sae.W_dec - sae.b_dec).square().mean() for e in expected]
    assert torch.allclose(prefixes(sae, codes, x), torch.stack(losses).mean())
    learned = [sae.W_dec, sae.b_dec, sae.encoder_weight, sae.b_enc]
    ours = torch.autograd.grad(3 * prefixes(sae, codes, x), learned, retain_graph=True)
    for a, b in zip(ours, torch.autograd.grad(3 * torch.stack(losses).mean(), learned), strict=True):
        assert torch.allclose(a, b)


def test_auxiliary_losses_look_at_the_dead_and_the_dying():
    sae, x = _built("topk_sae", k=2)
    assert AuxK(after=5)(sae, x, x) is None
    sae.silent[[3, 7]] = 5
    loss = AuxK(after=5, weight=0.5, relu=True)
    pi, about = x @ sae.W_enc[:, [3, 7]], (x - x.mean(0)).square().mean()
    e = pi.relu() @ sae.W_dec[[3, 7]]
    assert torch.allclose(loss(sae, x, x), 0.5 * (x - e).square().mean())  # the error is all that there is
    sae.wanted = 3 * x  # the main error is a share of the target's variance, this one a share of the error's
    assert torch.allclose(loss(sae, x, x), 9 * 0.5 * (x - e).square().mean())
    sae.wanted = None
    assert torch.allclose(loss(sae, x, x + 9), 0.5 * (x + 9 - e).square().mean())
    assert not torch.allclose((x + 9).square().mean(), about)
    assert torch.allclose(replace(loss, normalised=False)(sae, x, 2 * x), 0.5 * (2 * x - e).square().mean())
    signed = pi @ sae.W_dec[[3, 7]]
    assert torch.allclose(AuxK(after=5, weight=0.5)(sae, x, x), 0.5 * (x - signed).square().mean())
    sae.density.copy_(torch.arange(20, 0, -1.0))
    sae.batches.fill_(1)
    assert AuxZipf(exponent=1e-9, share=0.01)(sae, x, x) is None
    sae.density[4] = 0
    dying = AuxZipf(exponent=1e-9, share=0.01, weight=1.0)(sae, x, x)
    one = (x @ sae.W_enc[:, [4]]) @ sae.W_dec[[4]]
    assert torch.allclose(dying, (x - one).square().mean())


def test_jumprelu_begins_at_its_l0():
    x = torch.randn(400, D, generator=torch.Generator().manual_seed(0))
    sae = Trainer(sw.method("jumprelu_sae", l0=2.0), Batch(x), WIDTH, Schedule(1)).model.eval()
    theta = sae.log_threshold.exp().unique()
    assert sae.coded(x * sae.scale, Moment(0.0)).codes.counts().sum() == 799  # but for the entry that the threshold is
    assert len(theta) == 1 and float(sae.pressure) == pytest.approx(float(theta.detach().square()))


@pytest.mark.parametrize("ahead", [False, True])
def test_thresholds_of_dead_latents_and_what_they_stand_above_pull_at_each_other(ahead):
    sae, x = _built("jumprelu_sae", l0=None, threshold=0.5 / D**0.5)
    loss = PreAct(weight=0.5, after=5)
    assert loss(sae, x, x) is None
    sae.silent[[3, 7]] = 5
    with torch.no_grad():
        sae.log_threshold += torch.linspace(0, 1, WIDTH)
        sae.b_enc.copy_(torch.linspace(-1, 1, WIDTH))
    below = (sae.log_threshold.exp() - x @ sae.W_enc - sae.b_enc)[:, [3, 7]].relu()
    with running_ahead(ahead):
        found = loss(sae, x, x)
    assert torch.allclose(found, 0.5 * below.sum(1).mean())
    theta, encoder = torch.autograd.grad(found, [sae.log_threshold, sae.encoder_weight])
    assert theta[[3, 7]].min() > 0 and theta.count_nonzero() == 2 and encoder.any(1).nonzero()[:, 0].tolist() == [3, 7]
    with pytest.raises(RecipeError, match="TopK"):
        loss(*_built("topk_sae", k=2), x)


def test_a_k_sparse_autoencoder_is_linear_with_one_free_matrix_and_takes_nothing_from_its_input():
    sae, x = _built("k_sparse_ae", k=12, start=None)
    with torch.no_grad():
        sae.b_dec.fill_(7.0)
        sae.b_enc.copy_(torch.linspace(-1, 1, WIDTH))
    pi = x @ sae.W_dec.T + sae.b_enc
    codes = sae.encode(x)
    assert torch.allclose(codes.dense(), pi * (pi >= pi.topk(12).values[:, -1:]))
    assert bool((codes.values < 0).any()) and sorted(n for n, _ in sae.named_parameters()) == [
        "W_dec",
        "b_dec",
        "b_enc",
    ]
    with torch.no_grad():
        sae.W_dec.mul_(2)
    sae.constrain()
    assert torch.allclose(sae.W_dec.norm(dim=1), torch.full((WIDTH,), 2.0, dtype=torch.float64))


def test_adam_is_that_of_the_method_unless_another_is_asked_for():
    x = Batch(torch.randn(32, D))
    for name, betas, eps in (
        ("topk_sae", (0.9, 0.999), 6.25e-10),
        ("gated_sae", (0.0, 0.999), 1e-8),
        ("batch_topk_sae", (0.9, 0.99), 1e-8),
    ):
        group = Trainer(sw.method(name), x, 40, Schedule(5)).optimiser.adam.param_groups[0]
        assert (group["betas"], group["eps"]) == (betas, eps), name
    own = Trainer(sw.method("jumprelu_sae"), x, 40, Schedule(5, betas=(0.5, 0.9), eps=1e-3)).optimiser.adam
    assert own.param_groups[0]["betas"] == (0.5, 0.9) and own.param_groups[0]["eps"] == 1e-3


def test_a_weight_that_is_asked_for_rises_over_the_first_steps():
    sae, x = _built("jumprelu_sae", l0=None, threshold=0.5 / D**0.5, weight=1.0, warmup=0.1)
    sae.train()
    whole = sae.coded(x).penalty.item()
    assert not sae.rule.steady and sw.method("jumprelu_sae").latents.steady
    for progress, share in ((0.0, 0.0), (0.05, 0.5), (0.1, 1.0), (0.7, 1.0)):
        assert sae.coded(x, Moment(progress)).penalty.item() == pytest.approx(share * whole)


def test_the_median_is_that_of_weiszfeld_and_withstands_outliers():
    g = torch.Generator().manual_seed(0)
    x = torch.randn(400, 3, generator=g).double()
    x[:40] += 1000
    middle = geometric_median(x)
    gradient = ((middle - x) / (middle - x).norm(dim=1, keepdim=True)).sum(0)
    assert float(gradient.norm()) < 0.05 and float(middle.norm()) < 1
    with pytest.raises(CalibrationError):
        geometric_median(x[:0])


def test_running_thresholds_serve_until_they_are_calibrated():
    sae = sw.train_autoencoder(
        torch.randn(512, D), sw.method("batch_topk_sae", k=3), width=WIDTH, steps=200, batch=64, lr=1e-3
    )
    x = torch.randn(512, D)
    running, exact = sae.encode(x).nnz / 512, sae.export(iter([Batch(x)])).encode(x).nnz / 512
    assert exact == 3 and 2.2 < running < 3.8
    with pytest.raises(CalibrationError):
        sae.export(iter([]))


def test_options_of_parts_are_reached_by_name_and_recipes_round_trip():
    method = sw.method("matryoshka_sae", k=5, after=7, shares=(0.5, 1.0))
    assert method.latents.k == 5 and method.auxiliary.after == 7 and method.prefixes.shares == (0.5, 1.0)
    assert type(method).from_config(method.to_config()) == method
    for bad in ({"k": 0}, {"shares": (0.5,)}, {"shares": (1.0, 0.5)}):
        with pytest.raises(BudgetError):
            sw.method("matryoshka_sae", **bad)
    with pytest.raises(BudgetError):
        sw.method("feature_choice", quotas="normal")


def test_codes_that_beyond_their_rows_hold_nothing_decode_and_differentiate():
    sae, x = _built("relu_sae")
    codes = sae.encode(x)
    assert isinstance(codes, Codes) and codes.lengths is not None
    assert torch.allclose(codes.dense(), (x @ sae.W_enc).relu())
    sae.decode(codes).square().sum().backward()
    dense = SparseAutoencoder(sae.method, D, WIDTH, seed=3).double()
    ((x @ dense.W_enc).relu() @ dense.W_dec).square().sum().backward()
    for name in ("W_dec", "encoder_weight"):
        assert torch.allclose(getattr(sae, name).grad, getattr(dense, name).grad), name
