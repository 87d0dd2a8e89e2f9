"""The record of a job's figure: what a comparison must know of it, and what data the sparse model saw."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from sparseworks.core.recipe import Recipe
from sparseworks.core.record import Record, describe
from sparseworks.core.site import Site
from sparseworks.core.support import Support
from sparseworks.exec import measure


@dataclass(frozen=True)
class Seen:
    """What data a sparse model saw after its dense parent was finished.

    Attributes:
        examples: distinct rows of calibration and recovery batches.
        epochs: passes of recovery over its batches; data without a length count as passed once.
        words: the same for a reader.
    """

    examples: int = 0
    epochs: float = 0.0
    words: str = ""

    @classmethod
    def of(cls, batches: Sequence[Any], data: Any = None, steps: int = 0) -> Seen:
        """Of calibration batches and, with `steps` of recovery, of its `data` (None = the same batches)."""
        examples = _rows(batches)
        words = f"the trained dense model; {examples} calibration examples" if examples else "the trained dense model"
        if not steps:
            return cls(examples, 0.0, words)
        own = batches if data is None else data
        epochs = steps / len(own) if hasattr(own, "__len__") and len(own) else 1.0
        more = _rows(own) if data is not None and hasattr(own, "__len__") else 0
        return cls(examples + more, epochs, f"{words}; {steps} steps of recovery ({epochs:.3g} epochs)")


def record_of(
    name: str, recipe: Recipe, sites: Sequence[Site], supports: Mapping[str, Support], *, parent: int, task: Any,
    value: float, seen: Seen, seed: int,
) -> Record:  # fmt: skip
    """The record of a finished model that was pruned by `recipe`, and perhaps recovered.

    Args:
        name: of the method.
        parent: parameters of the dense model.
    """
    own = [s for s in sites if s.name in supports]
    methods = [method for method, _ in recipe.assign(own)]
    facts = describe(methods[0], supports, own)
    machine = measure.machine()
    return Record(
        **{
            **facts,
            "method": name,
            "structure": ", ".join(dict.fromkeys(str(m.pattern) for m in methods)),
        },
        task=getattr(task, "name", "") or type(task).__name__,
        metric=task.metric,
        value=value,
        higher_is_better=getattr(task, "higher_is_better", True),
        parent=parent,
        epochs=seen.epochs,
        examples=seen.examples,
        data=seen.words,
        hardware=f"{machine['cpu']}, {machine['isa']}, {torch.get_num_threads()} threads",
        seed=seed,
    )


def _rows(batches: Any) -> int:
    """Rows of all batches: the size of the first axis of their first tensors."""
    found = (_first(batch) for batch in batches)
    return sum(t.shape[0] for t in found if t is not None and t.dim())


def _first(value: Any) -> torch.Tensor | None:
    if isinstance(value, torch.Tensor):
        return value
    items = value.values() if hasattr(value, "values") else value if isinstance(value, tuple | list) else ()
    return next((t for t in map(_first, items) if t is not None), None)
