"""The kinds of published methods of retrieval."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from sparseworks.core.routine import Routine


@dataclass(frozen=True)
class RetrievalRoutine(Routine):
    """An algorithm of retrieval that is called with operands of its own: fusion, feedback, an index over labels."""

    family: ClassVar[str] = "retrieval"
    kind: ClassVar[str] = "routines of retrieval"
    used_by: ClassVar[str] = "sw.method(name)(operands)"
