"""The methods of pursuits where each is said to work: beside the baseline that it is said to beat."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from sklearn.datasets import load_sample_image

import sparseworks as sw
from sparseworks.codes.dictionary import learn_dictionary, recovery_error
from sparseworks.codes.method import CodeMethod
from sparseworks.core.budget import Count, Residual
from sparseworks.core.recipe import Recipe
from sparseworks.solve.coder import Solution
from sparseworks.solve.coders import OMP, Thresholding
from sparseworks.solve.penalties import CEL0, L0, L1, Half

OURS = [
    "omp",
    "mp",
    "gradient_pursuit",
    "cosamp",
    "iht",
    "htp",
    "nst_ht_fb",
    "splicing",
    "l0_coding",
    "cel0_coding",
    "half_coding",
]


def sensed(s: int, m: int = 200, n: int = 400, signals: int = 20) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Gaussian atoms, Gaussian codes with s entries, and their signals."""
    draw = torch.Generator().manual_seed(1)
    d = torch.randn(n, m, generator=draw, dtype=torch.float64) / m**0.5
    at = torch.rand(signals, n, generator=draw).argsort(1)[:, :s]
    z = torch.zeros(signals, n, dtype=torch.float64)
    z.scatter_(1, at, torch.randn(signals, s, generator=draw, dtype=torch.float64))
    return d, z, z @ d


def found(method: str, s: int, **options: Any) -> tuple[int, torch.Tensor]:
    """How many of twenty codes come back exactly, and the steps."""
    d, z, y = sensed(s)
    solution = sw.code(y, d, method, **options)
    return int(((solution.z - z).norm(dim=1) <= 1e-4 * z.norm(dim=1)).sum()), solution.steps


def test_null_space_tuning_recovers_where_omp_and_iht_fail():
    ours, theirs, plain = (
        found("nst_ht_fb", 70, budget=Count(70))[0],
        found("omp", 70, budget=Count(70))[0],
        found("iht", 70, budget=Count(70), normalised=False)[0],
    )
    assert ours >= 16 and theirs <= 8 and plain <= 4, (ours, theirs, plain)


def test_null_space_tuning_takes_few_steps_where_both_recover():
    ours, steps = found("nst_ht_fb", 40, budget=Count(40))
    theirs, slow = found("iht", 40, budget=Count(40), normalised=False, rounds=2000)
    assert ours == 20 and theirs >= 12 and int(steps.max()) * 10 < int(slow.min())


def test_a_growing_support_needs_no_sparsity_and_goes_further():
    grown = found("nst_ht_fb", 85, budget=Residual(0.0), growth=6)[0]
    fixed = found("nst_ht_fb", 85, budget=Count(85))[0]
    assert grown >= 17 and grown >= fixed + 5, (grown, fixed)


@pytest.mark.parametrize("name", OURS)
def test_every_method_is_found_by_name_and_written_into_recipes(name):
    method = CodeMethod.of(name)
    assert method.when and method.when_not and method.claims
    recipe = Recipe.of(method, kind=CodeMethod)
    assert Recipe.from_yaml(recipe.to_yaml()) == recipe
    d, _, y = sensed(3, m=40, n=60)
    options = {"budget": Count(3)} if hasattr(method.coder, "budget") else {}
    solution = sw.code(y, d, name, **options)
    assert float((y - solution.z @ d).norm() / y.norm()) < 0.7
    assert solution.codes().nnz < 30 * len(y)


def patches(count: int) -> torch.Tensor:
    """Whitened 8 x 8 patches of a photograph, of norm 1 on average."""
    image = torch.from_numpy(load_sample_image("china.jpg").mean(2)).float()
    draw = torch.Generator().manual_seed(0)
    corners = (torch.randint(n - 8, (count,), generator=draw).tolist() for n in image.shape)
    x = torch.stack([image[i : i + 8, j : j + 8].flatten() for i, j in zip(*corners, strict=True)])
    x = x - x.mean(1, keepdim=True)
    values, vectors = torch.linalg.eigh(x.T @ x / count)
    x = x @ (vectors * (values + 0.05 * values.mean()).rsqrt()) @ vectors.T
    return x / x.norm(dim=1).mean()


def at_mean_count(
    coder: Thresholding, d: torch.Tensor, y: torch.Tensor, wanted: float
) -> tuple[Thresholding, Solution]:
    """The coder with the weight that gives so many entries on average, by bisection; and its codes."""
    low, high = 1e-3, 1.0
    for _ in range(8):
        weight = (low * high) ** 0.5
        tried = replace(coder, penalty=replace(coder.penalty, weight=weight))  # type: ignore[type-var]
        solution = tried(d, y)
        low, high = (weight, high) if solution.codes().nnz / len(y) > wanted else (low, weight)
    return tried, solution


def learnt_error(coder: Thresholding) -> float:
    """Relative error on other patches at 8 entries a patch, with a dictionary learnt by this coder."""
    train, test = patches(600).split([500, 100])
    d = learn_dictionary(train, 128, coder, epochs=0).dictionary
    coder, _ = at_mean_count(coder, d, train[:60], 8)
    d = learn_dictionary(train, 128, coder, start=d, epochs=4, batch=100, rate=7e-3).dictionary
    _, found = at_mean_count(coder, d, test, 8)
    assert abs(found.codes().nnz / len(test) - 8) < 0.6
    return float((test - found.z @ d).norm() / test.norm())


def test_thresholds_near_l0_represent_photographs_better_than_the_soft_one():
    coder = Thresholding(rounds=25, tolerance=1e-3)
    errors = {type(p): learnt_error(replace(coder, penalty=p)) for p in (L1(), L0(), CEL0(), Half())}
    for near in (L0, CEL0, Half):
        assert errors[near] < 0.85 * errors[L1], errors


def noisy(atoms: int, features: int, k: int, signals: int, size: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Unit atoms, and signals of k of them with Gaussian weights of that size and noise of norm 1."""
    draw = torch.Generator().manual_seed(0)
    d = torch.nn.functional.normalize(torch.randn(atoms, features, generator=draw), dim=1)
    at = torch.rand(signals, atoms, generator=draw).argsort(1)[:, :k]
    z = torch.zeros(signals, atoms).scatter(1, at, torch.randn(signals, k, generator=draw))
    return d, size * z @ d + torch.randn(signals, features, generator=draw) / features**0.5


@pytest.mark.parametrize(
    ("size", "signal", "winner", "share"),
    [(450, 1.0, "masked", 0.9), (60, 1.0, "plain", 0.7), (450, 4.0, "plain", 0.7)],
    ids=["noise and too many atoms", "the true number of atoms", "hardly any noise"],
)
def test_hidden_coordinates_help_where_noise_meets_too_many_atoms_and_only_there(size, signal, winner, share):
    d, y = noisy(60, 40, 3, 1000, signal)
    learn = sw.method("masked_coding", coder=OMP(Count(3)), epochs=40, rate=5e-3)
    error = {loss: recovery_error(d, learn(y, size, loss=loss).dictionary) for loss in ("masked", "plain")}
    loser = "plain" if winner == "masked" else "masked"
    assert error[winner] < share * error[loser], error
