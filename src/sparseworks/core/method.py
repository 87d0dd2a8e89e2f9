"""Method: a published method of making weights sparse, as a frozen bundle of nouns."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

from sparseworks.core.allocator import Allocator, Uniform
from sparseworks.core.budget import Budget, Density
from sparseworks.core.config import from_config
from sparseworks.core.cycle import Cycle
from sparseworks.core.errors import BudgetError
from sparseworks.core.form import Form
from sparseworks.core.pattern import Pattern
from sparseworks.core.published import METHODS as METHODS
from sparseworks.core.published import Published
from sparseworks.core.published import Source as Source
from sparseworks.core.published import brief as brief
from sparseworks.core.published import method as method
from sparseworks.core.regime import Regime
from sparseworks.core.schedule import Once, Schedule
from sparseworks.core.score import Score
from sparseworks.core.solver import Repair, Select, Solver
from sparseworks.core.stats import Stat

_PARTS = ("score", "pattern", "budget", "allocate", "solve", "schedule", "train", "cycle", "form")


@dataclass(frozen=True)
class Method(Published):
    """score x pattern x budget x allocation x solver x schedule (x form), and its provenance.

    Attributes:
        train: how supports move while a model trains (`sparseworks.Sparsifier`); None = the method prunes a finished model.
        cycle: how rounds of training and pruning follow one another (`sparseworks.cycles`); None = there is one pruning.
        form: as which factors a weight is written (`sparseworks.factorise`); None = it stays a matrix. Score and pattern are
            then those of a sparse factor, and the budget counts numbers of 16 bits, see `Form`.
    """

    family: ClassVar[str] = "weights"
    kind: ClassVar[str] = "weights"
    used_by: ClassVar[str] = "sw.prune(model, method)"
    PARTS: ClassVar[Mapping[str, str]] = {part: part for part in _PARTS}

    name: str
    score: Score
    pattern: Pattern
    budget: Budget = field(default_factory=lambda: Density(0.5))
    allocate: Allocator = field(default_factory=Uniform)
    solve: Solver = field(default_factory=Select)
    schedule: Schedule = field(default_factory=Once)
    train: Regime | None = None
    cycle: Cycle | None = None
    form: Form | None = None

    def __post_init__(self):
        if self.form is not None:
            if not self.form.sized and self.budget != Density(0.5):
                raise BudgetError(
                    f"The size of form {self.form.registered_name!r} follows from its fields and the pattern; the budget "
                    f"{self.budget} cannot hold. Leave the density out."
                )
            return
        fixed = self.pattern.fixed_density
        if fixed is None:
            return
        if self.budget == Density(0.5) or self.budget == Density(fixed):
            object.__setattr__(self, "budget", Density(fixed))
        else:
            raise _cannot_hold(self.pattern, self.budget)

    @property
    def needs(self) -> frozenset[type[Stat]]:
        """Statistics that must be gathered to prune one site (allocation evidence not included)."""
        if self.form is not None:
            return self.form.needs | (self.score.needs if self.form.selects else frozenset())
        return self.score.needs | self.solve.needs

    @property
    def evidence_needs(self) -> frozenset[type[Stat]]:
        """Statistics of the dense model that the allocator looks at before anything is pruned."""
        needs = self.allocate.needs
        return (
            needs | self.score.needs
            if self.allocate.uses_scores
            else needs | (self.needs if self.allocate.uses_error or self.allocate.uses_trials else frozenset())
        )

    def with_(self, **changes: Any) -> Method:
        """A changed copy. Besides the fields: `density=0.3`, `pattern="2:4"`, `repair=...`, or names such as `allocate="owl"`.

        Raises:
            RecipeError: unknown option.
        """
        given = dict(changes)
        if "repair" in given:
            repair = given.pop("repair")
            given["solve"] = Select(repair if isinstance(repair, Repair) else from_config("repair", repair))
        given = self._read(given, extra=("repair",))
        if given.get("form", self.form) is not None:
            return replace(self, **given)
        fixed, had = given.get("pattern", self.pattern).fixed_density, self.pattern.fixed_density
        if "budget" in given and fixed is not None and given["budget"] != Density(fixed):
            raise _cannot_hold(given.get("pattern", self.pattern), given["budget"])
        leaves_form = self.form is not None
        if ("pattern" in given or leaves_form) and "budget" not in given:
            given["budget"] = (
                Density(fixed)
                if fixed is not None
                else (Density(0.5) if had is not None or leaves_form else self.budget)
            )
        return replace(self, **given)

    def _shown(self) -> dict[str, Any]:
        if self.form is None:
            return super()._shown()
        idle = {"solve", "schedule"} | (set() if self.form.selects else {"score", "pattern"})
        idle |= set() if self.form.sized else {"budget", "allocate"}
        return {part: value for part, value in super()._shown().items() if part not in idle}


def _cannot_hold(pattern: Pattern, budget: Budget) -> BudgetError:
    return BudgetError(
        f"Pattern {pattern} fixes the density at {pattern.fixed_density:g}; the budget {budget} cannot hold. "
        "Leave the density out, or choose another pattern."
    )
