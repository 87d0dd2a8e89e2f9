"""Registries: found by name, near names suggested, names taken once."""

from __future__ import annotations

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
