"""Named collections of plug-ins: whatever is registered is found by name, listed, and tested by the conformance suites."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from importlib import import_module
from typing import Generic, TypeVar, cast

from sparseworks.core.errors import SparseworksError, UnknownNameError

T = TypeVar("T")
Item = TypeVar("Item")  # the decorator hands back exactly what it got, so that classes keep their constructors


class Registry(Generic[T]):
    """Name -> object, in order of registration.

    Args:
        kind: what the objects are, for error messages ("score", "format", ...).
        homes: modules whose import registers the library's own objects. They are imported at the first look-up, so that a
            recipe finds every name whatever was imported before.
    """

    def __init__(self, kind: str, *homes: str):
        self.kind = kind
        self._homes = list(homes)
        self._items: dict[str, T] = {}

    def register(self, name: str) -> Callable[[Item], Item]:
        """Decorator that files `item` under `name` and stores the name on it as `registered_name`.

        Raises:
            SparseworksError: the name is taken by another object.
        """

        def add(item: Item) -> Item:
            known = self._items.get(name)
            if known is not None and _origin(known) != _origin(item):
                raise SparseworksError(
                    f"The {self.kind} name {name!r} is already taken by {known!r}; choose another name."
                )
            self._items[name] = cast(T, item)
            if isinstance(item, type):
                item.registered_name = name  # type: ignore[attr-defined]
            return item

        return add

    def get(self, name: str) -> T:
        """The object registered under `name`.

        Raises:
            UnknownNameError: with the nearest known names.
        """
        if name not in self:
            raise UnknownNameError(self.kind, name, self._items)
        return self._items[name]

    def names(self) -> list[str]:
        """All names, in order of registration."""
        return list(self._filled())

    def items(self) -> list[tuple[str, T]]:
        """All (name, object) pairs, in order of registration."""
        return list(self._filled().items())

    def __contains__(self, name: str) -> bool:
        return name in self._items or name in self._filled()

    def __iter__(self) -> Iterator[T]:
        return iter(self._filled().values())

    def __len__(self) -> int:
        return len(self._filled())

    def _filled(self) -> dict[str, T]:
        while self._homes:
            import_module(self._homes.pop())
        return self._items

    def __repr__(self) -> str:
        return f"Registry({self.kind}: {', '.join(self._items)})"


def _origin(item: object) -> object:
    """Module and name of a class, so that reloading its module replaces it and another class is refused."""
    return (item.__module__, item.__qualname__) if isinstance(item, type) else item
