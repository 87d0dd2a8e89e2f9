from __future__ import annotations

import math
from itertools import product

import pytest
import torch

import sparseworks as sw
from sparseworks.codes.prosper import em
from sparseworks.codes.prosper.em import _EM, MODELS, prosper
from sparseworks.codes.prosper.states import StateTable
from sparseworks.codes.prosper.superposition import Expectation
from sparseworks.core.errors import BudgetError, NonFiniteError, ShapeError, UnknownNameError


def bars(size=5, width=1, value=10.0):
    """Horizontal and vertical bars, one atom a row."""
    places = size - width + 1
    atoms = torch.zeros(2 * places, size, size, dtype=torch.float64)
    for i in range(places):
        atoms[i, i : i + width, :] = value
        atoms[places + i, :, i : i + width] = value
    return atoms.flatten(1)


def drawn(atoms, rule, rows, seed, noise, values=(1.0,), share=0.2):
    g = torch.Generator().manual_seed(seed)
    on = torch.rand(rows, len(atoms), generator=g) < share
    which = torch.tensor(values, dtype=torch.float64)[torch.randint(0, len(values), on.shape, generator=g)]
    s = on * which
    mean = (s.unsqueeze(2) * atoms).amax(1) if rule == "max" else s @ atoms
    return mean + noise * torch.randn(mean.shape, generator=g, dtype=torch.float64)


def found(fit, atoms):
    """How many true atoms are learnt to a tenth of a bar's brightness."""
    return int(((fit.atoms - atoms.unsqueeze(1)).abs().mean(2).amin(1) < 1.0).sum())


def alike(fit, atoms):
    unit = lambda w: w / w.norm(dim=1, keepdim=True)  # noqa: E731
    return int(((unit(atoms) @ unit(fit.atoms).mT).abs().amax(1) > 0.95).sum())


def test_all_bars_are_found_in_most_runs_and_none_if_a_signal_has_one_unit_only():
    atoms = bars()
    learn = lambda seed, **o: sw.method("prosper", steps=40, candidates=6, **o)(  # noqa: E731
        drawn(atoms, "sum", 300, seed, 2.0), 10, seed=seed
    )
    runs = [found(learn(seed), atoms) for seed in range(4)]
    assert sum(r == 10 for r in runs) >= 3, runs
    assert found(learn(0, most=1), atoms) <= 2


def test_bars_that_hide_each_other_need_the_maximum():
    atoms = bars(6, 2)
    seen = {}
    for model, heat in (("mca", 4.0), ("bsc", 2.0)):
        seen[model] = [
            found(
                prosper(
                    drawn(atoms, "max", 300, seed, 1.0),
                    10,
                    model,
                    seed=seed,
                    temperature=heat,
                    steps=40,
                    candidates=6,
                    most=3,
                ),
                atoms,
            )
            for seed in range(2)
        ]
    assert sum(seen["mca"]) >= sum(seen["bsc"]) + 8, seen


@pytest.mark.parametrize(("model", "values", "noise"), [("tsc", (-1.0, 1.0), 1.0), ("gsc", None, 0.5)])
def test_signed_and_gaussian_units_are_found(model, values, noise):
    atoms = bars()
    if values is None:
        g = torch.Generator().manual_seed(2)
        s = (torch.rand(300, 10, generator=g) < 0.2) * torch.randn(300, 10, generator=g)
        y = s.double() @ atoms + noise * torch.randn(300, 25, generator=g, dtype=torch.float64)
    else:
        y = drawn(atoms, "sum", 300, 52, noise, values)
    fit = prosper(y, 10, model, seed=2, steps=40, candidates=6, most=3)
    assert alike(fit, atoms) >= 8
    assert fit.noise < 2 * noise and float(fit.share.sum()) == pytest.approx(0.2, abs=0.06)


@pytest.mark.parametrize("model", sorted(MODELS))
def test_the_posterior_without_truncation_is_the_exact_one(model):
    """With all units as candidates and any number of entries, the states are every code there is."""
    g = torch.Generator().manual_seed(0)
    rule, values = MODELS[model]
    values = values[-2:]
    atoms = torch.rand(3, 4, generator=g, dtype=torch.float64) + 0.1
    y = torch.randn(2, 4, generator=g, dtype=torch.float64) + 1
    states = StateTable.of(values, 3, 3, y)
    share = torch.full((len(values),), 0.2, dtype=torch.float64)
    noise = torch.tensor(0.5, dtype=torch.float64)
    e = Expectation(y, atoms, noise, torch.arange(3).expand(2, 3), states, 60.0)
    joint = (rule.likelihood(e) + states.log_prior(share, 3)).logsumexp(1)
    expected = []
    for code in product((0.0, *values), repeat=3):
        s = torch.tensor(code, dtype=torch.float64)
        prior = (s != 0).sum() * (share[0] / (1 - share.sum())).log()
        if model == "gsc":
            cov = noise * torch.eye(4, dtype=torch.float64) + (atoms * s.square().unsqueeze(1)).mT @ atoms
            likelihood = torch.distributions.MultivariateNormal(torch.zeros(4, dtype=torch.float64), cov).log_prob(y)
            likelihood = likelihood + 2 * noise.log() + 2 * torch.log(torch.tensor(2 * torch.pi))
        else:
            parts = s.unsqueeze(1) * atoms
            mean = parts.amax(0) if model in ("mca", "mmca") else parts.sum(0)
            likelihood = -(y - mean).square().sum(1) / (2 * noise)
        expected.append(likelihood + prior)
    assert torch.allclose(joint, torch.stack(expected).logsumexp(0), atol=0.1 if model in ("mca", "mmca") else 1e-8)


@pytest.mark.parametrize(("model", "annealed"), [("bsc", False), ("tsc", False), ("mca", True), ("gsc", True)])
def test_heat_leaves_the_prior_of_sums_alone(model, annealed):
    y = drawn(bars(), "sum", 20, 0, 2.0)
    rule, values = MODELS[model]
    run = _EM(rule, y, 10, values, 5, 3, 0.1, 0)
    prior, before = run.states.log_prior(run.chance, 10), run.noise
    atoms = rule.bounded(run.atoms)
    run.step(3.0, 0.0)
    e = Expectation(y, atoms, before, run.chosen, run.states, 1 / (1 - 1 / 3.0))
    expected = (rule.likelihood(e) / 3 + (prior / 3 if annealed else prior)).softmax(1)
    assert torch.allclose(run.posterior, expected)


def test_signals_are_left_out_more_and_more_until_two_thirds_of_the_steps(monkeypatch):
    seen = []
    monkeypatch.setattr(em, "_kept", lambda mass, inside, cut: seen.append(cut) or torch.ones_like(mass).bool())
    prosper(drawn(bars(), "sum", 30, 0, 2.0), 10, steps=9, candidates=5, most=2)
    assert seen == pytest.approx([0, 1 / 6, 1 / 3, 1 / 2, 2 / 3, 5 / 6, 1, 1, 1])
    prosper(drawn(bars(), "sum", 30, 0, 2.0), 10, "gsc", steps=2, candidates=4, most=2)
    assert seen[9:] == [0, 0]


def test_units_are_preselected_at_their_best_value():
    """A unit whose atom is half as long fits at the value 2; by its cosine it would be no better than the other."""
    rule, values = MODELS["dsc"]
    y = torch.tensor([[4.0, 0.0]], dtype=torch.float64)
    atoms = torch.tensor([[2.0, 0.0], [9.0, 0.0], [0.0, 1.0]], dtype=torch.float64)
    odds = torch.zeros(len(values), dtype=torch.float64)
    affinity = rule.affinity(y, atoms, torch.tensor(1.0), torch.tensor(values, dtype=torch.float64), odds)[0]
    assert affinity.argsort(descending=True).tolist() == [0, 2, 1]
    assert float(affinity[0]) == pytest.approx(8.0)  # ||y||^2 / 2 and no error


def test_no_unit_of_mmca_counts_for_more_than_its_state():
    """Two units of opposite sign nearly cancel: the derivative of their mean has no bound, what they weigh has."""
    y = torch.tensor([[1.0, -1.0]], dtype=torch.float64)
    rule, values = MODELS["mmca"]
    states = StateTable.of(values, 2, 2, y)
    atoms = torch.tensor([[1.0, 1.0], [-0.999, 0.5]], dtype=torch.float64)
    e = Expectation(y, atoms, torch.tensor(1.0, dtype=torch.float64), torch.arange(2)[None], states, 6.0)
    posterior = torch.tensor([[0.0, 0.0, 0.0, 1.0]], dtype=torch.float64)
    new, _ = rule.update(e, posterior)
    way = 1 - math.exp(-1 / 2.5)
    assert float(new[0, 0]) == pytest.approx(way * 1.0 + (1 - way) * 1.0) and float(new[1, 0]) == pytest.approx(
        way * 1.0 + (1 - way) * -0.999
    )


def test_likelihood_rises_without_heat():
    fit = prosper(drawn(bars(), "sum", 200, 0, 2.0), 10, temperature=1.0, steps=12, candidates=10, most=3)
    assert all(b > a - 0.2 for a, b in zip(fit.likelihood[:8], fit.likelihood[1:8], strict=False))
    assert fit.likelihood[7] > fit.likelihood[0] + 1


def test_state_tables_count():
    table = StateTable.of((-1.0, 1.0), 4, 3, torch.zeros(1))
    assert len(table.table) == 6 * 4 + 4 * 8 and len(table.table.unique(dim=0)) == len(table.table)
    assert torch.equal(table.counts.sum(1), (table.table != 0).sum(1).float())


def test_bad_operands_are_refused():
    y = torch.rand(5, 4)
    with pytest.raises(ShapeError):
        prosper(y[0], 3)
    with pytest.raises(NonFiniteError):
        prosper(y * torch.nan, 3, candidates=3, most=2)
    with pytest.raises(UnknownNameError):
        prosper(y, 3, "ica", candidates=3, most=2)
    with pytest.raises(BudgetError):
        prosper(y, 3)
    with pytest.raises(BudgetError):
        prosper(y, 3, "mca", values=(2.0,), candidates=3, most=2)
    with pytest.raises(BudgetError):
        StateTable.of((1.0,), 40, 20, y)
