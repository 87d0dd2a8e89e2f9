"""Pages of methods: every method says when to use it and when not; formula and needs come from its parts."""

from __future__ import annotations

import pytest

import sparseworks as sw
from sparseworks.core.errors import UnknownNameError
from sparseworks.core.method import METHODS, Method, Source
from sparseworks.core.pages import formula, method_facts, method_page, method_table, plain
from sparseworks.core.patterns import parse
from sparseworks.scores import Magnitude


@pytest.mark.parametrize("name", [row["name"] for row in method_table()])
def test_every_method_has_a_whole_page(name):
    method = METHODS.get(name)
    missing = [field for field in ("claims", "when", "when_not") if not getattr(method, field)]
    assert not missing, f"{name}: say {' and '.join(missing)} where it is registered"
    page = method_page(method_facts(name))
    heads = [line for line in page.splitlines() if line.startswith("#")]
    assert heads == [
        f"# {name}",
        *(f"## {h}" for h in ("When to use it", "When not", "What it needs", "Formula", "Composition", "Source")),
    ]
    assert plain(method.when) in page and plain(method.when_not) in page and method.composition in page
    assert page.count("```") % 2 == 0
    if method.source.arxiv:
        assert f"(https://arxiv.org/abs/{method.source.arxiv})" in page


@pytest.mark.parametrize(
    "name, needed, call",
    [
        ("magnitude", "No data of its own.", 'sw.prune(model, sw.method("magnitude", density=0.3))'),
        ("wanda", "Calibration data", 'sw.prune(model, sw.method("wanda", density=0.3), data)'),
        ("snip", "Data and a loss", 'sw.prune(model, sw.method("snip", density=0.3), data)'),
        ("synflow", "only the shape counts", 'sw.prune(model, sw.method("synflow", density=0.3), data)'),
        ("movement", "Statistics of a training run", "stats=stats"),
        ("rigl", "Gradients at every entry", "sw.Sparsifier"),
        ("sr_ste", "Density 0.5, which the pattern fixes.", 'sw.method("sr_ste")'),
        ("autosparse", "No budget: the density comes out of training.", 'sw.method("autosparse")'),
        ("imp", "rounds of training and pruning", "sw.cycles"),
        ("cfsp", "smaller dense layers", "prune_channels"),
    ],
)
def test_what_it_needs_follows_from_its_parts(name, needed, call):
    facts = method_facts(name)
    assert any(needed in need for need in facts["needs"]), facts["needs"]
    assert call in facts["call"]


def test_forms_are_those_that_hold_the_pattern():
    forms = {name: method_facts(name)["needs"][-1] for name in ("sr_ste", "wanda", "magnitude")}
    assert " nm," in forms["sr_ste"] and " nm," not in forms["wanda"]
    assert " fanin," in forms["wanda"] and " fanin," not in forms["magnitude"]


def test_formulas_are_those_of_all_parts_without_their_attributes():
    parts = {p["part"]: p for p in method_facts("wanda")["parts"]}
    assert parts["score.a"]["text"].startswith("|W_ij|") and parts["score.b"]["text"].startswith("||X_j||_2")
    assert "solve" not in parts and "schedule" not in parts  # they do nothing of their own
    grown = {p["part"]: p["name"] for p in method_facts("dst_ee")["parts"]}
    assert grown["train.grow.b.a"] == "exploration"
    assert "Attributes" not in formula(type(METHODS.get("cast").train))
    assert "Source: Huang" in formula(type(METHODS.get("cast").train))


def test_an_unknown_name_lists_the_nearest():
    with pytest.raises(UnknownNameError, match="wanda"):
        method_facts("wande")


def test_text_is_shown_as_it_is():
    assert plain("|w| <x_j> `a_b`") == r"\|w\| \<x\_j\> `a_b`"


def test_words_and_figures_are_optional(monkeypatch):
    bare = Method("bare", Magnitude(), parse("row"), source=Source("Nobody", 2026))
    monkeypatch.setitem(METHODS._items, "bare", bare)
    page = method_page(method_facts("bare"), ["| a |"])
    assert page.count("Nothing is recorded yet.") == 2 and page.endswith("## Figures\n\n| a |\n")


def test_the_words_travel_with_a_recipe():
    changed = sw.method("wanda", when="Here.", density=0.3)
    assert sw.Recipe.from_yaml(sw.Recipe.of(changed).to_yaml()).rules[0].method == changed
    assert "when" not in sw.Recipe.of(sw.method("wanda")).to_yaml()
