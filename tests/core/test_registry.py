"""Registries: found by name, near names suggested, names taken once."""

from __future__ import annotations

import subprocess
import sys

import pytest

from sparseworks.core.errors import SparseworksError, UnknownNameError
from sparseworks.core.registry import Registry


def test_registered_things_are_found_in_order():
    registry: Registry[type] = Registry("shape")

    @registry.register("square")
    class Square: ...

    @registry.register("circle")
    class Circle: ...

    assert registry.names() == ["square", "circle"] and registry.items() == [("square", Square), ("circle", Circle)]
    assert registry.get("circle") is Circle and Circle.registered_name == "circle"
    assert "square" in registry and "triangle" not in registry
    assert list(registry) == [Square, Circle] and len(registry) == 2
    assert repr(registry) == "Registry(shape: square, circle)"


def test_instances_can_be_registered_too():
    registry: Registry[object] = Registry("thing")
    thing = object()
    assert registry.register("it")(thing) is thing and registry.get("it") is thing


def test_unknown_names_suggest_the_nearest():
    registry: Registry[int] = Registry("format")
    registry.register("bitmask")(1)
    with pytest.raises(UnknownNameError, match=r"Unknown format 'bitmsk'. Did you mean 'bitmask'\?"):
        registry.get("bitmsk")


def test_a_name_is_taken_once_but_a_module_may_be_reloaded():
    registry: Registry[type] = Registry("shape")

    def build(module: str) -> type:
        return type("Square", (), {"__module__": module, "__qualname__": "Square"})

    registry.register("square")(build("mine"))
    again = build("mine")
    registry.register("square")(again)
    assert registry.get("square") is again
    with pytest.raises(SparseworksError, match="already taken"):
        registry.register("square")(build("theirs"))
    with pytest.raises(SparseworksError, match="already taken"):
        registry.register("square")(type("Other", (), {}))


def test_two_registries_share_nothing():
    one, two = Registry("a"), Registry("b")
    one.register("x")(1)
    assert len(two) == 0


def test_homes_are_imported_at_the_first_look_up(tmp_path, monkeypatch):
    (tmp_path / "home_of_shapes.py").write_text(
        "from sparseworks.core import registry\nregistry.SHAPES.register('star')(5)\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    shapes: Registry[int] = Registry("shape", "home_of_shapes")
    monkeypatch.setattr("sparseworks.core.registry.SHAPES", shapes, raising=False)
    shapes.register("mine")(1)
    assert shapes.get("mine") == 1 and repr(shapes) == "Registry(shape: mine)"  # nothing was imported for it
    assert "star" in shapes and shapes.names() == ["mine", "star"]


def test_every_name_is_found_whatever_was_imported_before():
    code = "from sparseworks.core.recipe import Recipe; print(Recipe.from_yaml('rules: [{sites: a, method: sparsegpt}]').rules[0].method.name)"
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert ran.stdout == "sparsegpt\n", ran.stderr
