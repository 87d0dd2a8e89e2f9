"""Published: what every method has, whichever family it is of: a name, parts, a source, and what it claims."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import MISSING, asdict, dataclass, field, fields, replace
from typing import Any, ClassVar, Self

from sparseworks.core.budget import Density
from sparseworks.core.config import from_config, to_config
from sparseworks.core.errors import RecipeError
from sparseworks.core.registry import Registry

METHODS: Registry[Published] = Registry(
    "method",
    "sparseworks.activations",
    "sparseworks.attention",
    "sparseworks.codes",
    "sparseworks.retrieval",
    "sparseworks.weights",
)

_LABELS = ("source", "claims", "catalog", "status", "when", "when_not")


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
class Published:
    """The base of every kind of method; its parts are the fields that a subclass adds and names in `PARTS`.

    Attributes:
        claims: what it does, in a line.
        catalog: numbers of the catalogue entries this method implements (empty for baselines).
        status: "stable" or "experimental".
        when, when_not: when to use it and when not, a sentence each.
    """

    family: ClassVar[str]
    kind: ClassVar[str]
    """What it makes sparse; a family may have several kinds."""
    used_by: ClassVar[str]
    """The call that takes it, for messages."""
    PARTS: ClassVar[Mapping[str, str]]
    """Field -> the kind of noun it holds, as `core.config` knows it."""
    PLAIN: ClassVar[tuple[str, ...]] = ()
    """Fields that are plain data (numbers, names) and belong into recipes too."""

    name: str
    source: Source = field(default_factory=lambda: Source("folklore", 0), kw_only=True)
    claims: str = field(default="", kw_only=True)
    catalog: tuple[int, ...] = field(default=(), kw_only=True)
    status: str = field(default="stable", kw_only=True)
    when: str = field(default="", kw_only=True)
    when_not: str = field(default="", kw_only=True)

    @classmethod
    def of(cls, method: str | Published) -> Self:
        """The registered method of that name, or `method` itself, if it is of this kind.

        Raises:
            UnknownNameError: the name is not registered; the message lists the nearest.
            RecipeError: a method of another kind; the message says what takes it.
        """
        found = METHODS.get(method) if isinstance(method, str) else method
        if isinstance(found, cls):
            return found
        what = f"{found.name!r} is for {found.used_by!r}" if isinstance(found, Published) else f"got {found!r}"
        raise RecipeError(f"Here a method of {cls.kind} is needed, as in {cls.used_by!r}; {what}.")

    @classmethod
    def all(cls) -> list[Self]:
        """Every registered method of this kind."""
        return [m for m in METHODS if isinstance(m, cls)]

    def with_(self, **changes: Any) -> Self:
        """A changed copy; parts may be given as nouns, or as their names and mappings, and a budget as its `density=0.3`.

        Raises:
            RecipeError: unknown option.
        """
        return replace(self, **self._read(changes))

    def _read(self, changes: Mapping[str, Any], extra: tuple[str, ...] = ()) -> dict[str, Any]:
        """Changes with parts given as text or plain data made nouns."""
        known = [f.name for f in fields(self)]
        if "density" in changes and "budget" in known and "density" not in known:
            changes = {**changes, "budget": Density(float(changes["density"]))}
            del changes["density"]
        extra = ("density", *extra) if "budget" in known else extra
        unknown = set(changes) - set(known)
        if unknown:
            options = ", ".join((*extra, *known))
            raise RecipeError(f"Method {self.name!r} has no option {sorted(unknown)[0]!r}; it takes {options}.")
        plain = {part: changes[part] for part in self.PARTS if isinstance(changes.get(part), str | dict)}
        return {**changes, **{part: from_config(self.PARTS[part], value) for part, value in plain.items()}}

    @property
    def composition(self) -> str:
        """One line: which nouns this method composes."""
        return " ".join(f"{part}={brief(value)}" for part, value in self._shown().items() if value is not None)

    def _shown(self) -> dict[str, Any]:
        return {part: getattr(self, part) for part in self.PARTS}

    def to_config(self) -> dict[str, Any]:
        """Plain data: the registered name and the parts that differ from the registered method."""
        base = METHODS.get(self.name) if self.name in METHODS else None
        base = base if type(base) is type(self) else None
        data: dict[str, Any] = {"name": self.name}
        if base is None and self.kind != "weights":
            data["kind"] = self.kind
        for part in self.PARTS:
            value = getattr(self, part)
            if base is None or value != getattr(base, part):
                data[part] = to_config(value)
        plain = {f.name: f.default_factory() if callable(f.default_factory) else f.default for f in fields(self)}
        for label in (*self.PLAIN, *_LABELS):
            value = getattr(self, label)
            if value != (getattr(base, label) if base else plain[label]):
                data[label] = asdict(value) if isinstance(value, Source) else to_config(value)
        return data

    @classmethod
    def from_config(cls, data: Any) -> Self:
        """Inverse of `to_config`; a bare name is a method at its defaults.

        Raises:
            RecipeError: unknown keys, or parts missing of a method that is not registered.
        """
        if isinstance(data, str):
            return cls.of(data)
        if not isinstance(data, dict):
            raise RecipeError(f"A method is a name or a mapping, got {data!r}.")
        labels = (*cls.PLAIN, *_LABELS)
        unknown = set(data) - {"name", *cls.PARTS, *labels}
        if unknown or "name" not in data:
            raise RecipeError(
                f"A method is a name or a mapping of name, {', '.join((*cls.PARTS, *labels))}; "
                f"got {', '.join(map(repr, sorted(unknown))) or 'no name'}."
            )
        parts = {part: _part_from(cls.PARTS[part], data[part]) for part in cls.PARTS if part in data}
        parts |= {label: _label_from(label, data[label]) for label in labels if label in data}
        if data["name"] in METHODS:
            return cls.of(data["name"]).with_(**parts)
        if any(f.name not in parts and f.default is f.default_factory is MISSING for f in fields(cls)[1:]):
            METHODS.get(data["name"])  # raises with the nearest names
        return cls(name=data["name"], **parts)


def method_from(data: Any) -> Any:
    """The method of any kind that `data` describes: a name, or the mapping that `to_config` made (and `kind`, if it is not registered).

    Raises:
        RecipeError: neither, or an unknown kind.
        UnknownNameError: not registered, and parts are missing.
    """
    name = data.get("name") if isinstance(data, dict) else data
    if isinstance(name, str) and name in METHODS:
        return type(METHODS.get(name)).from_config(data)
    kinds = {kind.kind: kind for kind in _kinds(Published)}
    kind = data.get("kind", "weights") if isinstance(data, dict) else "weights"
    if kind not in kinds:
        raise RecipeError(f"There is no kind of method {kind!r}; known: {', '.join(kinds)}.")
    return kinds[kind].from_config({k: v for k, v in data.items() if k != "kind"} if isinstance(data, dict) else data)


def _kinds(base: type[Published]) -> Iterator[type[Published]]:
    for kind in base.__subclasses__():
        yield kind
        yield from _kinds(kind)


def _part_from(noun: str, data: Any) -> Any:
    return None if data is None else from_config(noun, data)


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


def method(name: str, **changes: Any) -> Any:
    """The registered method `name` of whichever family, changed: `method("wanda", density=0.4, pattern="2:4", allocate="owl")`.

    Raises:
        UnknownNameError: the name is not registered; the message lists the nearest.
        RecipeError: unknown option.
    """
    found = METHODS.get(name)
    return found.with_(**changes) if changes else found
