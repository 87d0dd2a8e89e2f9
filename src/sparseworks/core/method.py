"""Method: a published method as a frozen bundle of nouns, with its source and what it claims."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any

from sparseworks.core.allocator import Allocator, Uniform
from sparseworks.core.budget import Budget, Density
from sparseworks.core.config import from_config, to_config
from sparseworks.core.cycle import Cycle
from sparseworks.core.errors import BudgetError, RecipeError
from sparseworks.core.form import Form
from sparseworks.core.pattern import Pattern
from sparseworks.core.regime import Regime
from sparseworks.core.registry import Registry
from sparseworks.core.schedule import Once, Schedule
from sparseworks.core.score import Score
from sparseworks.core.solver import Repair, Select, Solver
from sparseworks.core.stats import Stat

METHODS: Registry[Method] = Registry("method", "sparseworks.weights")

_PARTS = ("score", "pattern", "budget", "allocate", "solve", "schedule", "train", "cycle", "form")
_LABELS = ("family", "source", "claims", "catalog", "status", "when", "when_not")


@dataclass(frozen=True)
class Source:
    """Where a method comes from."""

    authors: str
    year: int
    arxiv: str = ""
    title: str = ""

    def __str__(self) -> str:
        return f"{self.authors} ({self.year})" + (f", arXiv {self.arxiv}" if self.arxiv else "")


@dataclass(frozen=True)
class Method:
    """score x pattern x budget x allocation x solver x schedule (x form), and its provenance.

    Attributes:
        train: how supports move while a model trains (`sparseworks.Sparsifier`); None = the method prunes a finished model.
        cycle: how rounds of training and pruning follow one another (`sparseworks.cycles`); None = there is one pruning.
        form: as which factors a weight is written (`sparseworks.factorise`); None = it stays a matrix. Score and pattern are
            then those of a sparse factor, and the budget counts numbers of 16 bits, see `Form`.
        claims: what it does, in a line.
        catalog: numbers of the catalogue entries this method implements (empty for baselines).
        status: "stable" or "experimental".
        when, when_not: when to use it and when not, a sentence each.
    """

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
    family: str = "weights"
    source: Source = field(default_factory=lambda: Source("folklore", 0))
    claims: str = ""
    catalog: tuple[int, ...] = ()
    status: str = "stable"
    when: str = ""
    when_not: str = ""

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
        if "density" in given:
            given["budget"] = Density(float(given.pop("density")))
        if "repair" in given:
            repair = given.pop("repair")
            given["solve"] = Select(repair if isinstance(repair, Repair) else from_config("repair", repair))
        unknown = set(given) - {f.name for f in fields(self)}
        if unknown:
            raise RecipeError(
                f"Method {self.name!r} has no option {sorted(unknown)[0]!r}; "
                f"it takes density, repair, {', '.join(f.name for f in fields(self))}."
            )
        for part in _PARTS:
            if isinstance(given.get(part), str | dict):
                given[part] = from_config(part, given[part])
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

    @property
    def composition(self) -> str:
        """One line: which nouns this method composes."""
        parts = {part: getattr(self, part) for part in _PARTS}
        if self.form is not None:
            idle = {"solve", "schedule"} | (set() if self.form.selects else {"score", "pattern"})
            idle |= set() if self.form.sized else {"budget", "allocate"}
            parts = {part: value for part, value in parts.items() if part not in idle}
        return " ".join(f"{part}={brief(value)}" for part, value in parts.items() if value is not None)

    def to_config(self) -> dict[str, Any]:
        """Plain data: the registered name and the parts that differ from the registered method."""
        base = METHODS.get(self.name) if self.name in METHODS else None
        data: dict[str, Any] = {"name": self.name}
        for part in _PARTS:
            value = getattr(self, part)
            if base is None or value != getattr(base, part):
                data[part] = to_config(value)
        plain = {f.name: f.default_factory() if callable(f.default_factory) else f.default for f in fields(self)}
        for label in _LABELS:
            value = getattr(self, label)
            if value != (getattr(base, label) if base else plain[label]):
                data[label] = asdict(value) if isinstance(value, Source) else to_config(value)
        return data

    @classmethod
    def from_config(cls, data: Any) -> Method:
        """Inverse of `to_config`; a bare name is a method at its defaults.

        Raises:
            RecipeError: unknown keys.
        """
        if isinstance(data, str):
            return METHODS.get(data)
        if not isinstance(data, dict):
            raise RecipeError(f"A method is a name or a mapping, got {data!r}.")
        unknown = set(data) - {"name", *_PARTS, *_LABELS}
        if unknown or "name" not in data:
            raise RecipeError(
                f"A method is a name or a mapping of name, {', '.join(_PARTS + _LABELS)}; "
                f"got {', '.join(map(repr, sorted(unknown))) or 'no name'}."
            )
        parts = {part: _part_from(part, data[part]) for part in _PARTS if part in data}
        parts |= {label: _label_from(label, data[label]) for label in _LABELS if label in data}
        if data["name"] in METHODS:
            return METHODS.get(data["name"]).with_(**parts)
        if not {"score", "pattern"} <= set(parts):
            METHODS.get(data["name"])  # raises with the nearest names
        return cls(name=data["name"], **parts)


def _cannot_hold(pattern: Pattern, budget: Budget) -> BudgetError:
    return BudgetError(
        f"Pattern {pattern} fixes the density at {pattern.fixed_density:g}; the budget {budget} cannot hold. "
        "Leave the density out, or choose another pattern."
    )


def _part_from(part: str, data: Any) -> Any:
    return None if part in ("train", "cycle", "form") and data is None else from_config(part, data)


def _label_from(label: str, value: Any) -> Any:
    if label != "source":
        return tuple(value) if isinstance(value, list) else value
    known = {f.name for f in fields(Source)}
    if not isinstance(value, dict) or not {"authors", "year"} <= set(value) <= known:
        raise RecipeError(f"A source is a mapping of authors, year and optionally arxiv, title; got {value!r}.")
    return Source(**value)


def brief(value: Any) -> str:
    """A part as one word with what differs from its defaults: `drop_grow(every=50)`."""
    data = to_config(value)
    if isinstance(data, dict) and len(data) == 1:
        name, inner = next(iter(data.items()))
        if not isinstance(inner, dict):
            return f"{name}({inner})"
        shown = ", ".join(f"{k}={_brief_plain(v)}" for k, v in inner.items())
        return f"{name}({shown})" if shown else name
    return str(data)


def _brief_plain(data: Any) -> str:
    if isinstance(data, dict) and len(data) == 1:
        name, inner = next(iter(data.items()))
        shown = ", ".join(f"{k}={_brief_plain(v)}" for k, v in inner.items()) if isinstance(inner, dict) else str(inner)
        return f"{name}({shown})" if shown else str(name)
    return str(data)


def method(name: str, **changes: Any) -> Method:
    """The registered method `name`, changed: `method("wanda", density=0.4, pattern="2:4", allocate="owl")`.

    Raises:
        UnknownNameError: the name is not registered; the message lists the nearest.
        RecipeError: unknown option.
    """
    found = METHODS.get(name)
    return found.with_(**changes) if changes else found
