"""Recipe: which sites get which method, in order; the last rule that matches a site holds. YAML round-trips exactly."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from typing import Any, TypeVar

import yaml

from sparseworks.core.errors import RecipeError
from sparseworks.core.method import Method
from sparseworks.core.published import Published, method_from
from sparseworks.core.site import Site

M = TypeVar("M", bound=Published)


@dataclass(frozen=True)
class Rule:
    """`method` for every site whose name matches a shell-style pattern in `sites`; method None leaves them dense."""

    sites: tuple[str, ...]
    method: Published | None

    def matches(self, name: str) -> bool:
        """Whether the name is one of the patterns, or matches one (`[q]` in a name is not a set of characters)."""
        return any(name == pattern or fnmatchcase(name, pattern) for pattern in self.sites)


@dataclass(frozen=True)
class Recipe:
    """An ordered list of rules and a seed."""

    rules: tuple[Rule, ...]
    seed: int = 0

    @classmethod
    def of(
        cls, method: Published | Recipe | str, *, skip: Sequence[str] = (), kind: type[Published] = Method
    ) -> Recipe:
        """One method of this kind for every site, or a given recipe, but sites matching `skip` stay dense.

        Raises:
            UnknownNameError, RecipeError: no method of that name, or one of another kind.
        """
        recipe = method if isinstance(method, Recipe) else cls((Rule(("*",), kind.of(method)),))
        return replace(recipe, rules=(*recipe.rules, Rule(tuple(skip), None))) if skip else recipe

    def method_for(self, name: str, kind: type[M] = Method) -> M | None:
        """The method of the last matching rule, None = stays dense; rules for other kinds of methods say nothing here."""
        found = [rule.method for rule in self.rules if rule.matches(name)]
        mine = [method for method in found if method is None or isinstance(method, kind)]
        return mine[-1] if mine else None

    def assign(self, sites: Iterable[Site]) -> list[tuple[Method, list[Site]]]:
        """Sites grouped by method, both in order of appearance; dense sites are left out."""
        groups: list[tuple[Method, list[Site]]] = []
        for site in sites:
            method = self.method_for(site.name)
            if method is None:
                continue
            for known, members in groups:
                if known == method:
                    members.append(site)
                    break
            else:
                groups.append((method, [site]))
        return groups

    def to_yaml(self) -> str:
        """YAML text; `Recipe.from_yaml` reads back an equal recipe."""
        rules = [{"sites": list(r.sites), "method": r.method.to_config() if r.method else None} for r in self.rules]
        return yaml.safe_dump({"schema": 1, "seed": self.seed, "rules": rules}, sort_keys=False)

    @classmethod
    def from_yaml(cls, text: str) -> Recipe:
        """Read a recipe.

        Raises:
            RecipeError: not YAML, unknown keys, or a newer schema.
        """
        try:
            data = yaml.safe_load(text)
        except yaml.YAMLError as error:
            raise RecipeError(f"The recipe is not valid YAML: {error}") from None
        if not isinstance(data, dict):
            raise RecipeError("A recipe is a mapping with the keys schema, seed, rules.")
        _known(data, {"schema", "seed", "rules"}, "recipe")
        if data.get("schema", 1) != 1:
            raise RecipeError(
                f"This recipe has schema {data['schema']!r}; this version reads schema 1. Upgrade sparseworks."
            )
        rules = data.get("rules")
        if not isinstance(rules, list) or not rules:
            raise RecipeError("A recipe needs a list of rules.")
        seed = data.get("seed", 0)
        if type(seed) is not int:
            raise RecipeError(f"The seed of a recipe is a whole number, got {seed!r}.")
        return cls(tuple(_rule(r) for r in rules), seed)


def _rule(data: Any) -> Rule:
    if not isinstance(data, dict) or "sites" not in data or "method" not in data:
        raise RecipeError(f"A rule is a mapping with the keys sites and method, got {data!r}.")
    _known(data, {"sites", "method"}, "rule")
    sites = [data["sites"]] if isinstance(data["sites"], str) else data["sites"]
    if not isinstance(sites, list) or not sites:
        raise RecipeError(f"The sites of a rule are a name pattern or a list of them, got {sites!r}.")
    method = None if data["method"] is None else method_from(data["method"])
    return Rule(tuple(map(str, sites)), method)


def _known(data: dict[str, Any], keys: set[str], where: str) -> None:
    unknown = set(data) - keys
    if unknown:
        raise RecipeError(f"Unknown key {sorted(unknown)[0]!r} in the {where}; known: {', '.join(sorted(keys))}.")
