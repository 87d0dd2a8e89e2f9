"""Routine: a published algorithm that is one callable of ours, with the composition it is said to be."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, replace
from importlib import import_module
from typing import Any, ClassVar, Self

from sparseworks.core.errors import RecipeError
from sparseworks.core.pages import particulars
from sparseworks.core.published import METHODS, Published, Source


@dataclass(frozen=True)
class Routine(Published):
    """An algorithm that takes its own operands: `sw.method("fastrp", size=64)(graph)`; each family has a subclass.

    Attributes:
        call: where it is, "package.module:name", below `sparseworks`.
        composed: the nouns it composes, "score=... pattern=... budget=...".
        options: arguments that are not the callable's defaults, (name, value) pairs.
    """

    kind: ClassVar[str] = "routines"
    PARTS: ClassVar[Mapping[str, str]] = {}
    PLAIN: ClassVar[tuple[str, ...]] = ("call", "composed", "options")

    call: str = ""
    composed: str = ""
    options: tuple[tuple[str, Any], ...] = ()

    def load(self) -> Callable[..., Any]:
        """The function or class."""
        module, name = self.call.split(":")
        return getattr(import_module(f"sparseworks.{module}"), name)

    def __call__(self, *operands: Any, **options: Any) -> Any:
        """Call it, or make one if it is a class, with the method's options and these."""
        return self.load()(*operands, **{**dict(self.options), **options})

    def with_(self, **changes: Any) -> Self:
        """A changed copy; arguments of the callable may be named directly.

        Raises:
            RecipeError: neither a field nor an argument.
        """
        own = {f.name for f in fields(self)}
        inner = {k: v for k, v in changes.items() if k not in own}
        known = inspect.signature(self.load()).parameters
        for name in inner:
            if name not in known:
                raise RecipeError(f"Method {self.name!r} has no option {name!r}; it takes {', '.join(known)}.")
        changed = super().with_(**{k: v for k, v in changes.items() if k in own})
        return replace(changed, options=tuple({**dict(changed.options), **inner}.items())) if inner else changed

    @property
    def composition(self) -> str:
        """As it is written down, and options that were changed."""
        return " ".join((self.composed, *(f"{name}={value}" for name, value in self.options)))


def add_routine(
    kind: type[Routine], name: str, call: str, composed: str, source: Source, claims: str, **labels: Any
) -> Routine:
    """Register a routine of a family under `name`; `labels` as in `Published`."""
    routine = kind(name, call, composed, source=source, claims=claims, **labels)
    METHODS.register(name)(routine)
    return routine


@particulars.register
def _routine(method: Routine) -> dict[str, Any]:
    from sparseworks.core.pages import formula

    module, name = method.call.split(":")
    called = method.load()
    return {
        "needs": ["Its own operands; see the signature."],
        "call": f"from sparseworks.{module} import {name}\n{name}{inspect.signature(called)}".replace("self, ", ""),
        "parts": [{"part": "call", "name": name, "text": formula(called)}],
    }
