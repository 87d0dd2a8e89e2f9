"""Plain data <-> the nouns: `{name: {field: value}}` for every registered dataclass. Exact round trip, unknown keys are errors."""

from __future__ import annotations

import dataclasses
import re
from typing import Any

from sparseworks.core.allocator import ALLOCATORS, Allocator
from sparseworks.core.budget import BUDGETS, Budget
from sparseworks.core.cycle import CYCLES, Cycle
from sparseworks.core.errors import RecipeError
from sparseworks.core.form import FORMS, Form
from sparseworks.core.pattern import Pattern, Tile
from sparseworks.core.regime import REGIMES, Regime
from sparseworks.core.registry import Registry
from sparseworks.core.schedule import SCHEDULES, Schedule
from sparseworks.core.score import SCORES, Score
from sparseworks.core.solver import REPAIRS, SOLVERS, Repair, Solver

NOUNS: dict[str, tuple[type, Registry]] = {
    "score": (Score, SCORES),
    "budget": (Budget, BUDGETS),
    "allocate": (Allocator, ALLOCATORS),
    "solve": (Solver, SOLVERS),
    "repair": (Repair, REPAIRS),
    "schedule": (Schedule, SCHEDULES),
    "train": (Regime, REGIMES),
    "cycle": (Cycle, CYCLES),
    "form": (Form, FORMS),
}


def to_config(value: Any) -> Any:
    """Plain data (dict, list, str, number, bool, None) for a noun; fields at their default are left out.

    Raises:
        RecipeError: the value is not a registered dataclass or plain data.
    """
    if isinstance(value, Pattern):
        return _pattern_config(value)
    name = getattr(value, "registered_name", None)
    if name is not None and dataclasses.is_dataclass(value):
        return {name: {f.name: to_config(getattr(value, f.name)) for f in _set_fields(value)}}
    if isinstance(value, list | tuple):
        return [to_config(v) for v in value]
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise RecipeError(f"{value!r} cannot be written into a recipe; register its class as a frozen dataclass.")


def from_config(noun: str, data: Any) -> Any:
    """The object of kind `noun` ("score", "pattern", "budget", ...) that `data` describes.

    Raises:
        RecipeError: not of the form `name` or `{name: {field: value}}`, or unknown fields.
        UnknownNameError: the name is not registered.
    """
    if noun == "pattern":
        return _pattern_from(data)
    _, registry = NOUNS[noun]
    name, fields = (data, {}) if isinstance(data, str) else _single(noun, data)
    kind = registry.get(name)
    known = {f.name: f for f in dataclasses.fields(kind)}
    unknown = set(fields) - set(known)
    if unknown:
        raise RecipeError(f"{noun} {name!r} has no field {sorted(unknown)[0]!r}; it has {', '.join(known) or 'none'}.")
    missing = [f.name for f in known.values() if f.name not in fields and _default(f) is dataclasses.MISSING]
    if missing:
        raise RecipeError(f"{noun} {name!r} needs a value for {', '.join(missing)}.")
    return kind(**{key: _field_from(f"{noun} {name!r}", known[key], value) for key, value in fields.items()})


_PLAIN: dict[str, tuple[type, ...]] = {"float": (int, float), "int": (int,), "bool": (bool,), "str": (str,)}


def _field_from(where: str, field: dataclasses.Field, value: Any) -> Any:
    if value is None:
        return None
    declared = str(field.type)
    if "Pattern" in declared:
        return from_config("pattern", value)
    for noun, (base, _) in NOUNS.items():
        if re.search(rf"\b{base.__name__}\b", declared):
            return _several(noun, value) if declared.startswith("tuple[") else from_config(noun, value)
    return _plain(where, field.name, declared, value)


def _several(noun: str, values: Any) -> tuple[Any, ...]:
    if not isinstance(values, list | tuple):
        raise RecipeError(f"Several of {noun} are written as a list, got {values!r}.")
    return tuple(from_config(noun, v) for v in values)


def _plain(where: str, name: str, declared: str, value: Any) -> Any:
    if declared == "float" and isinstance(value, str):  # YAML 1.1 reads 1e-3 as text
        value = _number(value)
    wanted = _PLAIN.get(declared)
    if wanted and (not isinstance(value, wanted) or (isinstance(value, bool) and bool not in wanted)):
        raise RecipeError(f"Field {name!r} of {where} must be of type {declared}, got {value!r}.")
    return _hashable(value)


def _hashable(value: Any) -> Any:
    return tuple(map(_hashable, value)) if isinstance(value, list) else value


def _number(text: str) -> float | str:
    try:
        return float(text)
    except ValueError:
        return text


def _single(noun: str, data: Any) -> tuple[str, dict[str, Any]]:
    if not isinstance(data, dict) or len(data) != 1:
        raise RecipeError(f"A {noun} is written as `name` or `name: {{field: value}}`, got {data!r}.")
    name, fields = next(iter(data.items()))
    if fields is None:
        fields = {}
    if not isinstance(fields, dict):
        raise RecipeError(f"The fields of {noun} {name!r} must be a mapping, got {fields!r}.")
    return name, fields


def _set_fields(value: Any) -> list[dataclasses.Field]:
    """Fields that differ from their default."""
    defaults = {f: _default(f) for f in dataclasses.fields(value)}
    return [f for f, default in defaults.items() if default is dataclasses.MISSING or getattr(value, f.name) != default]


def _default(f: dataclasses.Field) -> Any:
    return f.default_factory() if f.default_factory is not dataclasses.MISSING else f.default


def _pattern_config(pattern: Pattern) -> Any:
    from sparseworks.core.patterns import describe, parse

    text = describe(pattern)
    if not text.startswith("("):
        assert parse(text) == pattern
        return text
    data: dict[str, Any] = {
        "unit": [pattern.unit.rows, pattern.unit.cols],
        "group": [pattern.group.rows, pattern.group.cols],
        "quota": pattern.quota,
    }
    if pattern.inner:
        data["inner"] = _pattern_config(pattern.inner)
    if pattern.across:
        data["across"] = True
    return data


def _pattern_from(data: Any) -> Pattern:
    if isinstance(data, str | Pattern):
        return Pattern.parse(data)
    unknown = set(data) - {"unit", "group", "quota", "inner", "across"} if isinstance(data, dict) else {repr(data)}
    if unknown:
        raise RecipeError(
            f"A pattern is a name or a mapping of unit, group, quota, inner, across; got {sorted(unknown)[0]!r}."
        )
    inner = _pattern_from(data["inner"]) if data.get("inner") else None
    unit, group = _tile(data, "unit", [1, 1]), _tile(data, "group", [None, None])
    return Pattern(unit, group, data.get("quota"), inner, bool(data.get("across", False)))


def _tile(data: dict[str, Any], key: str, default: list[int | None]) -> Tile:
    sizes = data.get(key, default)
    if not isinstance(sizes, list | tuple) or len(sizes) != 2 or any(type(s) not in (int, type(None)) for s in sizes):
        raise RecipeError(f"The {key} of a pattern is a pair [rows, columns] of whole numbers or null, got {sizes!r}.")
    return Tile(*sizes)
