"""Recipes: ordered rules, exact round trip, unknown keys are errors."""

from __future__ import annotations

import pytest

import sparseworks.weights  # noqa: F401
from sparseworks.core.errors import RecipeError, UnknownNameError
from sparseworks.core.method import METHODS, Method, Source
from sparseworks.core.patterns import EXAMPLES, parse
from sparseworks.core.recipe import Recipe, Rule
from sparseworks.core.site import Site
from sparseworks.scores import Magnitude

ROW = Method("mine", Magnitude(), parse("row"), source=Source("Me", 2025), catalog=(7,))
PAIRS = ROW.with_(pattern="2:4")


def site(name: str) -> Site:
    return Site(name, "linear", f"{name}.weight", (4, 4))


def test_the_last_rule_that_matches_holds():
    recipe = Recipe((Rule(("*",), ROW), Rule(("*.ffn.*", "*.up"), PAIRS), Rule(("head",), None)))
    assert recipe.method_for("layers.0.q") == ROW
    assert recipe.method_for("layers.0.ffn.w") == PAIRS == recipe.method_for("x.up")
    assert recipe.method_for("head") is None
    assert Recipe((Rule(("a",), ROW),)).method_for("b") is None


def test_sites_are_grouped_by_method_in_order():
    recipe = Recipe((Rule(("*",), ROW), Rule(("b*",), PAIRS), Rule(("z",), None)))
    groups = recipe.assign([site(n) for n in ("a", "b1", "z", "c", "b2")])
    assert [(m, [s.name for s in members]) for m, members in groups] == [(ROW, ["a", "c"]), (PAIRS, ["b1", "b2"])]


def test_one_method_for_all_but():
    recipe = Recipe.of(ROW, skip=["head", "embed*"])
    assert recipe.method_for("embedding") is None and recipe.method_for("q") == ROW
    assert Recipe.of(recipe) is recipe and Recipe.of(ROW) == Recipe((Rule(("*",), ROW),))


@pytest.mark.parametrize("name", METHODS.names())
def test_every_registered_method_round_trips(name):
    method = METHODS.get(name)
    for changed in (method, method.with_(status="experimental", claims="mine")):
        recipe = Recipe.of(changed, skip=["lm_head"], kind=type(method))
        assert Recipe.from_yaml(recipe.to_yaml()) == recipe
        assert Recipe.from_yaml(recipe.to_yaml()).to_yaml() == recipe.to_yaml()


@pytest.mark.parametrize("text", EXAMPLES)
def test_every_pattern_round_trips(text):
    recipe = Recipe((Rule(("*",), ROW.with_(pattern=text)), Rule(("head",), None)), seed=3)
    assert Recipe.from_yaml(recipe.to_yaml()) == recipe


def test_what_a_person_would_write():
    recipe = Recipe.from_yaml("""
    rules:
      - sites: "*"
        method: {name: mine, score: magnitude, pattern: row, budget: {density: {value: 0.25}}}
      - {sites: [head, "embed*"], method: null}
    """)
    method = recipe.method_for("layers.0.q")
    assert (
        recipe.seed == 0
        and method is not None
        and method.composition.startswith("score=magnitude pattern=row budget=density(value=0.25)")
    )


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[1, 2]", "mapping with the keys"),
        ("rules: [", "not valid YAML"),
        ("schema: 2\nrules: [{sites: a, method: null}]", "schema 2.*Upgrade"),
        ("rulez: []", "Unknown key 'rulez' in the recipe; known: rules, schema, seed"),
        ("seed: 1", "needs a list of rules"),
        ("rules: []", "needs a list of rules"),
        ("seed: x\nrules: [{sites: a, method: null}]", "seed of a recipe is a whole number, got 'x'"),
        ("rules: [{sites: a}]", "keys sites and method"),
        ("rules: [{sites: 3, method: null}]", "name pattern or a list"),
        ("rules: [{sites: a, method: null, when: now}]", "Unknown key 'when' in the rule"),
        ("rules: [{sites: a, method: {name: m, scores: magnitude}}]", "'scores'"),
        ("rules: [{sites: a, method: {name: m, score: {magnitude: {power: 2}}, pattern: row}}]", "no field 'power'"),
    ],
)
def test_recipes_that_cannot_be_read(text, message):
    with pytest.raises(RecipeError, match=message):
        Recipe.from_yaml(text)


def test_a_method_that_is_not_registered_names_its_neighbours():
    with pytest.raises(UnknownNameError, match="Unknown method"):
        Recipe.from_yaml("rules: [{sites: a, method: wandaa}]")
