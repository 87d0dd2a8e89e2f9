"""Pieces of the benchmarks on CIFAR-10 that need no data."""

from __future__ import annotations

import importlib
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

import sparseworks as sw


@pytest.fixture
def script(monkeypatch):
    """Gives a module of `benchmarks/weights` by its name, found as when it is run."""
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2] / "benchmarks" / "weights"))
    return importlib.import_module


def images(cifar, count=24):
    g = torch.Generator().manual_seed(0)
    x, y = torch.randn(count, 3, 8, 8, generator=g), torch.arange(count) % 10
    return cifar.Images(x, y, x, y)


def test_crops_move_all_images_alike_and_flip_some(script):
    x = torch.arange(6 * 3 * 32 * 32, dtype=torch.float32).reshape(6, 3, 32, 32) + 1
    moved = script("cifar").crops(x, torch.Generator().manual_seed(0))
    assert moved.shape == x.shape
    inside = moved[:, :, 4:-4, 4:-4]
    found = [
        (down, right, flip)
        for image, seen in zip(x, inside, strict=True)
        for flip in (False, True)
        for down in range(9)
        for right in range(9)
        if torch.equal(
            nn.functional.pad(image.flip(2) if flip else image, (4,) * 4)[:, down:, right:][:, 4:28, 4:28], seen
        )
    ]
    assert len(found) == 6 and len({(down, right) for down, right, _ in found}) == 1
    assert {flip for *_, flip in found} == {False, True}


@pytest.mark.parametrize("held", [False, True])
def test_training_steps_whatever_holds_the_supports(script, held, monkeypatch):
    cifar = script("cifar")
    monkeypatch.setattr(cifar, "crops", lambda x, generator: x)
    model, data = nn.Sequential(nn.Flatten(), nn.Linear(192, 10)), images(cifar)
    supports = {"1": sw.Support.from_mask(torch.rand(10, 192) < 0.1)}
    seen = []

    def made(optimizer, steps):
        seen.append(steps)
        if held:
            return sw.weights.keep_support(optimizer, model, sw.sites(model), supports)
        return sw.Sparsifier(model, sw.method("rigl", density=0.1), optimizer, steps=steps)

    run = cifar.trained(model, data, cifar.Course(2, batch=8), 0, made)
    assert seen == [6] and cifar.Course(2, batch=8).steps(data) == 6
    if held:
        assert torch.equal(model[1].weight.detach().masked_fill(supports["1"].mask(), 0), torch.zeros(10, 192))
    else:
        assert run.done == 6
    assert 0 <= cifar.accuracy(data, model) <= 100


def test_densities_that_followed_are_averaged_over_seeds_and_given_ones_stay(script):
    residual, rows = script("residual"), script("rows")
    record = rows.record_of(None, {}, nn.Linear(2, 2), task="t", metric="m", value=1.0, epochs=1, examples=1, data="")
    free = [rows.Row("free", k, replace(record, seed=s, more={"kept_share": k})) for s, k in enumerate((0.1, 0.3))]
    averaged = residual.averaged([*free, rows.Row("given", 0.5, record)])
    assert [r.density for r in averaged] == [pytest.approx(0.2), pytest.approx(0.2), 0.5]


def test_parts_that_run_side_by_side_have_journals_of_their_own(script):
    rows = script("rows")
    assert rows.journals(None) == rows.journals(Path("name")) == rows.JOURNALS
    assert rows.journals(Path("out/a")) != rows.journals(Path("out/b"))


def test_small_factors_are_counted_against_the_largest_of_their_norm(script):
    norm = nn.BatchNorm2d(4)
    with torch.no_grad():
        norm.weight.copy_(torch.tensor([2.0, -0.1, 0.01, 0.0]))
    assert script("residual").small(nn.Sequential(norm)) == {"below_0.001": 0.25, "below_0.01": 0.5, "below_0.1": 0.75}


def test_a_cell_of_each_objective_is_found_and_trained_sparse(script):
    search, cifar = script("cell_search"), script("cifar")
    for masked in (True, False):
        found = search.found(images(cifar), masked, 0.1, 0, (1, 1, 1))
        assert {e.end for e in found.genotype} == {1, 2, 3}
        assert found.model(torch.randn(2, 3, 8, 8)).shape == (2, 10)
        assert all(abs(s.density - 0.1) < 0.05 for s in found.supports.values())
