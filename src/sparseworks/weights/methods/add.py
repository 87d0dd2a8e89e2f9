"""How methods are declared."""

from __future__ import annotations

from typing import Any

from sparseworks.core.method import METHODS, Method, Source
from sparseworks.core.patterns import parse
from sparseworks.core.score import Score


def add(name: str, score: Score, pattern: str, source: Source, claims: str, **parts: Any) -> None:
    """Register the composition of `parts` under `name`; fields as in `Method`."""
    METHODS.register(name)(Method(name, score, parse(pattern), source=source, claims=claims, **parts))
