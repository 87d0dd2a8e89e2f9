"""TrainedAttention: a published form of sparse attention that has to be trained."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any, ClassVar

from torch import nn

from sparseworks.attention.trained.trainable import Sizes, Trainable
from sparseworks.core.published import METHODS, Published, Source


@dataclass(frozen=True)
class TrainedAttention(Published):
    """A trainable selector, and the methods of attention or of the cache that it becomes.

    Attributes:
        trainable: hyperparameters, from which `build` makes the module of a layer.
    """

    family: ClassVar[str] = "attention"
    kind: ClassVar[str] = "trained attention"
    used_by: ClassVar[str] = "sparseworks.attention.trained.attach(model, method)"
    PARTS: ClassVar[Mapping[str, str]] = {"trainable": "trainable"}

    trainable: Trainable = field(default_factory=Trainable)

    def with_(self, **changes: Any) -> TrainedAttention:
        """A changed copy; hyperparameters may be named directly: `sw.method("dms", window=64)`.

        Raises:
            RecipeError: unknown option.
        """
        known = {f.name for f in fields(self.trainable)}  # type: ignore[arg-type]
        inner = {name: changes[name] for name in changes if name in known}
        outer = {name: value for name, value in changes.items() if name not in inner}
        changed = super().with_(**outer) if outer else self
        return replace(changed, trainable=replace(changed.trainable, **inner)) if inner else changed  # type: ignore[type-var]

    def build(self, sizes: Sizes) -> nn.Module:
        """The module of one layer."""
        return self.trainable.build(sizes)

    def export(self) -> tuple[Published, ...]:
        """What it is at inference, for `with sw.attention(model, *method.export())`; empty where the module acts by itself."""
        return self.trainable.export()

    def _shown(self) -> dict[str, Any]:
        return {"trainable": self.trainable, "pattern": self.trainable.pattern, "budget": self.trainable.budget}


def add_trained(name: str, trainable: Trainable, source: Source, claims: str, **labels: Any) -> TrainedAttention:
    """Register a trained form under `name`; `labels` as in `Published`."""
    method = TrainedAttention(name, trainable, source=source, claims=claims, **labels)
    METHODS.register(name)(method)
    return method
