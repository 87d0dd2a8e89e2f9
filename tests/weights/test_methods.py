"""Registered methods: what the table says, and that every one of them prunes."""

from __future__ import annotations

import json

import pytest
import torch

import sparseworks as sw
from sparseworks.allocate import EvoPress
from sparseworks.core.method import Method
from sparseworks.core.pages import method_table
from sparseworks.core.recipe import Recipe
from sparseworks.core.schedule import Rounds
from sparseworks.core.stats import InputMoments
from sparseworks.stream import gather, sites
from sparseworks.weights import prune, track_movement


def squared(model, batch):
    return model(batch).square().mean()


def test_the_table_is_plain_data():
    table = method_table()
    assert [set(row) for row in table] == [{"name", "family", "catalog", "source", "composition", "status"}] * len(
        table
    )
    assert json.loads(json.dumps(table)) == table
    assert table == sorted(table, key=lambda row: (row["family"], row["name"]))
    assert {"magnitude", "wanda", "sparsegpt", "owl", "admm", "snip", "synflow"} <= {row["name"] for row in table}
    assert all(row["status"] in ("stable", "experimental") and row["composition"] for row in table)


@pytest.mark.parametrize("name", [m.name for m in Method.all()])
def test_every_method_names_its_source_and_round_trips(name):
    m = Method.of(name)
    assert m.name == name and m.source.authors and m.source.year >= 1989 and m.claims
    assert Method.from_config(m.to_config()) == m
    changed = m if m.pattern.fixed_density is not None else m.with_(density=0.25)
    recipe = Recipe.of(changed)
    assert Recipe.from_yaml(recipe.to_yaml()) == recipe


@pytest.mark.parametrize(
    "name", [m.name for m in Method.all() if m.family == "weights" and m.train is m.cycle is m.form is None]
)
def test_every_method_prunes_a_model_to_its_budget(tower, batches, name):
    model = tower()
    method = sw.method(name, density=0.4)
    if isinstance(method.schedule, Rounds):
        method = method.with_(schedule=Rounds(3))
    if name == "evopress":
        method = method.with_(allocate=EvoPress.example())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    stats, handle = track_movement(optimizer, model, sites(model))
    squared(model, batches[0]).backward()
    optimizer.step()
    handle.remove()
    found = prune(model, method, batches, loss=squared, stats=stats, progress=False)
    kept, size = sum(s.count for s in found.supports.values()), sum(s.size for s in found.supports.values())
    rows, cols = method.pattern.unit.sizes((16, 16))  # whole units: to half of one a site
    assert abs(kept - round(0.4 * size)) <= (rows * cols - 1) * len(found.supports) / 2
    for site in sites(model):
        assert torch.all(site.read(model)[~found.supports[site.name].mask()] == 0)


def densities(model, batches, name: str, **changes) -> dict[str, float]:
    method = sw.method(name, density=0.3, **changes)
    return {r.name: round(r.density, 2) for r in prune(model, method, batches, progress=False, loss=squared).rows}


def test_allocation_methods_differ_from_uniform(tower, batches):
    assert set(densities(tower(), batches, "wanda").values()) == {0.3}
    for name in ("dlp", "random_erk", "random_balanced", "magnitude_erk", "magnitude_global"):
        assert len(set(densities(tower(), batches, name).values())) > 1, name
    assert len(set(densities(tower(), batches, "wanda", allocate="dp").values())) > 1


def test_owl_keeps_more_where_outliers_are(tower, batches):
    model = tower()
    with torch.no_grad():
        model.blocks[1].up.weight[0, :2] = 20 * model.blocks[1].up.weight.abs().max()
    stats = gather(model, sites(model), frozenset({InputMoments}), batches)
    share = []
    for b in range(3):
        members = [s for s in sites(model) if s.name.startswith(f"blocks.{b}.")]
        scores = torch.cat([(s.read(model).abs() * stats[s.name][InputMoments].norm).flatten() for s in members])
        share.append(float((scores > 5 * scores.mean()).double().mean()))
    kept = densities(model, batches, "owl")
    assert all(kept[f"blocks.{b}.up"] == kept[f"blocks.{b}.down"] for b in range(3))
    order = sorted(range(3), key=share.__getitem__)
    assert share[order[0]] < share[order[2]] and sorted(range(3), key=lambda b: kept[f"blocks.{b}.up"]) == order
