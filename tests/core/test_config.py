"""Every registered noun is written as plain data and read back equal; what cannot be read says why."""

from __future__ import annotations

from dataclasses import dataclass, fields

import pytest
import yaml

import sparseworks.allocate
import sparseworks.attention.masks
import sparseworks.repair
import sparseworks.scores
import sparseworks.solve  # noqa: F401
from sparseworks.core.config import NOUNS, from_config, to_config
from sparseworks.core.errors import PatternError, RecipeError, UnknownNameError
from sparseworks.core.pattern import Pattern, Tile
from sparseworks.core.patterns import EXAMPLES, nm, parse
from sparseworks.core.score import Score
from sparseworks.scores import Magnitude
from sparseworks.testing import example

REGISTERED = [(noun, name) for noun, (_, registry) in NOUNS.items() for name in registry.names()]


def through_yaml(data):
    return yaml.safe_load(yaml.safe_dump(data))


@pytest.mark.parametrize(("noun", "name"), REGISTERED)
def test_every_registered_noun_survives_yaml(noun, name):
    kind = NOUNS[noun][1].get(name)
    value = example(kind)
    assert from_config(noun, through_yaml(to_config(value))) == value
    assert isinstance(value, NOUNS[noun][0]) and hash(value) == hash(example(kind))


@pytest.mark.parametrize(("noun", "name"), REGISTERED)
def test_every_field_survives_when_it_is_not_at_its_default(noun, name):
    value = example(NOUNS[noun][1].get(name))
    for field in fields(value):
        current = getattr(value, field.name)
        changed = {float: lambda c: c * 0.75 + 0.07, bool: lambda c: not c, int: lambda c: c + 1}.get(type(current))
        if changed is None:
            continue
        try:
            other = type(value)(
                **{f.name: getattr(value, f.name) for f in fields(value)} | {field.name: changed(current)}
            )
        except ValueError:
            continue
        assert from_config(noun, through_yaml(to_config(other))) == other != value


@pytest.mark.parametrize("text", EXAMPLES)
def test_named_patterns_are_their_text(text):
    assert to_config(parse(text)) == text and from_config("pattern", text) == parse(text)


@pytest.mark.parametrize(
    "pattern",
    [
        Pattern(Tile(2, 3), Tile(None, 2), 1),
        Pattern(Tile(1, 2), Tile(4, 1), 2),
        Pattern(group=Tile(2, None), quota="equal"),
        Pattern(Tile(4, 4), across=True),
        nm(8, 16).then(nm(4, 8)).then(nm(2, 4)),
    ],
)
def test_patterns_without_a_name_survive_too(pattern):
    assert from_config("pattern", through_yaml(to_config(pattern))) == pattern


def test_compositions():
    score = 0.5 * (Magnitude() * Magnitude()) + Magnitude().normalised()
    assert from_config("score", through_yaml(to_config(score))) == score


@pytest.mark.parametrize(
    ("noun", "data", "text"),
    [
        ("budget", {"density": {"valu": 0.5}}, "budget 'density' has no field 'valu'; it has value"),
        ("budget", "density", "budget 'density' needs a value for value"),
        (
            "budget",
            {"density": {"value": "half"}},
            "Field 'value' of budget 'density' must be of type float, got 'half'",
        ),
        ("budget", {"count": {"value": 1.5}}, "must be of type int"),
        ("budget", {"density": {"value": True}}, "must be of type float"),
        ("budget", {"density": 0.5}, "must be a mapping"),
        ("budget", {"density": {}, "count": {}}, "is written as"),
        ("budget", 3, "is written as"),
        ("score", {"sum": {"a": "magnitude"}}, "needs a value for b"),
        ("pattern", {"unit": [1, 1], "qota": 2}, "'qota'"),
        ("pattern", {"unit": "2x2"}, "The unit of a pattern is a pair"),
        ("pattern", {"group": [1, 2, 3]}, "The group of a pattern is a pair"),
        ("pattern", 7, "got '7'"),
    ],
)
def test_data_that_cannot_be_read(noun, data, text):
    with pytest.raises(RecipeError, match=text):
        from_config(noun, data)


def test_unknown_names_and_values_out_of_range():
    with pytest.raises(UnknownNameError, match="Did you mean 'magnitude'"):
        from_config("score", "magnitud")
    with pytest.raises(UnknownNameError, match="Unknown score 3"):
        from_config("score", {3: {}})
    with pytest.raises(PatternError, match="got 'some'"):
        from_config("pattern", {"quota": "some"})


def test_numbers_that_yaml_reads_as_text():
    assert from_config("budget", yaml.safe_load("density: {value: 5e-1}")) == from_config(
        "budget", {"density": {"value": 0.5}}
    )


def test_what_is_not_registered_cannot_be_written():
    @dataclass(frozen=True)
    class Home(Score): ...

    with pytest.raises(RecipeError, match="register its class"):
        to_config(Home())
    with pytest.raises(RecipeError, match="cannot be written"):
        to_config(object())
