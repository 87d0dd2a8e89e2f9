"""Records of results that can be compared: what every figure of a sparse network must carry, and a comparison that refuses unlike rows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from itertools import combinations
from typing import Any, Literal

from sparseworks.core.errors import BudgetError, ModelError
from sparseworks.core.method import Method
from sparseworks.core.site import Site
from sparseworks.core.support import Support

Start = Literal["dense-to-sparse", "sparse-to-sparse", "post-training", "dense"]


@dataclass(frozen=True)
class Record:
    """One result of a sparse network and what it stands on.

    Source: the questions of Liu and Wang, 2023, arXiv 2302.02596 ("Ten lessons").

    Attributes:
        method: name of the method.
        task, metric, value: what was measured; `higher_is_better` its direction.
        start: where training began: dense, sparse, or a finished model was pruned (post-training); "dense" = nothing was.
        dynamic: the support changed after it was first chosen.
        when: the support was chosen "before", "during" or "after" training, or "never".
        densities: site -> share kept.
        kept: entries kept of all sites.
        training_flops: of all training, dense parent included where the method needs it; None = not known.
        inference_flops: multiplications and additions of the kept weights, one example.
        parent: parameters of the dense model behind it.
        structure: the pattern.
        hardware: where times, if any, were taken.
        epochs: passes over the data, of all training.
        examples: distinct examples that training or calibration saw; 0 = none.
        seed: of the run.
        control: value of the same densities with entries at random places; None = not measured.
        data: what it saw, in words, the training of the dense parent included; "" = not said.
    """

    method: str
    task: str
    metric: str
    value: float
    start: Start
    dynamic: bool
    when: Literal["before", "during", "after", "never"]
    densities: Mapping[str, float]
    kept: int
    parent: int
    structure: str
    epochs: float
    examples: int
    hardware: str
    inference_flops: float | None = None
    training_flops: float | None = None
    higher_is_better: bool = True
    seed: int = 0
    control: float | None = None
    data: str = ""
    more: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self):
        wrong = {name: d for name, d in self.densities.items() if not 0.0 <= d <= 1.0}
        if wrong:
            raise BudgetError(f"Densities lie in [0, 1], got {wrong}.")
        if not self.densities:
            raise BudgetError("A record carries the density of every layer: give `densities`, site -> share kept.")

    def to_dict(self) -> dict[str, Any]:
        """Plain data."""
        return asdict(self)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Record:
        """Inverse of `to_dict`; unknown keys are refused.

        Raises:
            BudgetError: fields that no record has, or that are missing.
        """
        known = {f.name for f in fields(cls)}
        if set(data) - known:
            raise BudgetError(f"A record has no field {sorted(set(data) - known)[0]!r}.")
        try:
            return cls(**data)
        except TypeError as error:
            raise BudgetError(f"A record is incomplete: {error}.") from error


def describe(
    method: Method, supports: Mapping[str, Support], sites: Sequence[Site], *, fresh: bool = False
) -> dict[str, Any]:
    """The fields of a `Record` that a method and its supports tell: start, dynamic, when, densities, kept, structure, FLOPs.

    FLOPs of one example are 2 x kept entries, positions of convolutions not counted; give your own where there are any.

    Args:
        fresh: the method chose a support of untrained weights, which was held while they trained (pruning at initialisation);
            a method that does not move supports cannot tell this from the pruning of a finished model.
    """
    place = _place(method, fresh)
    kernels = {s.name: bool(s.kernel) for s in sites}
    flops = None if any(kernels.get(n) for n in supports) else float(2 * sum(s.count for s in supports.values()))
    return {
        **place,
        "method": method.name,
        "densities": {name: s.density for name, s in supports.items()},
        "kept": sum(s.count for s in supports.values()),
        "structure": str(method.pattern),
        "inference_flops": flops,
    }


def _place(method: Method, fresh: bool) -> dict[str, Any]:
    moves = method.cycle is not None or (method.train is not None and method.train.moves)
    if moves:
        sparse = method.cycle is None and method.train is not None and method.train.starts_sparse
        return {"start": "sparse-to-sparse" if sparse else "dense-to-sparse", "dynamic": True, "when": "during"}
    if fresh:
        return {"start": "sparse-to-sparse", "dynamic": False, "when": "before"}
    held = method.train is not None  # a finished model, trained on with the support it was given
    return {"start": "dense-to-sparse" if held else "post-training", "dynamic": False, "when": "after"}


_SAME: tuple[tuple[str, str], ...] = (
    ("task", "they were measured on different tasks"),
    ("metric", "their figures are different metrics"),
    ("higher_is_better", "their figures point in different directions"),
    ("parent", "their dense parents differ in size"),
    ("structure", "their patterns differ, so equal densities do not cost the same"),
)


def compare(records: Sequence[Record], *, allow: Sequence[str] = (), tolerance: float = 0.1) -> list[Record]:
    """The records, best first, if they can be compared.

    Refused are different tasks, metrics, parents or patterns, densities that differ by more than `tolerance` (relative),
    budgets of training (epochs, examples) further apart than that, and training beside none unless each says in `data` what
    it saw.

    Args:
        allow: differences that the reader is told about: names of fields, "density", "epochs", "examples", "start".

    Raises:
        ModelError: two rows are unlike, in a sentence that names both and says why.
    """
    if not records:
        raise ModelError("There is nothing to compare: no records.")
    for one, other in combinations(records, 2):
        reason = _unlike(one, other, set(allow), tolerance)
        if reason:
            raise ModelError(
                f"{one.method!r} and {other.method!r} cannot be compared: {reason}. Measure them alike, or state the "
                f"difference and allow it."
            )
    return sorted(records, key=lambda r: -r.value if r.higher_is_better else r.value)


def _unlike(a: Record, b: Record, allow: set[str], tolerance: float) -> str | None:
    for name, reason in _SAME:
        if name not in allow and getattr(a, name) != getattr(b, name):
            return f"{reason} ({getattr(a, name)} and {getattr(b, name)})"
    if (
        "start" not in allow
        and "dense" not in (a.start, b.start)
        and (a.start == "post-training") != (b.start == "post-training")
    ):
        if not (a.data and b.data):
            return (
                f"one was trained sparse and the other only pruned ({a.start} on {a.examples}, {b.start} on {b.examples} "
                "examples), and it is not said what data each saw"
            )
        allow = allow | {"epochs", "examples"}  # which is what is said
    pairs = (
        ("density", a.kept / a.parent, b.kept / b.parent),
        ("epochs", a.epochs, b.epochs),
        ("examples", a.examples, b.examples),
    )
    for name, x, y in pairs:
        if name not in allow and abs(x - y) > tolerance * max(abs(x), abs(y)):
            plural = {"density": "densities"}.get(name, name)
            return f"their {plural} differ ({x:.3g} and {y:.3g})"
    return None
